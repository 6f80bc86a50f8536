"""Log-probabilities of responses in contexts: the forward pass that reference scoring and training share.

A sample holds token ids of up to three contexts (x, x+, x-) and three responses (y+, y-, yo); a node is one
response in one context, scored once. Rows are padded left, so that the language-model head runs only over the
last positions. This is the plain, readable definition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sso.chat import encode_prompt, encode_response, with_system
from sso.errors import InputError
from sso.objective import Node
from sso.records import Pair, Triple


@dataclass(frozen=True)
class Sample:
    """Token ids of one record: contexts with their generation prompt, responses with their end-of-turn token."""

    id: str
    contexts: dict[str, list[int]]
    responses: dict[str, list[int]]


def tokenize(records: Sequence[Triple | Pair], tokenizer: Any, max_length: int) -> list[Sample]:
    """Samples of triples or pairs. A response is cut where a row would exceed ``max_length``; a prompt that
    leaves no room for one raises InputError with the record's id."""
    samples = []
    for record in records:
        contexts = {"x": encode_prompt(tokenizer, record.prompt)}
        if isinstance(record, Triple):
            contexts["x+"] = encode_prompt(tokenizer, with_system(record.prompt, record.system_good))
            contexts["x-"] = encode_prompt(tokenizer, with_system(record.prompt, record.system_bad))
            texts = {"y+": record.chosen, "y-": record.rejected, "yo": record.original}
        else:
            texts = {"y+": record.chosen[-1].content, "y-": record.rejected[-1].content}
        room = max_length - max(map(len, contexts.values()))
        if room < 1:
            raise InputError(
                f"record {record.id!r}: its prompt fills all of max_length {max_length}; raise it or drop the record."
            )
        responses = {name: encode_response(tokenizer, text)[:room] for name, text in texts.items()}
        samples.append(Sample(record.id, contexts, responses))
    return samples


def collate(samples: Sequence[Sample], nodes: Sequence[Node], pad: int) -> dict[str, Any]:
    """Rows of all nodes of all samples, sample by sample.

    input_ids, attention_mask, position_ids: [samples * nodes, time], padded left.
    response_mask: [samples * nodes, longest response], true at response tokens.
    """
    rows = [(s.contexts[c], s.responses[y]) for s in samples for c, y in nodes]
    width, longest = max(len(p) + len(r) for p, r in rows), max(len(r) for _, r in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    scored = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        ids[i, width - len(prompt) - len(response) :] = torch.tensor(prompt + response)
        mask[i, width - len(prompt) - len(response) :] = 1
        scored[i, longest - len(response) :] = True
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "response_mask": scored}


def response_logps(model: Any, rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability (nats, float32) and token count of each row's response; both [rows]."""
    scored = rows["response_mask"]
    longest = scored.shape[1]
    logits = model(
        input_ids=rows["input_ids"],
        attention_mask=rows["attention_mask"],
        position_ids=rows["position_ids"],
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    targets = rows["input_ids"][:, -longest:]
    wide = logits[scored] if logits.dtype == torch.float64 else logits[scored].float()
    each = -cross_entropy(wide, targets[scored], reduction="none")
    summed = each.new_zeros(scored.shape).masked_scatter(scored, each).sum(1)
    return summed, scored.sum(1)
