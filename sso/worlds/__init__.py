"""Worlds with an exact oracle, by their settings: the micro-world, and real prompts with checkable constraints."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from sso.errors import InputError
from sso.records import Message, Principles, Query
from sso.worlds.oracle import Oracle
from sso.worlds.settings import MicroWorld, RealWorld


def oracle(world: MicroWorld | RealWorld) -> Oracle:
    """Who judges exactly in a world."""
    if isinstance(world, RealWorld):
        from sso.worlds.real.oracle import ConstraintOracle

        return ConstraintOracle()
    from sso.worlds.micro.oracle import Oracle as MicroOracle

    return MicroOracle(world)


def write_all(world: MicroWorld | RealWorld, out: Path, query_sets: int) -> dict[str, int]:
    """Write every file of a world below ``out``; returns rows by file name."""
    if isinstance(world, RealWorld):
        from sso.worlds.real.data import write_all as write_real

        return write_real(world, out, query_sets)
    from sso.worlds.micro.data import write_all as write_micro

    return write_micro(world, out, query_sets)


def principles(world: MicroWorld | RealWorld, queries: list[Query], version: str, seed: int) -> list[Principles]:
    """A good and a bad principle a query, by the world's own procedure."""
    if isinstance(world, RealWorld):
        from sso.worlds.real.principles import write as write_real

        return write_real(queries, seed)
    from sso.worlds.micro.principles import write as write_micro

    return write_micro(world, queries, version, seed)


def faultless(world: MicroWorld | RealWorld) -> Callable[[list[Message], Random], str]:
    """What gives a prompt an answer that the oracle finds no fault with; InputError in a world that has no such."""
    if isinstance(world, RealWorld):
        raise InputError("flawless pairs: only the micro-world makes a faultless answer of a prompt alone.")
    from sso.worlds.micro.world import Writer

    writer = Writer(world)
    return lambda prompt, random: writer.plan(writer.oracle.read(prompt), random).text()
