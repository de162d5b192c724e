"""oneDNN's integer kernels under `torch.compile`."""
