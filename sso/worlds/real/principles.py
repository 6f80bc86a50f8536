"""The real world's procedural writer of principles: it stands in a language model's place and says so."""

from random import Random

from sso.records import Principles, Query
from sso.worlds.real.oracle import Constraint, ConstraintOracle


def principle(constraints: list[Constraint], good: bool, random: Random) -> str:
    """A text for or against every constraint of a prompt."""
    return " ".join(random.choice(one.option.good if good else one.option.bad) for one in constraints)


def write(queries: list[Query], seed: int) -> list[Principles]:
    """One principle pair a query, about its constraints; v1 and v2 alike."""
    oracle, rows = ConstraintOracle(), []
    for query in queries:
        random, found = Random(f"principles/{seed}/{query.id}"), oracle.read(query.prompt)
        good, bad = (principle(found, side, random) for side in (True, False))
        named = [one.kind.id for one in found]
        rows.append(
            Principles(id=query.id, prompt=query.prompt, good=good, bad=bad, features=named, writer="procedural")
        )
    return rows
