"""Integer kernels called one after the other, nothing compiled when a network is loaded."""
