"""Folders of safetensors and JSON: written whole or not at all, read without running anything."""
