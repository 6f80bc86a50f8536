"""What the tasks' YAML cannot say. Knows documents and replies, nothing of models or files."""

from typing import Any


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}; None where there is none or its braces do not close."""
    from lm_eval.tasks.hendrycks_math.utils import last_boxed_only_string, remove_boxed

    boxed = last_boxed_only_string(text)
    return remove_boxed(boxed) if boxed and boxed.startswith(("\\boxed{", "\\boxed ")) else None


def boxed_match(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 if the reply's last box holds the solution's value (Hendrycks' string normalization)."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    reply = last_boxed(results[0])
    return {"exact_match": int(reply is not None and is_equiv(reply, last_boxed(doc["solution"])))}
