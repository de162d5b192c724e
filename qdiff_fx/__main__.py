"""``python -m qdiff_fx`` is ``qdiff``."""

from qdiff_fx.cli import main

main()
