"""`sso settings`: what the keys of a settings class are, by its types and docstrings."""

import argparse
import ast
import inspect
import json
import sys
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from rewardbench.settings import Mixture
from sso.commands.data import DataSource
from sso.config import Experiment
from sso.errors import InputError
from sso.settings import hint, models

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least"}


def known() -> dict[str, type[BaseModel]]:
    """All settings by name: an experiment's, those that they hold, and those of a command alone."""
    found: dict[str, type[BaseModel]] = {kind.__name__: kind for kind in (Experiment, Mixture, DataSource)}
    for kind in (waiting := list(found.values())):  # which grows
        new = [inner for field in kind.model_fields.values() for inner in models(field.annotation)]
        waiting += [inner for inner in new if inner.__name__ not in found]
        found |= {inner.__name__: inner for inner in new}
    return dict(sorted(found.items()))


def docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """What stands below each key in the source. pydantic's own reading of it would cost every command a tenth of a
    second, for it reads when a class is made."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[: kind.__mro__.index(BaseModel)]):
        (body,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(body, ast.ClassDef)
        for key, below in pairwise(body.body):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(text, str):
                found[key.target.id] = " ".join(text.split())
    return found


def type_of(kind: Any) -> str:
    """A type as people write it: `int or null`, `a list of Task`, choices by name."""
    inner, origin = get_args(kind), get_origin(kind)
    if origin is Annotated:
        return type_of(inner[0])
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is list:
        return f"list of {type_of(inner[0])}"
    if origin is dict:
        return f"{type_of(inner[0])} -> {type_of(inner[1])}"
    if inner:
        return " or ".join(map(type_of, inner))
    return {NoneType: "null", Any: "anything"}.get(kind) or kind.__name__


def default_of(field: FieldInfo) -> str:
    """A default as JSON, which `--set` takes; a class's own defaults as {}."""
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    return "{}" if isinstance(default, BaseModel) else json.dumps(to_jsonable_python(default), ensure_ascii=False)


def rows(kind: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """Key, type with bounds, default and docstring of each key."""
    told = docstrings(kind)
    made = []
    for key, field in kind.model_fields.items():
        signs = ((m, name, sign) for m in field.metadata for name, sign in BOUNDS.items())
        bounds = [f"{sign} {getattr(m, name)}" for m, name, sign in signs if hasattr(m, name)]
        made.append((key, " ".join([type_of(field.annotation), *bounds]), default_of(field), told.get(key, "")))
    return made


def show(args: argparse.Namespace) -> None:
    """The keys of one settings class, or all classes."""
    kinds = known()
    if args.name is None:
        head: tuple[str, ...] = ("settings", "what")
        lines: list[tuple[str, ...]] = [(name, (kind.__doc__ or "").splitlines()[0]) for name, kind in kinds.items()]
    elif args.name in kinds:
        head, lines = ("key", "type", "default", "what"), [*rows(kinds[args.name])]
    else:
        raise InputError(f"sso settings: unknown settings {args.name!r}; {hint(args.name, kinds)}")
    if not sys.stdout.isatty():
        for line in lines:
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)
