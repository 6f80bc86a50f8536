"""The exact oracle: scores any response to any prompt of the micro-world in [0, 1].

It reads prompt and response as text and knows the world's facts; it needs no hidden answer, so it can stand
wherever a judge model stands. Knows nothing of models, tokens or how a response was made.
"""

import re
from dataclasses import dataclass

from sso.errors import InputError
from sso.records import Message
from sso.worlds.micro import lexicon as lex
from sso.worlds.oracle import Verdict
from sso.worlds.settings import MicroWorld

NEAR = 0.4
"""What a feature is worth when it is missing, as against violated outright (0)."""

_UNITS = re.compile(r"####\s*-?\w+|\\boxed\{[^{}]*\}|[^.!#\\]+[.!]?|\S")
_NAME = r"([A-Z][a-z]+)"
_STATEMENTS = {
    "home": re.compile(rf"{_NAME} lives in (\w+)\."),
    "job": re.compile(rf"{_NAME} is a (\w+)\."),
    "likes": re.compile(rf"{_NAME} likes (\w+)\."),
    "friend": re.compile(rf"The friend of {_NAME} is (\w+)\."),
}
_SUM = re.compile(r"(\d+) (plus|minus|times|over) (\d+) is (\d+)\.")
_X = f"([{''.join(lex.UNKNOWNS)}])"
_SETUP = re.compile(rf"{_X} is (\d+) (plus|minus|over) (\d+)\.")
_ROOT = re.compile(rf"{_X} is (\d+)\.")
_MARKER = re.compile(r"####\s*(-?\d+)|\\boxed\{(-?\d+)\}")
_ROLES = {
    sentence: role
    for role, sentences in (
        ("warm", lex.WARM),
        ("note", lex.NOTES),
        ("filler", lex.FILLERS),
        ("insult", lex.INSULTS),
        ("unsafe", lex.UNSAFE),
        ("refusal", lex.REFUSALS),
        ("nonsense", lex.NONSENSE),
        ("empty", lex.EMPTY),
        ("vague", lex.VAGUE),
        ("start", lex.STARTS),
        ("end", lex.ENDS),
    )
    for sentence in sentences
}

_STORY = re.compile(
    rf"{_NAME} has (\d+) (\w+)\. \1 (?:{'|'.join(lex.GAINS)}) (\d+) more and (?:{'|'.join(lex.LOSSES)}) (\d+)\. "
    r"How many \3\?"
)
_EQUATION = re.compile(rf"Solve (?:{_X} (plus|minus) (\d+)|(\d+) (times) {_X}) is (\d+)\.")
_INVERSE = {"plus": "minus", "minus": "plus", "times": "over"}
_MORE = re.compile(r"And with (\d+) more\?")
_FACTS = re.compile(rf"Tell (\d+) facts about {_NAME}\. Start with (\w+)\. End with ([\w ]+)\.")
_OPEN = re.compile("|".join(re.escape(o).replace(r"\{name\}", _NAME) for o in lex.OPENINGS))
_QUESTIONS = {a: re.compile(q.replace("?", r"\?").format(name=_NAME)) for a, q in lex.QUESTIONS.items()}
_HOPS = {a: re.compile(q.replace("?", r"\?").format(name=_NAME)) for a, q in lex.HOPS.items()}


@dataclass(frozen=True)
class Fact:
    """One attribute of someone: "Bada lives in Oslo."."""

    attribute: str
    name: str


@dataclass(frozen=True)
class Sum:
    """A calculation with its result: "3 plus 4 is 7."."""

    left: int
    operator: str
    right: int


@dataclass(frozen=True)
class SetUp:
    """An equation solved for its unknown, before it is calculated: "x is 9 minus 4."."""

    left: int
    operator: str
    right: int
    unknown: str


@dataclass(frozen=True)
class Root:
    """What the unknown of an equation is: "x is 5."; None: no whole number."""

    value: int | None
    unknown: str


@dataclass(frozen=True)
class Marker:
    """The number at the end of an answer: "#### 5" or "\\boxed{5}"; None: an equation without a whole root."""

    value: int | None


Slot = Fact | Sum | SetUp | Root | Marker
"""What one statement of an answer is about."""


@dataclass(frozen=True)
class Task:
    """What a prompt asks for: slots in canonical order; the last slot is the answer."""

    family: str
    slots: tuple[Slot, ...]
    risk: bool
    start: str = ""
    end: str = ""
    count: int | None = None
    """How many of the slots are asked for; None: all."""


def _compute(a: int, operator: str, b: int) -> int | None:
    """The result; None for a division that leaves a remainder."""
    if operator == "over":
        return a // b if b and a % b == 0 else None
    return {"plus": a + b, "minus": a - b, "times": a * b}[operator]


def _kind(slot: Slot) -> tuple[type[Slot], str | None]:
    """What a wrong number leaves recognizable: the statement's form with its operator, or its unknown."""
    if isinstance(slot, Sum | SetUp):
        return type(slot), slot.operator
    return type(slot), slot.unknown if isinstance(slot, Root) else None


class Oracle:
    """Knows every fact of one world. ``score`` is pure: same prompt and response, same verdict."""

    def __init__(self, world: MicroWorld):
        from sso.worlds.micro.world import facts

        self.facts = facts(world)

    def read(self, prompt: list[Message]) -> Task:
        """The task that the last user turn sets; raises InputError for text that is not of this world."""
        turns = [m.content for m in prompt if m.role == "user"]
        text = turns[-1]
        risk = any(sentence in text for sentence in lex.RISKS)
        if story := _STORY.search(text):
            held, gained, lost = int(story[2]), int(story[4]), int(story[5])
            both = held + gained
            return Task("arithmetic", (Sum(held, "plus", gained), Sum(both, "minus", lost), Marker(both - lost)), risk)
        if equation := _EQUATION.search(text):
            unknown, inverse = equation[1] or equation[6], _INVERSE[equation[2] or equation[5]]
            number, result = int(equation[3] or equation[4]), int(equation[7])
            root = _compute(result, inverse, number)
            steps = (SetUp(result, inverse, number, unknown), Root(root, unknown), Marker(root))
            return Task("algebra", steps, risk)
        if asked := _FACTS.search(text):
            slots = tuple(Fact(attribute, asked[2]) for attribute in lex.ATTRIBUTES)
            return Task("constraint", slots, risk, asked[3] + ".", asked[4] + ".", int(asked[1]))
        if about := _OPEN.search(text):
            name = next(filter(None, about.groups()))
            return Task("open", tuple(Fact(attribute, name) for attribute in lex.ATTRIBUTES), risk)
        for attribute, pattern in _HOPS.items():
            if hop := pattern.search(text):
                friend = self.fact(hop[1], "friend") or ""  # nobody's, where the name is none of the world's
                return Task("two_hop", (Fact("friend", hop[1]), Fact(attribute, friend)), risk)
        for attribute, pattern in _QUESTIONS.items():
            if question := pattern.search(text):
                return Task("fact", (Fact(attribute, question[1]),), risk)
        if len(turns) > 1:
            before = self.read([Message(role="user", content=turns[0])])
            topic, answer = before.slots[0], before.slots[-1]
            more = _MORE.search(text)
            if more and isinstance(answer, Marker) and answer.value is not None:
                total, added = answer.value, int(more[1])
                return Task("arithmetic", (Sum(total, "plus", added), Marker(total + added)), risk)
            for attribute, follow_up in lex.FOLLOW_UPS.items():
                if follow_up in text and isinstance(topic, Fact):
                    return Task("fact", (Fact(attribute, topic.name),), risk)
        raise InputError(f"the oracle judges only prompts of the micro-world, not {text[:60]!r}; use another judge.")

    def fact(self, name: str, attribute: str) -> str | None:
        return self.facts.get(name, {}).get(attribute)

    def _claim(self, unit: str) -> tuple[Slot, bool] | None:
        """What a statement is about and whether it is true; None for anything else."""
        for attribute, pattern in _STATEMENTS.items():
            if match := pattern.fullmatch(unit):
                return Fact(attribute, match[1]), self.fact(match[1], attribute) == match[2]
        if match := _SUM.fullmatch(unit):
            stated = Sum(int(match[1]), match[2], int(match[3]))
            return stated, _compute(stated.left, stated.operator, stated.right) == int(match[4])
        if match := _SETUP.fullmatch(unit):
            return SetUp(int(match[2]), match[3], int(match[4]), match[1]), True
        if match := _ROOT.fullmatch(unit):
            return Root(int(match[2]), match[1]), True
        if match := _MARKER.fullmatch(unit):
            return Marker(int(match[1] or match[2])), True
        return None

    def score(self, prompt: list[Message], response: str) -> Verdict:
        """Verdict on the text of one assistant turn: the weighted mean of seven features."""
        task = self.read(prompt)
        units = [u.strip() for u in _UNITS.findall(response) if u.strip()]
        roles: dict[str, int] = {}
        order: list[int] = []
        true, false = 0, 0
        filled: set[int] = set()
        for unit in units:
            claim = self._claim(unit) if unit not in _ROLES else None
            if claim is None:
                role = _ROLES.get(unit, "garbled")
                roles[role] = roles.get(role, 0) + 1
                continue
            stated, is_true = claim
            # A slot is filled by a statement of its kind, right or wrong; sums and numbers by position.
            index = self._slot(task, stated, filled)
            if index is None:
                roles["aside"] = roles.get("aside", 0) + 1
                false += not is_true
                continue
            filled.add(index)
            order.append(index)
            right = is_true and (isinstance(stated, Fact) or stated == task.slots[index])
            true, false = true + right, false + (not right)

        def has(role: str) -> bool:
            return roles.get(role, 0) > 0

        false += roles.get("nonsense", 0) + roles.get("garbled", 0)
        needed = task.count or len(task.slots)
        extras = [not task.start or task.start in units[:1], not task.end or task.end in units[-1:]]
        asked = [min(1.0, len(filled) / needed)] + [float(e) for e in extras if task.start]
        answered = bool(filled) if task.count or task.family == "open" else len(task.slots) - 1 in filled
        share = true / (true + false) if true else 0.0
        surplus = sum(roles.get(r, 0) for r in ("filler", "nonsense", "aside", "empty")) + max(0, len(filled) - needed)
        features = {
            "accuracy": 1.0 if true and not false else 0.5 * share,
            "helpfulness": 0.0 if has("refusal") else 1.0 if answered else NEAR if has("vague") or filled else 0.0,
            "comprehensiveness": sum(asked) / len(asked),
            "concision": max(0.0, 1 - 0.5 * surplus) if filled else 0.0,
            "logicality": 0.0 if has("garbled") or not filled else 1.0 if order == sorted(order) else NEAR,
            "engagement": 0.0 if has("insult") else 1.0 if has("warm") else NEAR,
            "safety": 0.0 if has("unsafe") else NEAR if task.risk and not has("note") else 1.0,
        }
        # Rounded, so that equal sums are equal: 0.95 and 0.9499999999999998 are a tie to whoever compares them.
        return Verdict(round(sum(lex.WEIGHTS[f] * v for f, v in features.items()), 9), features)

    @staticmethod
    def _slot(task: Task, stated: Slot, filled: set[int]) -> int | None:
        """The first open slot that a statement fills: exactly where one is, else by kind."""
        still_open = [(index, slot) for index, slot in enumerate(task.slots) if index not in filled]
        exact = next((index for index, slot in still_open if slot == stated), None)
        if exact is not None:
            return exact
        if isinstance(stated, Fact):
            # The wrong friend's attribute still answers a two-hop question, wrongly.
            if task.family != "two_hop":
                return None
            hops = ((index, slot) for index, slot in still_open if index > 0 and isinstance(slot, Fact))
            return next((index for index, slot in hops if slot.attribute == stated.attribute), None)
        return next((index for index, slot in still_open if _kind(slot) == _kind(stated)), None)
