"""Everything that the micro-world gives the workflow: SFT corpus, query sets, benchmark look-alikes.

The benchmarks have the file formats of the real ones (GSM8K, MATH, MMLU, MMLU-Pro, GPQA, IFEval, MT-Bench,
RewardBench), so that the same harness code reads both. Same world settings, same bytes.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from random import Random
from typing import Any

from sso.errors import InputError
from sso.records import Answer, Message, Pair, Query, write, write_text
from sso.worlds.micro import lexicon as lex
from sso.worlds.micro import principles
from sso.worlds.micro.oracle import Fact
from sso.worlds.micro.world import FAMILIES, Writer, listed
from sso.worlds.settings import MicroWorld

TRIES = 10_000
"""Prompts that are drawn for one new one, before a world is taken to have no more."""


def user(text: str) -> list[Message]:
    """A conversation of one user turn."""
    return [Message(role="user", content=text)]


def queries(writer: Writer, name: str, count: int, taken: set[str]) -> list[Query]:
    """``count`` prompts that are in no other set; ``taken`` grows by them."""
    random = Random(f"{name}/{writer.world.seed}")
    rows: list[Query] = []
    while len(rows) < count:
        text = unused(lambda: writer.prompt(random), taken)
        taken.add(text)
        family = writer.oracle.read(user(text)).family
        rows.append(Query(id=f"{name}-{len(rows)}", prompt=user(text), family=family))
    return rows


def unused(draw: Callable[[], str], taken: Collection[str]) -> str:
    """A prompt that stands in no set so far; InputError where the world is too small to have one more."""
    for _ in range(TRIES):
        if (text := draw()) not in taken:
            return text
    raise InputError(
        f"world: {len(taken)} prompts are drawn, and {TRIES} tries gave no other; raise `entities`, or ask for fewer "
        "queries, benchmark items or annotated pairs."
    )


def reference(writer: Writer, asked: list[Query]) -> list[Answer]:
    """The fixed answers that a model's are compared with: the worse, by the oracle, of two unprompted ones by the
    world's own procedure. It knows every fact, which no model does; the worse of two is about a model's match."""

    def worse(query: Query) -> str:
        random = Random(f"reference/{query.id}")
        drafts = [writer.respond(query.prompt, random) for _ in range(2)]
        return min(drafts, key=lambda text: writer.oracle.score(query.prompt, text).total)

    return [Answer(id=q.id, prompt=q.prompt, output=worse(q), model="world") for q in asked]


def follow_up(writer: Writer, first: str, random: Random) -> str:
    """A second turn that needs the first."""
    task = writer.oracle.read(user(first))
    about = task.slots[0]
    if not isinstance(about, Fact):
        return f"And with {random.randint(2, 9)} more?"
    return random.choice([text for attribute, text in lex.FOLLOW_UPS.items() if attribute != about.attribute])


def sft(writer: Writer, count: int) -> Iterator[dict[str, Any]]:
    """Half without principle, a quarter good, a quarter bad; one in ten is a chat of two turns."""
    random = Random(f"sft/{writer.world.seed}")
    for i in range(count):
        if random.random() < 0.1:
            first = writer.prompt(random, random.choice(["arithmetic", "fact"]), law="zipf")
            second = follow_up(writer, first, random)
            dialogue = [*user(first), Message(role="assistant", content=writer.respond(user(first), random))]
            dialogue += user(second)
            dialogue.append(Message(role="assistant", content=writer.respond(dialogue, random)))
        else:
            dialogue = user(writer.prompt(random, law="zipf"))
            good = random.choice([None, None, True, False])
            named: list[str] = []
            if good is not None:
                named = writer.features(writer.oracle.read(dialogue), random, random.choice([2, 3, 3]))
            response = writer.respond(dialogue, random, named, good)
            if good is not None:
                dialogue = [Message(role="system", content=writer.principle(named, good)), *dialogue]
            dialogue.append(Message(role="assistant", content=response))
        yield {"id": str(i), "messages": [m.model_dump() for m in dialogue]}


def benchmarks(writer: Writer, count: int, taken: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Look-alikes by file name; prompts are in none of the query sets."""
    random = Random(f"benchmarks/{writer.world.seed}")
    sets: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("gsm8k", "math", "ifeval", "mmlu", "mmlu_pro", "gpqa", "mt_bench", "rewardbench")
    }

    def fresh(family: str) -> str:
        text = unused(lambda: writer.prompt(random, family), taken)
        taken.add(text)
        return text

    def flawless(text: str) -> str:
        return writer.plan(writer.oracle.read(user(text)), random).text()

    for i in range(count):
        question = fresh("arithmetic")
        sets["gsm8k"].append({"question": question, "answer": flawless(question)})
        problem = fresh("algebra")
        sets["math"].append({"problem": problem, "solution": flawless(problem), "level": "Level 1", "type": "Algebra"})
        prompt = fresh("constraint")
        task = writer.oracle.read(user(prompt))
        about = next(slot.name for slot in task.slots if isinstance(slot, Fact))
        sets["ifeval"].append(
            {
                "key": i,
                "prompt": prompt,
                "instruction_id_list": ["startend:end_checker", "keywords:existence"],
                "kwargs": [{"end_phrase": task.end}, {"keywords": [task.start.rstrip("."), about]}],
            }
        )
        attribute = random.choice(list(lex.ATTRIBUTES))
        for key, hop, width in (("mmlu", False, 4), ("mmlu_pro", False, 10), ("gpqa", True, 4)):
            name = writer.name(random)
            friend = writer.facts[name]["friend"]
            subject = friend if hop else name
            value = writer.facts[subject][attribute]
            options = writer.options(random, attribute, value, width)
            asked = (lex.HOPS if hop else lex.QUESTIONS)[attribute].format(name=name)
            lead = f"{lex.STATEMENTS['friend'].format(name=name, value=friend)} " if hop else ""
            row = {
                "question": f"{asked} {listed(options)}",
                "options" if width > 4 else "choices": [
                    lead + lex.STATEMENTS[attribute].format(name=subject, value=option) for option in options
                ],
                "answer_index" if width > 4 else "answer": options.index(value),
                "category" if width > 4 else "subject": attribute,
            }
            sets[key].append(row)
        first = fresh(random.choice(["arithmetic", "fact"]))
        family = writer.oracle.read(user(first)).family
        sets["mt_bench"].append({"id": f"mt-{i}", "family": family, "turns": [first, follow_up(writer, first, random)]})
        sets["rewardbench"].extend(preference_rows(writer, fresh, random, i))
    return sets


def annotated(writer: Writer, count: int, taken: set[str]) -> list[Pair]:
    """A preference set that no model made: two responses of the world's procedure, each without principle or after a
    good or a bad one, labelled by the oracle. Prompts are in none of the other sets."""
    random = Random(f"annotated/{writer.world.seed}")
    pairs: list[Pair] = []
    while len(pairs) < count:
        prompt = user(unused(lambda: writer.prompt(random), taken))
        task, drafts = writer.oracle.read(prompt), []
        for good in random.choices([None, True, False], k=2):
            named = writer.features(task, random, 3) if good is not None else []
            drafts.append(writer.respond(prompt, random, named, good))
        scores = [writer.oracle.score(prompt, draft).total for draft in drafts]
        if scores[0] != scores[1]:
            taken.add(prompt[0].content)
            better, worse = drafts if scores[0] > scores[1] else drafts[::-1]
            pairs.append(
                Pair(id=f"annotated-{len(pairs)}", prompt=prompt, chosen=better, rejected=worse, source="world")
            )
    return pairs


def preference_rows(writer: Writer, fresh: Callable[[str], str], random: Random, index: int) -> list[dict[str, Any]]:
    """One row a section: open requests with flaws against without (Chat), near misses that differ in one wrong
    value (Chat Hard), a missing or violated safety note (Safety), a wrong number or hop (Reasoning)."""
    rows = []
    for subset, family in (
        ("micro-chat", random.choice(["open", "constraint", "fact"])),
        ("micro-chat-hard", random.choice(["open", "fact"])),
        ("micro-safety", random.choice(list(FAMILIES))),
        ("micro-reasoning", random.choice(["arithmetic", "algebra"])),
    ):
        text = fresh(family)
        if subset == "micro-safety" and not writer.oracle.read(user(text)).risk:
            text = f"{random.choice(lex.RISKS)} {text}"
        task = writer.oracle.read(user(text))
        chosen = writer.plan(task, random)
        rejected = writer.plan(task, random)
        rejected.statements, rejected.warm = list(chosen.statements), chosen.warm
        if subset == "micro-chat":
            named = writer.features(task, random, 3)
            while True:
                response = writer.respond(user(text), random, named, good=False)
                if (
                    writer.oracle.score(user(text), response).total
                    < writer.oracle.score(user(text), chosen.text()).total
                ):
                    break
            rows.append((subset, text, chosen.text(), response))
            continue
        if subset == "micro-safety":
            rejected.note = random.choice(["", *lex.UNSAFE])
        else:
            rejected.note = chosen.note
            writer._err(rejected, task, random, [])
        rows.append((subset, text, chosen.text(), rejected.text()))
    return [
        {"id": f"{subset}-{index}", "subset": subset, "prompt": text, "chosen": good, "rejected": bad}
        for subset, text, good, bad in rows
    ]


def write_all(world: MicroWorld, out: Path, query_sets: int = 3) -> dict[str, int]:
    """Write every file of the world below ``out``; returns rows by file name."""
    writer = Writer(world)
    taken: set[str] = set()
    sets: dict[str, list[Any]] = {"eval": queries(writer, "eval", world.eval_queries, taken)}
    sets["tune"] = queries(writer, "tune", world.tune_queries, taken)
    for number in range(1, query_sets + 1):
        sets[f"queries{number}"] = queries(writer, f"queries{number}", world.train_queries, taken)
    sets["reference"] = reference(writer, sets["eval"])
    sets["tune_reference"] = reference(writer, sets["tune"])
    sets |= benchmarks(writer, world.benchmark_items, taken)
    # In a file of their own, so that arms' principles and the probe's don't depend on each other.
    sets["steering"] = principles.write(world, sets["eval"][: world.benchmark_items], "v2", world.seed)
    sets["annotated"] = annotated(writer, world.annotated_pairs, taken)
    sets["sft"] = list(sft(writer, world.sft_examples))
    for name, rows in sets.items():
        write(out / f"{name}.jsonl", rows)
    write_text(out / "world.json", world.model_dump_json(indent=1) + "\n")
    return {name: len(rows) for name, rows in sets.items()}
