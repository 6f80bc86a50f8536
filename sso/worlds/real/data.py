"""Everything that the real world gives the workflow: an SFT corpus that teaches steering, query sets, benchmarks.

Real prompts get constraints, and real answers are changed by a program so that they keep them or not; the oracle is
asked about each answer that is made. Same settings and sources, same bytes.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from sso.errors import InputError
from sso.records import Answer, Message, Pair, Query, write, write_text
from sso.worlds.real import corpus, principles
from sso.worlds.real.kinds import STAGES
from sso.worlds.real.oracle import Constraint, ConstraintOracle, constraints, is_answer
from sso.worlds.settings import RealWorld

KEPT = 0.55
"""How often a constraint is kept without a principle."""
TRIES, MISSES = 8, 300
"""Answers that are tried for a prompt, and prompts in a row that can't be made, before it is given up."""


class Writer:
    """Asks and answers: the world's procedure."""

    def __init__(self, world: RealWorld):
        self.world, self.oracle = world, ConstraintOracle()
        self.corpus = corpus.load(world)
        self.prompts = corpus.parts(self.corpus, world.seed)

    def ask(self, prompt: str, random: Random, new: bool = False) -> tuple[list[Message], list[Constraint]]:
        """A prompt with one or two constraints, of the kinds that are trained or of ``new`` ones."""
        known = [one for one in constraints().values() if one.kind.new == new]
        kinds = sorted({one.kind.id for one in known})
        chosen: list[Constraint] = []
        for kind in random.sample(kinds, len(kinds)):
            one = random.choice([one for one in known if one.kind.id == kind])
            if all(one.kind.stage != other.kind.stage for other in chosen):
                chosen.append(one)
        chosen = chosen[: 2 if random.random() < self.world.two_constraints else 1]
        text = "\n\n".join([prompt, *(one.sentence for one in chosen)])
        return [Message(role="user", content=text)], chosen

    def respond(self, prompt: str, asked: list[Constraint], kept: Sequence[bool], random: Random) -> str | None:
        """A real answer to ``prompt``, changed so that it keeps each constraint or not as ``kept`` says, which the
        checkers confirm; None where a few tries made none."""
        wanted = dict(zip((one.kind.id for one in asked), kept, strict=True))
        for _ in range(TRIES):
            made: Any = list(random.choice(self.corpus[prompt]))
            for one in sorted(asked, key=lambda one: STAGES.index(one.kind.stage)):
                edit = one.kind.edit if wanted[one.kind.id] else one.kind.avoid
                if isinstance(made, list) and one.kind.stage in ("frame", "letters"):
                    made = " ".join(made)
                if edit:
                    made = edit(made, one.option.arguments, prompt)
            text = " ".join(made) if isinstance(made, list) else made
            if is_answer(text) and all(one.kept(text) == wanted[one.kind.id] for one in asked):
                return text
        return None

    def examples(self, part: str, count: int, random: Random, new: bool = False) -> Iterator["Example"]:
        """So many different prompts of a part, each with what can be answered, kept and not; the part's real prompts
        come again, with other constraints, where there are fewer."""
        seen: set[str] = set()
        prompts, missed = self.prompts[part], 0
        for real in itertools.cycle(prompts):
            if len(seen) == count:
                return
            if missed == MISSES:
                break
            prompt, asked = self.ask(real, random, new)
            missed += 1
            if prompt[0].content not in seen and all(
                self.respond(real, asked, [side] * len(asked), random) for side in (True, False)
            ):
                seen.add(prompt[0].content)
                missed = 0
                yield Example(self, real, prompt, asked)
        raise InputError(
            f"world: {len(seen)} of {count} prompts of `{part}` could be made of {len(prompts)} real ones; "
            "ask for fewer, or give more `sources`."
        )


class Example:
    """A prompt with constraints, which the procedure can answer either way."""

    def __init__(self, writer: Writer, real: str, prompt: list[Message], asked: list[Constraint]):
        self.writer, self.real, self.prompt, self.asked = writer, real, prompt, asked
        self.family = "two constraints" if len(asked) > 1 else asked[0].kind.id.partition(":")[2]

    def answer(self, random: Random, good: bool | None = None) -> str:
        """An answer that keeps all constraints (``good``), none, or each with a probability of `KEPT`."""
        while True:
            kept = [random.random() < KEPT if good is None else good for _ in self.asked]
            if text := self.writer.respond(self.real, self.asked, kept, random):
                return text

    def score(self, answer: str) -> float:
        """The oracle's."""
        return self.writer.oracle.score(self.prompt, answer).total


def _worse(example: Example, random: Random) -> str:
    """The fixed answers that a model's are compared with are the worse of two, as the micro-world's."""
    return min((example.answer(random) for _ in range(2)), key=example.score)


def _sft(examples: Iterable[Example], random: Random) -> Iterator[dict[str, Any]]:
    """Half without principle, a quarter good, a quarter bad."""
    for number, example in enumerate(examples):
        good = random.choice([None, None, True, False])
        turns = [*example.prompt, Message(role="assistant", content=example.answer(random, good))]
        if good is not None:
            turns.insert(0, Message(role="system", content=principles.principle(example.asked, good, random)))
        yield {"id": str(number), "messages": [turn.model_dump() for turn in turns]}


def _ifeval(examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    for number, example in enumerate(examples):
        yield {
            "key": number,
            "prompt": example.prompt[0].content,
            "instruction_id_list": [one.kind.id for one in example.asked],
            "kwargs": [one.option.arguments for one in example.asked],
        }


def _pairs(examples: Iterable[Example], random: Random) -> Iterator[tuple[list[Message], str, str]]:
    """Two answers of the procedure, each unprompted or after a good or a bad principle, the better by the oracle
    first."""
    for example in examples:
        while True:
            drafts = [example.answer(random, good) for good in random.choices([None, True, False], k=2)]
            (low, worse), (high, better) = sorted((example.score(draft), draft) for draft in drafts)
            if low < high:
                yield example.prompt, better, worse
                break


def write_all(world: RealWorld, out: Path, query_sets: int = 3) -> dict[str, int]:
    """Write every file of the world below ``out``; returns rows by file name."""
    writer = Writer(world)

    def source(name: str) -> Random:
        return Random(f"{name}/{world.seed}")

    def examples(name: str, part: str, count: int, new: bool = False) -> list[Example]:
        return list(writer.examples(part, count, source(name), new))

    def queries(name: str, of: Sequence[Example]) -> list[Query]:
        return [Query(id=f"{name}-{i}", prompt=one.prompt, family=one.family) for i, one in enumerate(of)]

    sets: dict[str, list[Any]] = {}
    for name, count, fixed in (
        ("eval", world.eval_queries, "reference"),
        ("tune", world.tune_queries, "tune_reference"),
    ):
        made, random = examples(name, name, count), source(fixed)
        sets[name] = queries(name, made)
        sets[fixed] = [
            Answer(id=query.id, prompt=query.prompt, output=_worse(one, random), model="world")
            for query, one in zip(sets[name], made, strict=True)
        ]
    asked = queries("train", examples("train", "train", query_sets * world.train_queries))
    for number in range(query_sets):
        own = asked[number * world.train_queries : (number + 1) * world.train_queries]
        sets[f"queries{number + 1}"] = [
            query.model_copy(update={"id": f"queries{number + 1}-{i}"}) for i, query in enumerate(own)
        ]
    sets["steering"] = principles.write(sets["eval"][: world.benchmark_items], world.seed)
    for name, new in (("ifeval", False), ("ifeval_new_kinds", True)):
        sets[name] = list(_ifeval(examples(name, "benchmarks", world.benchmark_items, new)))
    sets["rewardbench"] = []
    for subset, new in (("real-known-kinds", False), ("real-new-kinds", True)):
        made = examples(subset, "benchmarks", world.benchmark_items, new)
        sets["rewardbench"] += [
            {"id": f"{subset}-{i}", "subset": subset, "prompt": prompt[0].content, "chosen": high, "rejected": low}
            for i, (prompt, high, low) in enumerate(_pairs(made, source(f"pairs/{subset}")))
        ]
    made = examples("annotated", "train", world.annotated_pairs)
    sets["annotated"] = [
        Pair(id=f"annotated-{i}", prompt=prompt, chosen=high, rejected=low, source="world")
        for i, (prompt, high, low) in enumerate(_pairs(made, source("annotated")))
    ]
    sets["sft"] = list(_sft(examples("sft", "sft", world.sft_examples), source("sft answers")))
    for name, rows in sets.items():
        write(out / f"{name}.jsonl", rows)
    about = {**world.model_dump(), "prompts": {name: len(part) for name, part in writer.prompts.items()}}
    write_text(out / "world.json", json.dumps(about, indent=1) + "\n")
    return {name: len(rows) for name, rows in sets.items()}
