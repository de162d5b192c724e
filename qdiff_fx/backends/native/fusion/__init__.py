"""Rewrites of the q/dq graph: layers become kernels, what surrounds a layer is done by its kernel."""
