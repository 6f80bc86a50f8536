"""Self-Steering Optimization: the method, its training step and the micro-world (arXiv 2410.17131)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sso.library import SSOConfig, SSOTrainer, generate_triples

__version__ = "0.1.0"
__all__ = ["SSOConfig", "SSOTrainer", "generate_triples"]


def __getattr__(name: str) -> Any:
    """The library (docs/library.md), loaded when it is asked for: commands start without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sso.library

    return getattr(sso.library, name)
