"""What README and docs show is run.

Python blocks are executed (`python_blocks.py` says with what at hand), recipes by tests/test_recipes.py. Command lines
are carried out as far as their work would begin (`command_lines.py`). `not_run.py` lists what nothing is done with, and
why.
"""
