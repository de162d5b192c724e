"""Measurements of speed and fidelity. They print tables and write JSON; they assert nothing."""
