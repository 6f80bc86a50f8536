"""Checkpoints of tensors and plain values: within `plain_alone` no library unpickles anything else from one."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import torch

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""With it torch.load builds tensors alone, also where its caller asks for any pickle, as DeepSpeed does."""
DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler",),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
"""What ZeRO's optimizer states hold beside tensors."""
METADATA = {
    "pathlib": ("Path", "PosixPath"),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}
"""What the `.metadata` of torch's distributed checkpoints hold, which FSDP2's are."""


class Metadata(Unpickler):
    """Reads a `.metadata` of torch's own classes."""

    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        raise UnpicklingError(f"{module}.{name} is no part of a checkpoint")


@contextmanager
def plain_alone(checkpoint: Path) -> Iterator[None]:
    """Within, torch.load builds tensors and plain values alone, for every caller; torch's `pickle.load` of `.metadata`
    can't be told so, and these are read here first. UnpicklingError where there is more than that."""
    for file in sorted(checkpoint.rglob(".metadata")):
        with file.open("rb") as content:
            Metadata(content).load()
    known = []
    if any(checkpoint.glob("global_step*")):  # of DeepSpeed, which is then installed
        known = [getattr(importlib.import_module(m), name) for m, names in DEEPSPEED.items() for name in names]
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        del os.environ[FORCED]
        if before is not None:
            os.environ[FORCED] = before
