"""Models and tokenizers as a user gives them: by a checkpoint's name, or in memory."""

import sys
from pathlib import Path
from typing import Any

import torch

from sso.chat import adopt_tokenizer, load_tokenizer
from sso.errors import InputError
from sso.hub import checkpoint
from sso.jobs.distributed import is_main


def origin(model: Any) -> str:
    """The checkpoint's folder that a model is, or what one in memory was read from; empty where there is none."""
    return str(getattr(model, "name_or_path", "")) if isinstance(model, torch.nn.Module) else str(checkpoint(model))


def tokenizer_of(model: Any, given: Any) -> Any:
    """The tokenizer ``given``, made fit for the model in memory, or else the one beside the model's checkpoint.

    Raises:
        InputError: there is none, or it does not do.
    """
    if given is not None:
        return adopt_tokenizer(given, model)
    place = origin(model)
    if not place:
        raise InputError(
            "processing_class: is missing, and the model was not read from a checkpoint that has one; "
            "give its tokenizer."
        )
    return load_tokenizer(Path(place))


def warn_of_lost_steps(model: Any) -> None:
    """A line on standard error where weights to train are of half precision, as transformers loads them by default."""
    narrow = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)}
    if narrow and is_main():
        print(
            f"warning: the weights to train are {min(map(str, narrow))}, in which small steps are lost to rounding; "
            "give the model's path, or load it with dtype=torch.float32.",
            file=sys.stderr,
        )
