"""The micro-world's procedural writer of principles: it stands in a language model's place and says so."""

from random import Random

from sso.records import Principles, Query
from sso.worlds.micro.world import Writer
from sso.worlds.settings import MicroWorld


def write(world: MicroWorld, queries: list[Query], version: str, seed: int) -> list[Principles]:
    """One principle pair a query out of the world's seven features (v1's eight without Literariness).

    v2: three features that fit the query. v1: two of the named features, and Concision one time in five.
    """
    writer, rows = Writer(world), []
    for query in queries:
        random = Random(f"principles/{version}/{seed}/{query.id}")
        task = writer.oracle.read(query.prompt)
        if version == "v2":
            features = writer.features(task, random, 3)
        else:
            features = [f for f in writer.features(task, random, 7) if f != "concision"][:2]
            features += ["concision"] if random.random() < 0.2 else []
        rows.append(
            Principles(
                id=query.id,
                prompt=query.prompt,
                good=writer.principle(features, True),
                bad=writer.principle(features, False),
                features=features,
                writer="procedural",
            )
        )
    return rows
