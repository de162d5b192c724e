"""Whole images by whole pipelines: what `benchmarks.whole_image` compares."""
