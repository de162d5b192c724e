"""The engines of torch.ao."""
