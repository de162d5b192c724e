"""The oldest and the newest of everything that pyproject.toml asks for, each in an environment of its own.

python -m tests.versions dist/qdiff_fx-*.whl                     # all combinations; `make versions` builds the wheel
python -m tests.versions WHEEL --only oldest --keep build/venvs  # one; its environment stays, and is taken again
"""
