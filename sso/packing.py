"""Token ids of records, and how they lie in a batch: forests of shared contexts, or plain padded rows.

A sample holds up to three contexts (x, x+, x-) and three responses (y+, y-, yo); a node is one response in one
context. In a forest all that begins alike stands once: a context for all responses to it, and what contexts, of other
samples too, have in common before they part. A token sees what stands before it in its own sequence alone, so every
node is scored as if it stood alone. Knows nothing of models.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from sso.attention import layout, whole_numbers
from sso.chat import encode_prompt, encode_response, naming, with_system
from sso.errors import InputError, first_of
from sso.jobs.distributed import is_main
from sso.objective import Context, Node, Response
from sso.records import Pair, Triple


@dataclass(frozen=True)
class Sample:
    """Token ids of one record: contexts with their generation prompt, responses with their end-of-turn token, unless
    they were cut."""

    id: str
    contexts: dict[Context, list[int]]
    responses: dict[Response, list[int]]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every response in every context, whatever an objective asks for."""
        return tuple((context, response) for context in self.contexts for response in self.responses)

    def node(self, node: Node) -> tuple[list[int], list[int]]:
        """Context and response of a node; InputError where the record has none such."""
        context, response = node
        if context not in self.contexts or response not in self.responses:
            raise InputError(
                f"record {self.id!r}: a pair has no {response} in {context}; this objective needs triples."
            )
        return self.contexts[context], self.responses[response]


def check_nodes(samples: Sequence[Sample], nodes: Iterable[Node]) -> None:
    """Raise InputError for a node that the records lack, before a model is loaded: all are triples, or all pairs."""
    for sample in samples[:1]:
        for node in nodes:
            sample.node(node)


@dataclass(frozen=True)
class Tokenized:
    """Samples that fit; ids: of those with a response shortened to fit, of those with one that was cut when it was
    drawn, and of the records that were left out."""

    samples: list[Sample]
    cut: list[str] = field(default_factory=list)
    cut_when_drawn: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Figures for the run's record."""
        return {
            "samples": len(self.samples),
            "responses_cut": len(self.cut),
            "responses_cut_when_drawn": len(self.cut_when_drawn),
            "records_left_out": len(self.left_out),
        }

    def warn(self, max_length: int) -> None:
        """Print `report` to standard error, from the main process alone."""
        for line in self.report(max_length) if is_main() else ():
            print(line, file=sys.stderr)

    def report(self, max_length: int) -> list[str]:
        """A warning line for each thing that did not fit."""
        said = (
            (self.cut, f"with a response cut to fit max_length {max_length}"),
            (self.cut_when_drawn, "with a response cut when it was drawn"),
            (self.left_out, f"left out, their prompts fill max_length {max_length}"),
        )
        return [f"warning: {len(ids)} records {what}: {first_of(ids)}" for ids, what in said if ids]


def tokenize(
    records: Sequence[Triple | Pair], tokenizer: Any, max_length: int, end_cut_responses: bool = False
) -> Tokenized:
    """Samples of triples or pairs.

    A response that was cut when it was drawn has no end-of-turn token, unless ``end_cut_responses`` or it has no other.

    Contexts are never cut: a record with one that leaves no room for a response is left out. Responses are cut to
    the room beside the record's longest context, so that a response is the same in all contexts.

    Raises:
        InputError: there is no record, none fits, or the chat template refuses one, which is named.
    """
    if not records:
        raise InputError("there are no records to tokenize; give at least one triple or pair.")
    made = Tokenized([])
    for record in records:
        with naming([record.id]):
            contexts: dict[Context, list[int]] = {"x": encode_prompt(tokenizer, record.prompt)}
            if isinstance(record, Triple):
                contexts["x+"] = encode_prompt(tokenizer, with_system(record.prompt, record.system_good))
                contexts["x-"] = encode_prompt(tokenizer, with_system(record.prompt, record.system_bad))
        if isinstance(record, Triple):
            sides: dict[Response, tuple[str, str]] = {
                "y+": ("chosen", record.chosen),
                "y-": ("rejected", record.rejected),
                "yo": ("original", record.original),
            }
        else:
            sides = {side: (name, getattr(record, name)[-1].content) for side, name in _SIDES.items()}
        room = max_length - max(map(len, contexts.values()))
        if room < 1:
            made.left_out.append(record.id)
            continue
        cut: list[str] = [name for name, _ in sides.values() if name in record.cut]
        with naming([record.id]):
            responses = {
                side: encode_response(tokenizer, text, end_cut_responses or name not in cut)
                for side, (name, text) in sides.items()
            }
        if cut:
            made.cut_when_drawn.append(record.id)
        if max(map(len, responses.values())) > room:
            made.cut.append(record.id)
        made.samples.append(Sample(record.id, contexts, {name: ids[:room] for name, ids in responses.items()}))
    if not made.samples:
        raise InputError(
            f"record {records[0].id!r}: its prompt fills all of max_length {max_length}, and no other record fits; "
            "raise it or give shorter prompts."
        )
    return made


_SIDES: dict[Response, str] = {"y+": "chosen", "y-": "rejected"}


@dataclass(frozen=True)
class Path:
    """Where a sequence's tokens stand in a forest's row; all but the last ``own`` are shared with sequences before."""

    at: list[int]
    own: int


def paths(sequences: Iterable[Sequence[int]]) -> dict[tuple[int, ...], Path]:
    """Where each distinct sequence stands in a row in which no beginning that several have in common stands twice.

    A token's hidden state depends on what stands before it alone, so one is enough for all that begin alike.
    """
    made: dict[tuple[int, ...], Path] = {}
    before: tuple[int, ...] = ()
    row, at = 0, list[int]()
    # What begins alike comes together, the longer first: a sequence that begins another needs nothing of its own.
    for sequence in sorted(set(map(tuple, sequences)), reverse=True):
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, sequence, strict=False)))
        own = len(sequence) - shared
        at, before = [*at[:shared], *range(row, row + own)], sequence
        row += own
        made[sequence] = Path(at, own)
    return made


def in_row(sequences: Iterable[Sequence[int]]) -> int:
    """Tokens of such a row."""
    return sum(path.own for path in paths(sequences).values())


def cost(sample: Sample, nodes: Sequence[Node], layout: str) -> int:
    """Tokens of a sample in a batch, without padding; in one forest with others it may take fewer."""
    sequences = [context + response for context, response in map(sample.node, nodes)]
    return in_row(sequences) if layout == "forest" else sum(map(len, sequences))


def plan(costs: Sequence[int], budget: int, devices: int = 1) -> list[list[list[int]]]:
    """Micro-batches of a batch by device: ``plan(...)[device][step]`` are indices into ``costs``.

    The fewest steps, the same for all devices, such that each micro-batch costs at most ``budget`` or is one sample;
    the largest sample goes first, to the micro-batch with the least so far. Every device can compute the whole plan,
    so none has to be told. Micro-batches are empty only where the samples do not come out even.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    # With a bin for each sample every one is alone: more are never needed.
    steps = min(-(-sum(costs) // (budget * devices)), -(-len(costs) // devices))
    while True:
        loads = [0] * (steps * devices)
        bins: list[list[int]] = [[] for _ in loads]
        for i in order:
            # By load; among the empty ones, the first step of each device first.
            at = min(range(len(bins)), key=lambda b: (loads[b], b))
            loads[at] += costs[i]
            bins[at].append(i)
        if all(load <= budget or len(members) == 1 for load, members in zip(loads, bins, strict=True)):
            return [[sorted(bins[step * devices + d]) for step in range(steps)] for d in range(devices)]
        steps += 1


def in_one_row(found: Mapping[tuple[int, ...], Path]) -> dict[str, Any]:
    """What a model takes of such a row.

    input_ids, position_ids: [1, tokens]; a token's position is its place in its sequences.
    layout: how attention lays the tokens out.
    """
    own = {sequence: path for sequence, path in found.items() if path.own}
    ids = [token for sequence, path in own.items() for token in sequence[-path.own :]]
    positions = [place for sequence, path in own.items() for place in range(len(sequence) - path.own, len(sequence))]
    where = layout([path.at for path in own.values()], [path.own for path in own.values()])
    return {"input_ids": whole_numbers(ids)[None], "position_ids": whole_numbers(positions)[None], "layout": where}


def forest(samples: Sequence[Sample], nodes: Sequence[Node]) -> dict[str, Any]:
    """All nodes of all samples `in_one_row`, without padding, and nothing twice: see `paths`.

    Beside what a model takes:
        source, target: [scored tokens], each once; the place in the row whose hidden state predicts the token, and the
            token.
        scored, owner: [tokens of all nodes' responses]; which of the scored tokens it is, and whose: its node, counted
            through all samples.
        tokens: [samples, nodes]; the count of scored tokens.
    """
    each = [sample.node(node) for sample in samples for node in nodes]
    found = paths(context + response for context, response in each)
    batch = in_one_row(found)
    # From a context's last place on: each place predicts the next.
    at = [found[tuple(context + response)].at[len(context) - 1 :] for context, response in each]
    sources = whole_numbers([place for path in at for place in path[:-1]])
    targets = whole_numbers([place for path in at for place in path[1:]])
    unique, scored = targets.unique(return_inverse=True)
    counts = torch.tensor([len(path) - 1 for path in at])
    return batch | {
        "source": torch.empty_like(unique).scatter_(0, scored, sources),
        "target": batch["input_ids"][0, unique],
        "scored": scored,
        "owner": torch.arange(len(each)).repeat_interleave(counts),
        "tokens": counts.view(len(samples), len(nodes)),
    }


def padded(samples: Sequence[Sample], nodes: Sequence[Node], pad: int) -> dict[str, Tensor]:
    """The plain definition: one row for each node of each sample, padded left.

    input_ids, attention_mask, position_ids: [samples * nodes, time].
    response_mask: [samples * nodes, longest response], true at response tokens; tokens: [samples, nodes].
    """
    rows = [sample.node(node) for sample in samples for node in nodes]
    width, longest = max(len(p) + len(r) for p, r in rows), max(len(r) for _, r in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    scored = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        ids[i, width - len(prompt) - len(response) :] = torch.tensor(prompt + response)
        mask[i, width - len(prompt) - len(response) :] = 1
        scored[i, longest - len(response) :] = True
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": scored,
        "tokens": scored.sum(1).view(len(samples), len(nodes)),
    }


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on the model's device; a copy to CUDA waits for nothing."""

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return {name: move(value) if isinstance(value, Tensor) else value.moved(move) for name, value in batch.items()}


def grouped(costs: Sequence[int], budget: int, order: Iterable[int]) -> list[list[int]]:
    """Neighbours of ``order`` in groups of at most ``budget``, or of one: batches where no gradient is taken."""
    groups: list[list[int]] = []
    load = budget + 1
    for i in order:
        if load + costs[i] > budget:
            groups.append([])
            load = 0
        groups[-1].append(i)
        load += costs[i]
    return groups
