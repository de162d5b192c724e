"""Layers that read a concatenation become layers of its parts, summed (Q-Diffusion, section 4.2)."""
