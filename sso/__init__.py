"""Self-Steering Optimization: the method, its training step and the micro-world (arXiv 2410.17131)."""

__version__ = "0.1.0"
