"""Long operations killed at random moments: what has a name is whole, and a second run ends as the first would.

python -m tests.faults --kills 200
"""
