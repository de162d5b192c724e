"""Pure numerics of quantization: ranges, scales, zero-points, codes. Nothing in here knows a graph."""
