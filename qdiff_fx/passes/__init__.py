"""Graph rewrites: one per file, each saying what it matches, why it may, and what it becomes."""
