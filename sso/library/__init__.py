"""The suite as a library, in the conventions of trl (docs/library.md)."""

from sso.library.config import SSOConfig
from sso.library.data import from_authors
from sso.library.trainer import SSOTrainer
from sso.library.triples import generate_triples

__all__ = ["SSOConfig", "SSOTrainer", "from_authors", "generate_triples"]
