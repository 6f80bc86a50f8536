"""Reference scores: log-probabilities of the union of an experiment's nodes, computed once, kept on disk.

The file carries the digests of all that determines it (weights, records, chat template, length, dtype); a file
that does not fit is refused with the name of the key that differs. Arms and epochs share it.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from sso.chat import load_model
from sso.errors import InputError
from sso.jobs.distributed import is_main
from sso.logprobs import Scorer
from sso.objective import Node
from sso.packing import Sample, cost, grouped, to_device
from sso.records import digest, file_digest, plain_modes
from sso.train.settings import Training


@dataclass(frozen=True)
class Reference:
    """logp (nats) and tokens, both [samples, nodes]; ``key`` holds the digests of what they were made from."""

    ids: list[str]
    nodes: list[Node]
    logp: torch.Tensor
    tokens: torch.Tensor
    key: dict[str, str]

    def column(self, node: Node) -> int:
        if node not in self.nodes:
            raise InputError(
                f"the reference scores lack {node[1]} in context {node[0]}; "
                "make them again with this objective (`sso reference`)."
            )
        return self.nodes.index(node)


def weights_digest(model: Any) -> str:
    """What tells weights from others: for a checkpoint the digest of its safetensors, or its name where it is not here;
    for a model in memory that of its tensors, adapters left out."""
    if isinstance(model, torch.nn.Module):
        return _state_digest(model)
    files = sorted(Path(model).glob("*.safetensors"))
    return digest([file_digest(file) for file in files]) if files else str(model)


def _state_digest(model: torch.nn.Module) -> str:
    adapter = getattr(getattr(model, "base_model", None), "prefix", None)  # of peft's tuners: `lora_`
    digester = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if adapter and (adapter in name or "modules_to_save" in name):
            continue
        digester.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digester.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digester.hexdigest()[:16]


def make_key(
    model: Any, tokenizer: Any, records: Sequence[Any], samples: Sequence[Sample], training: Training
) -> dict[str, str]:
    """What reference scores depend on, as digests by name.

    ``model`` is a checkpoint or a model in memory, ``samples`` are what the tokenizer made of the records.
    """
    return {
        "weights": weights_digest(model),
        "records": digest(list(records)),
        "template": digest([tokenizer.chat_template, len(tokenizer)]),
        "tokens": tokens_digest(samples),
        "max_length": str(training.max_length),
        "dtype": training.numerics,
        "end_cut_responses": str(training.end_cut_responses),
    }


def tokens_digest(samples: Sequence[Sample]) -> str:
    """Digest of all token ids of all samples: it changes with whatever a template or a tokenizer makes differently."""
    digester = hashlib.sha256()
    for sample in samples:
        for name, ids in (*sample.contexts.items(), *sample.responses.items()):
            digester.update(json.dumps([sample.id, name, len(ids)]).encode() + array("q", ids).tobytes())
    return digester.hexdigest()[:16]


def autocast(device: torch.device, numerics: str) -> Any:
    """bfloat16 arithmetic on float32 weights, as in training; nothing for float32, nor where weights are bfloat16."""
    return torch.autocast(device.type, torch.bfloat16) if numerics == "bfloat16" else nullcontext()


def load_start(model: str | Path, training: Training) -> Any:
    """The model that a training starts from, its weights as they are in the training's forward pass."""
    return load_model(model, "bfloat16" if training.numerics == "bfloat16 weights" else "float32")


@torch.no_grad()
def score(
    model: Any,
    samples: Sequence[Sample],
    nodes: Sequence[Node],
    pad: int,
    key: dict[str, str],
    layout: str = "auto",
    budget: int = 8192,
    progress: Any = None,
) -> Reference:
    """One pass over all nodes of all samples, in batches of like length and at most ``budget`` tokens.

    Where processes are joined by torch.distributed, each scores its share and all get the whole.
    """
    scorer = Scorer(model, nodes, pad, layout)
    costs = [cost(s, nodes, scorer.layout) for s in samples]
    groups = grouped(costs, budget, sorted(range(len(samples)), key=costs.__getitem__))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    logp = torch.zeros(len(samples), len(nodes), dtype=torch.promote_types(model.dtype, torch.float32))
    tokens = torch.zeros(len(samples), len(nodes), dtype=torch.int32)
    with scorer.attention(model), autocast(model.device, key["dtype"]):
        for number, members in enumerate(groups[rank::world], 1):
            batch = scorer.batch([samples[i] for i in members])
            logp[members] = scorer(model, to_device(batch, model.device)).to(logp.dtype).cpu()
            tokens[members] = batch["tokens"].int()
            if progress is not None:
                progress(number, len(groups[rank::world]))
    if world > 1:
        # The shares are disjoint and zero elsewhere.
        logp, tokens = (_sum(value, model.device) for value in (logp, tokens))
    return Reference([s.id for s in samples], list(nodes), logp, tokens, key)


def make(
    model: Any,
    samples: Sequence[Sample],
    nodes: Sequence[Node],
    pad: int,
    key: dict[str, str],
    training: Training,
    out: Path | None,
    progress: Any = None,
) -> Reference:
    """`score` in the training's layout and batches, kept at ``out``, if that is given, by the main process."""
    scores = score(model, samples, nodes, pad, key, training.layout, training.tokens_per_batch, progress)
    if out is not None and is_main():
        save(scores, out)
    return scores


def _sum(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    value = value.to(device)
    dist.all_reduce(value)
    return value.cpu()


def _digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def save(reference: Reference, path: Path) -> None:
    """Write scores with their key, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    metadata = {
        "ids": json.dumps(reference.ids),
        "nodes": json.dumps(reference.nodes),
        "key": json.dumps(reference.key),
        "scores": _digest(reference.logp, reference.tokens),
    }
    save_file({"logp": reference.logp, "tokens": reference.tokens}, temporary, metadata)
    plain_modes(temporary)
    temporary.replace(path)


def load(path: str | Path, expected: dict[str, str] | None = None) -> Reference:
    """Read scores; with ``expected``, refuse those made from anything else, naming the key that differs."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; make it with `sso reference`, or leave it out: it is made then.")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata()
            logp, tokens = file.get_tensor("logp"), file.get_tensor("tokens")
        ids, nodes, key = (json.loads(metadata[name]) for name in ("ids", "nodes", "key"))
    except Exception as error:  # safetensors has its own exception types, by version
        raise InputError(f"{path}: not a readable reference file ({error}); delete it and score again.") from error
    if metadata.get("scores", expected_scores := _digest(logp, tokens)) != expected_scores:
        raise InputError(f"{path}: was changed or damaged after it was written; delete it and score again.")
    for name, value in (expected or {}).items():
        if key.get(name) != value:
            raise InputError(
                f"{path}: made with other {name} ({key.get(name)}, now {value}); delete the file and score again."
            )
    return Reference(ids, [tuple(node) for node in nodes], logp, tokens, key)
