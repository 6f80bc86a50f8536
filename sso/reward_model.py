"""A Bradley-Terry reward model: a causal model with one scalar head on the last token. Loading it, and its rewards."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sso.errors import InputError
from sso.jobs.distributed import forward_of, unwrapped
from sso.records import Message

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel


READS_TURN = "sso_reads_turn"
"""In the config of a model of `sso-rewardbench train`: it reads a response behind the generation prompt, to the end of
its turn."""


def load(path: str | Path, dtype: str = "float32") -> tuple["PreTrainedModel", Any]:
    """A reward model and its tokenizer, safetensors only; InputError where there is none at ``path``.

    The head computes in float32 whatever ``dtype`` is: bfloat16 has steps of .03 at rewards of 4 to 8, so close rewards
    would tie, and a tie counts as lost.
    """
    from transformers import AutoModelForSequenceClassification

    from sso.chat import check_checkpoint, load_tokenizer, pretrained

    check_checkpoint(path)
    tokenizer = load_tokenizer(path)
    model, found = pretrained(AutoModelForSequenceClassification, path, "reward model", dtype)
    if found["missing_keys"] or model.config.num_labels != 1:
        raise InputError(f"{path}: not a reward model (it has no trained head with one label); give one that is.")
    head = getattr(model, "score", None)
    if head is not None:
        head.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
    if model.config.pad_token_id is None:
        # The reward is read at the last token that is no padding, so padding is none that ends what is read.
        last = reader(model, tokenizer)([Message(role="user", content="a")], "a")[-1]
        model.config.pad_token_id = next(i for i in (tokenizer.pad_token_id, 0, 1) if i != last)
    return model, tokenizer


def reader(model: Any, tokenizer: Any) -> Callable[[list[Message], str], list[int]]:
    """The ids that a model reads of a prompt and a response.

    For a model that was not trained here, what its own template writes of the whole conversation: Qwen3's puts an
    empty thought before the last answer and a line's end behind its turn, and the reward is read there.
    """
    from sso.chat import encode, encode_closed

    if getattr(model.config, READS_TURN, False):
        return lambda prompt, response: encode(tokenizer, prompt, response)
    return lambda prompt, response: encode_closed(tokenizer, [*prompt, Message(role="assistant", content=response)])


def rewards(
    model: "PreTrainedModel", sequences: Sequence[list[int]], batch_size: int = 64, budget: int = 1 << 16
) -> "np.ndarray":
    """The scalar reward of each token sequence, [sequences], float64.

    Rows are batched by length, at most ``batch_size`` of them and ``budget`` tokens, and padded on the right; causal
    attention keeps padding out of a row's reward.
    """
    import numpy as np
    import torch

    values = np.full(len(sequences), np.nan)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        while order:
            rows = max(1, min(batch_size, budget // len(sequences[order[-1]])))
            chunk, order = order[-rows:], order[:-rows]
            batch = pad([sequences[i] for i in chunk], model.config.pad_token_id)
            logits = model(**{key: value.to(model.device) for key, value in batch.items()}, use_cache=False).logits
            values[chunk] = logits[:, 0].double().cpu().numpy()
    model.train(was_training)
    return values


def _reading(model: Any, ends: "torch.Tensor") -> AbstractContextManager[None]:
    """While open, ``model(...)``'s logits of one row are the rewards at its places ``ends``, [1, ends].

    The class takes the head's output at one place of a row: all rewards stand at each.
    """
    head = unwrapped(model).score
    plain = head.forward
    return forward_of(head, lambda hidden: plain(hidden[:, ends]).transpose(1, 2).expand(1, hidden.shape[1], -1))


def in_batch(sequences: Sequence[list[int]], pad_token_id: int, layout: str) -> dict[str, Any]:
    """What `read` takes, on CPU: padded rows, or one row with nothing twice (`packing.paths`) and sequences' ends."""
    if layout == "padded":
        return pad(sequences, pad_token_id)
    import torch

    from sso.packing import in_one_row, paths

    found = paths(sequences)
    return {**in_one_row(found), "ends": torch.tensor([found[tuple(sequence)].at[-1] for sequence in sequences])}


def read(model: Any, batch: dict[str, Any]) -> "torch.Tensor":
    """The rewards of an `in_batch` on the model's device, [sequences]; that of one row within `attention.forests`."""
    if "ends" not in batch:
        return model(**batch, use_cache=False).logits[:, 0]
    with _reading(model, batch["ends"]):
        row = {name: batch[name] for name in ("input_ids", "position_ids")}
        return model(**row, forest=batch["layout"], use_cache=False).logits[0]


def pad(sequences: Sequence[list[int]], pad_token_id: int) -> dict[str, Any]:
    """input_ids and attention_mask, both [sequences, longest], padded on the right."""
    import torch

    rows = [torch.tensor(sequence) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
