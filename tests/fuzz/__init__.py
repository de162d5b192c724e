"""Machines that look for the next fault, each a module that runs by itself: see `fuzz` in the Makefile."""
