"""One spelling per operation: a rule per rewrite."""
