"""zhub: train, version and serve experts (sets of z-vectors) for a frozen base model.

This package is what exists, what may happen to it and where it is kept. It imports neither torch
nor ray nor fastapi; ``zhub_workers`` and ``zhub_api`` stand on it and never import each other.
"""

__version__ = "0.1.0"
