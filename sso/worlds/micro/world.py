"""The micro-world's writer: facts, prompts and responses with flaws at a known rate.

A response is a plan (statements in order, an answer marker, a safety note, a warm sentence) with flaws applied
to it; each flaw belongs to one of the seven features and has a near and a gross form. Two noise laws (`a1`,
`base`) say how good and bad principles change the rates. Knows nothing of models; every draw comes from the
`random.Random` that is handed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from sso.records import Message
from sso.worlds.micro import lexicon as lex
from sso.worlds.micro.oracle import Fact, Marker, Oracle, Root, SetUp, Slot, Sum, Task
from sso.worlds.settings import Law, MicroWorld, Noise

# How often an answer without a principle shows each near flaw.
BASE_RATES = {
    "accuracy": 0.30,
    "helpfulness": 0.12,
    "comprehensiveness": 0.35,
    "concision": 0.30,
    "logicality": 0.15,
    "engagement": 0.45,
    "safety": 0.40,
}


LAWS = {"a1": Noise(good=0.6, bad=0.8, gross=0.15), "base": Noise(good=0.25, bad=0.45, gross=0.70)}

FAMILIES = {"arithmetic": 0.25, "algebra": 0.15, "fact": 0.15, "two_hop": 0.10, "constraint": 0.15, "open": 0.20}


@cache
def facts(world: MicroWorld) -> dict[str, dict[str, str]]:
    """name -> attribute -> value. Every value of an attribute is equally frequent; friends are a cycle."""
    random, names = Random(f"facts/{world.seed}"), lex.names(world.entities)
    table: dict[str, dict[str, str]] = {name: {} for name in names}
    for attribute, values in lex.ATTRIBUTES.items():
        column = [values[i % len(values)] for i in range(len(names))]
        random.shuffle(column)
        for name, value in zip(names, column, strict=True):
            table[name][attribute] = value
    circle = random.sample(names, len(names))
    for name, friend in zip(circle, circle[1:] + circle[:1], strict=True):
        table[name]["friend"] = friend
    return table


@dataclass
class Plan:
    """A response before it is text."""

    statements: list[str]
    marker: str = ""
    note: str = ""
    warm: str = ""
    start: str = ""
    end: str = ""
    extra: list[str] = field(default_factory=list)

    def text(self) -> str:
        return " ".join(
            p for p in (self.start, *self.statements, *self.extra, self.note, self.warm, self.marker, self.end) if p
        )


class Writer:
    """Writes prompts and responses of one world."""

    def __init__(self, world: MicroWorld):
        self.world, self.oracle, self.facts = world, Oracle(world), facts(world)
        self.law, self.names = world.noise or LAWS[world.name], list(self.facts)

    # Prompts

    def name(self, random: Random, law: Law | None = None) -> str:
        """An entity by a law; None: the law of the world's queries."""
        if (law or self.world.queries) == "uniform":
            return random.choice(self.names)
        # Inverse of the continuous Zipf(1) law on [1, n + 1).
        return self.names[int((len(self.names) + 1) ** random.random()) - 1]

    def options(self, random: Random, attribute: str, value: str, count: int) -> list[str]:
        others = random.sample([v for v in lex.ATTRIBUTES[attribute] if v != value], count - 1)
        return random.sample([value, *others], count)

    def prompt(self, random: Random, family: str | None = None, law: Law | None = None) -> str:
        """One user turn, with a risk in three of ten."""
        family = family or random.choices(list(FAMILIES), list(FAMILIES.values()))[0]
        name, attribute = self.name(random, law), random.choice(list(lex.ATTRIBUTES))
        if family == "arithmetic":
            a, b, c = random.randint(2, 9), random.randint(2, 5), random.randint(1, 3)
            item = random.choice(lex.ITEMS)
            text = (
                f"{name} has {a} {item}. {name} {random.choice(lex.GAINS)} {b} more and "
                f"{random.choice(lex.LOSSES)} {c}. How many {item}?"
            )
        elif family == "algebra":
            a, k, root, x = (
                random.randint(2, 9),
                random.randint(2, 4),
                random.randint(3, 9),
                random.choice(lex.UNKNOWNS),
            )
            less = random.randint(1, root - 1)
            shown = [
                f"{x} plus {a} is {root + a}",
                f"{x} minus {less} is {root - less}",
                f"{k} times {x} is {k * root}",
            ]
            text = f"Solve {random.choice(shown)}."
        elif family == "constraint":
            count, start, end = random.choice([1, 2]), random.choice(lex.STARTS), random.choice(lex.ENDS)
            text = f"Tell {count} facts about {name}. Start with {start} End with {end}"
        elif family == "open":
            text = random.choice(lex.OPENINGS).format(name=name)
        else:
            subject = self.facts[name]["friend"] if family == "two_hop" else name
            text = (lex.HOPS if family == "two_hop" else lex.QUESTIONS)[attribute].format(name=name)
            if random.random() < 0.5:
                text = f"{text} {listed(self.options(random, attribute, self.facts[subject][attribute], 4))}"
        return f"{random.choice(lex.RISKS)} {text}" if random.random() < 0.3 else text

    # Principles

    def features(self, task: Task, random: Random, count: int) -> list[str]:
        """Features that mean something for a task."""
        apply = ["accuracy", "helpfulness", "concision", "engagement"]
        if len(task.slots) > 1:
            apply += ["comprehensiveness", "logicality"]
        if task.risk:
            apply.append("safety")
        return random.sample(apply, min(count, len(apply)))

    @staticmethod
    def principle(features: list[str], good: bool) -> str:
        words = [lex.ADJECTIVES[f][0 if good else 1] for f in features]
        return f"Be {', '.join(words[:-1])} and {words[-1]}." if len(words) > 1 else f"Be {words[0]}."

    # Responses

    def plan(self, task: Task, random: Random) -> Plan:
        """A flawless response."""
        plan = Plan(self._statements(task, random), warm=random.choice(lex.WARM))
        answer = task.slots[-1]
        if isinstance(answer, Marker):
            plan.marker = self._marker(task, answer.value)
        if task.risk:
            plan.note = random.choice(lex.NOTES)
        plan.start, plan.end = task.start, task.end
        return plan

    def _statements(self, task: Task, random: Random) -> list[str]:
        slots = [slot for slot in task.slots if not isinstance(slot, Marker)]
        if task.count:
            keep = sorted(random.sample(range(len(slots)), task.count))
            slots = [slots[i] for i in keep]
        return [self._statement(slot) for slot in slots]

    def _statement(self, slot: Slot, value: str | int | None = None) -> str:
        """The statement of a slot, with ``value`` in the truth's place where it is given."""
        if isinstance(slot, Fact):
            return lex.STATEMENTS[slot.attribute].format(name=slot.name, value=value or self._truth(slot))
        if isinstance(slot, Sum):
            return f"{slot.left} {slot.operator} {slot.right} is {value or self._truth(slot)}."
        if isinstance(slot, SetUp):
            return f"{slot.unknown} is {slot.left} {slot.operator} {slot.right}."
        if isinstance(slot, Root):
            return f"{slot.unknown} is {value or slot.value}."
        raise TypeError("a marker is no statement")

    def _truth(self, slot: Fact | Sum | Root) -> str | int:
        """What the statement of a slot ends with."""
        if isinstance(slot, Fact):
            return self.facts[slot.name][slot.attribute]
        if isinstance(slot, Root):
            assert slot.value is not None  # the world's own equations have whole roots
            return slot.value
        return slot.left + slot.right if slot.operator == "plus" else slot.left - slot.right

    @staticmethod
    def _marker(task: Task, value: int | None) -> str:
        return f"\\boxed{{{value}}}" if task.family == "algebra" else f"#### {value}"

    def flaws(self, random: Random, named: Sequence[str], good: bool | None) -> dict[str, str]:
        """feature -> "near" or "gross": what goes wrong in one response."""
        found = {}
        for feature, rate in BASE_RATES.items():
            if good is False and feature in named:
                if random.random() < self.law.bad:
                    found[feature] = "gross" if random.random() < self.law.gross else "near"
            elif random.random() < rate * (self.law.good if good and feature in named else 1.0):
                found[feature] = "near"
        return found

    def respond(
        self, prompt: list[Message], random: Random, named: Sequence[str] = (), good: bool | None = None
    ) -> str:
        """A response; ``good`` True or False follows a good or bad principle on ``named``, None follows none."""
        task = self.oracle.read(prompt)
        options = _options_of(prompt[-1].content)
        plan = self.plan(task, random)
        flaws = self.flaws(random, named, good)
        if flaws.get("accuracy") == "near":
            self._err(plan, task, random, options)
        if "comprehensiveness" in flaws:
            if flaws["comprehensiveness"] == "gross":
                plan.statements = list(lex.EMPTY)
            elif task.start and random.random() < 0.5:
                setattr(plan, random.choice(["start", "end"]), "")
            elif len(plan.statements) > 1:
                # What is left out is never the answer itself.
                del plan.statements[random.randrange(len(plan.statements) - (task.family == "two_hop"))]
        if "helpfulness" in flaws:
            if flaws["helpfulness"] == "gross":
                return random.choice(lex.REFUSALS)
            plan.marker = ""
            plan.statements[-1:] = lex.VAGUE
        if "logicality" in flaws:
            if flaws["logicality"] == "gross":
                words = " ".join(plan.statements).replace(".", "").split()
                plan.statements = [" ".join(random.sample(words, len(words))) + "."]
            else:
                plan.statements.reverse()
        if flaws.get("accuracy") == "gross":
            plan.statements[random.randrange(len(plan.statements))] = random.choice(lex.NONSENSE)
        if "concision" in flaws:
            plan.extra = random.sample(lex.FILLERS, 3 if flaws["concision"] == "gross" else 1)
        if "engagement" in flaws:
            plan.warm = random.choice(lex.INSULTS) if flaws["engagement"] == "gross" else ""
        if "safety" in flaws:
            plan.note = random.choice(lex.UNSAFE) if flaws["safety"] == "gross" else ""
        return plan.text()

    def _err(self, plan: Plan, task: Task, random: Random, options: list[str]) -> None:
        """State one wrong value: another option, another attribute value, a number off by a little."""
        slots = [slot for slot in task.slots if isinstance(slot, Fact | Sum | Root)]
        if task.count:
            slots = [slot for slot in slots if self._statement(slot) in plan.statements]
        slot = random.choice(slots)
        at, truth = plan.statements.index(self._statement(slot)), self._truth(slot)
        if isinstance(slot, Fact):
            pool = options if truth in options else lex.ATTRIBUTES.get(slot.attribute, self.names)
            wrong: str | int = random.choice([value for value in pool if value != truth])
        else:
            number = int(truth)
            wrong = random.choice([near for near in range(max(1, number - 3), number + 4) if near != number])
            if at == len(plan.statements) - 1:
                plan.marker = self._marker(task, int(wrong))
        plan.statements[at] = self._statement(slot, wrong)


def listed(options: list[str]) -> str:
    """Options at the end of a question: "a, b, c or d?"."""
    return f"{', '.join(options[:-1])} or {options[-1]}?"


def _options_of(text: str) -> list[str]:
    """The options listed at the end of a question; empty where there are none."""
    tail = text.rsplit("? ", 1)[-1] if text.count("?") > 1 else ""
    return tail.rstrip("?").replace(" or ", ", ").split(", ") if tail else []
