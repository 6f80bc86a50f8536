"""An experiment: one YAML file that says where the data comes from, which backbones, and the grid of arms as data.

``load`` resolves ``extends:``, merges overrides and returns a checked `Experiment`; the workflow's JSON schema is made
from it (``sso schema``). Every room's settings stand in its settings.py. Knows nothing of paths: those are
workflow/experiment.py's.
"""

import csv
import json
import re
from functools import cache
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from eval.settings import Evaluation
from rewardbench.settings import Reward
from sso.errors import InputError
from sso.objective import Objectives, load_objectives
from sso.sampling.settings import Sampling, Writer
from sso.settings import (
    COMMIT,
    NAME,
    ROOT,
    Backbone,
    Data,
    Settings,
    config_file,
    hint,
    lay,
    merge,
    nearest,
    read_yaml,
    sentence,
)  # fmt: skip
from sso.train.settings import Sft, Training
from sso.worlds.settings import MicroWorld, RealWorld, World

OFFICIAL_DIFFICULTY = "hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv"
"""What `evaluation.difficulty: hub` is short for."""
FOR_ALL = ("difficulty", "files", "rewardbench", "judge", "judges")
"""What of `evaluation` no arm and no backbone has for itself: their figures would not be comparable."""


class Arm(Settings):
    """One row of the tables: which pairs, from which generator, trained into a policy how often.

    v2: `generator` is trained on the SFT model's triples, then samples the pairs; None means that the
    SFT model samples them itself (PBAA). v1: `iterations` > 1 or an objective with contrasts beyond x:
    the policy is trained on its own triples.
    """

    label: str
    version: Literal["v1", "v2"] = "v2"
    method: str | None = None
    """The paper's name of this arm in results/paper/results.csv; None: the paper has no such arm."""
    data: Literal["none", "triples", "good_bad", "good_original", "annotated", "relabelled", "flawless"] = "good_bad"
    """What the policy is trained on: nothing (the SFT model), whole triples (v1), or pairs made of them. Of the last
    two, which need a world's oracle, `relabelled` is y+ and y- in the oracle's order, `flawless` a faultless
    answer over yo."""
    generator: Training | None = None
    policy: Training | None = None
    iterations: int = Field(1, ge=1)
    offline: bool = False
    """Triples of all queries are drawn from the starting model and trained on once (v1, table 3)."""
    writer: str | None = None
    """Who writes this arm's principles: a key of `writers`; None: `principles`."""
    backbones: list[str] | None = None
    """Backbones that the arm runs on; None: all."""
    evaluation: dict[str, Any] = {}
    """Laid over the backbone's and the experiment's `evaluation`."""

    @property
    def chained(self) -> bool:
        """Whether the policy trains on whole triples that it draws itself, once an iteration (v1)."""
        return self.policy is not None and (self.data == "triples" or self.iterations > 1 or self.offline)

    @model_validator(mode="after")
    def _coherent(self) -> "Arm":
        if (self.data == "none") != (self.policy is None):
            raise ValueError("`data: none` and a missing `policy` go together")
        if self.generator is not None and (self.data != "good_bad" or self.iterations > 1):
            raise ValueError("a `generator` needs `data: good_bad` and one iteration")
        if self.iterations > 1 and self.data not in ("triples", "good_bad", "annotated"):
            raise ValueError("iterations need `data: triples`, `good_bad` or `annotated`")
        if self.offline and (self.data != "triples" or self.iterations > 1):
            raise ValueError("`offline` needs `data: triples` and one iteration")
        return self


class Hardware(Settings):
    """The machine that `sso plan` reckons with; the workflow asks for GPUs only where it is given."""

    name: str = "H100-80GB"
    gpus: int = Field(8, ge=1)
    """GPUs of one machine."""
    memory_gb: float = Field(80, gt=0)
    """Memory of one GPU, in GB."""
    tflops: float = Field(989, gt=0)
    """Peak of one GPU in dense bfloat16, in TFLOP/s."""
    bandwidth_gbs: float = Field(3350, gt=0)
    """Bandwidth of one GPU's memory, in GB/s."""
    training_mfu: float = Field(0.35, gt=0, le=1)
    """Share of the peak that training reaches."""
    decoding_mbu: float = Field(0.5, gt=0, le=1)
    """Share of the memory bandwidth that decoding reaches."""
    prompt_tokens: int = Field(200, ge=1)
    """Means of the queries, the guideline's system message and the responses, for tokens and hours."""
    principle_tokens: int = Field(100, ge=0)
    response_tokens: int = Field(350, ge=1)
    sequences: int = Field(256, ge=1)
    """Requests that vLLM decodes at once."""
    host_memory_gb: float = Field(1000, gt=0)
    disk_gb: float = Field(8000, gt=0)
    price_per_gpu_hour: float = Field(0, ge=0)


class Experiment(Settings):
    """One experiment: everything under results/<experiment>/."""

    experiment: str = Field(pattern=NAME)
    title: str = ""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    world: World | None = None
    data: Data = Data()
    backbones: dict[str, Backbone] = Field(min_length=1)
    sft: Sft | None = None
    principles: Writer = Writer()
    writers: dict[str, Writer] = {}
    """Other writers, which arms name."""
    sampling: Sampling = Sampling()
    objectives: Objectives = Field({}, exclude_if=not_)
    """Own objectives, which trainings name like those of config/objectives.yaml."""
    trainings: dict[str, Training] = {}
    """Named settings that arms start from by `use:`."""
    arms: dict[str, Arm] = Field(min_length=1)
    rewards: dict[str, Reward] = {}
    evaluation: Evaluation = Evaluation()
    hardware: Hardware | None = None
    assumed: dict[str, str] = {}
    """What the paper leaves open: key of this config -> why it has its value. The report lists them."""
    local: dict[str, str] = {}
    """Name of a model or data set (or hf:// file) -> where it lies here; each is replaced wherever it stands."""
    revisions: dict[str, Annotated[str, Field(pattern=COMMIT)]] = {}
    """OWNER/NAME of the hub -> the commit that is taken, wherever the name stands; `sso pin` writes them."""
    tracking_uri: str | None = None
    """MLflow; None: SQLite at results/<experiment>/mlflow.db, or MLFLOW_TRACKING_URI where that is set."""

    @model_validator(mode="before")
    @classmethod
    def _named_settings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if isinstance(asked := values.get("evaluation"), dict) and asked.get("difficulty") == "hub":
            values = {**values, "evaluation": {**asked, "difficulty": OFFICIAL_DIFFICULTY}}
        data, asked = values.get("data"), values.get("evaluation") or {}
        if isinstance(data, dict) and "held_out" in data and isinstance(asked, dict) and "judged" not in asked:
            judge = asked.get("judge")
            given = data["held_out"] and isinstance(judge, dict) and judge.get("kind", "oracle") != "oracle"
            values = {**values, "evaluation": {**asked, "judged": ["against_start"] if given else []}}
        if isinstance(local := values.get("local"), dict):
            values = {**_replaced({k: v for k, v in values.items() if k != "local"}, local), "local": local}
        if isinstance(revisions := values.get("revisions"), dict):
            keep = {key: values[key] for key in ("revisions", "local", "assumed") if key in values}
            values = {**_pinned(values, revisions), **keep}
        named, arms, objectives = values.get("trainings") or {}, values.get("arms"), values.get("objectives")
        if isinstance(named, dict) and named:
            made = {name: _with_contrasts(own, objectives, f"trainings.{name}") for name, own in named.items()}
            values = {**values, "trainings": made}
        for name, arm in arms.items() if isinstance(arms, dict) and isinstance(named, dict) else ():
            for stage in ("generator", "policy"):
                own = arm.get(stage) if isinstance(arm, dict) else None
                if not isinstance(own, dict):
                    continue
                if own.get("use") is not None:
                    if not isinstance(own["use"], str) or not isinstance(named.get(own["use"]), dict):
                        near = hint(str(own["use"]), named)
                        raise ValueError(
                            f"arms.{name}.{stage}.use: no such training {own['use']!r} in `trainings`; {near}"
                        )
                    own = {**named[own["use"]], **own}
                arm[stage] = _with_contrasts(own, objectives, f"arms.{name}.{stage}")
        return values

    @model_validator(mode="after")
    def _references(self) -> "Experiment":
        if twice := [seed for at, seed in enumerate(self.seeds) if seed in self.seeds[:at]]:
            raise ValueError(f"seeds: {twice[0]} stands twice, which would count one run as two; leave one out")
        for kind, known in (("arms", self.arms), ("rewards", self.rewards)):
            for name, row in known.items():
                printed = _paper_methods()[row.version]
                if row.method is not None and row.method not in printed:
                    near = nearest(row.method, printed) or f"known: {', '.join(printed)}; null where it has none."
                    raise ValueError(f"{kind}.{name}.method: the paper's {row.version} has no {row.method!r}; {near}")
        for name, reward in self.rewards.items():
            if not reward.parts:
                raise ValueError(f"rewards.{name}: give `arm` or `sources`: the pairs that it is trained on")
            for source in reward.parts:
                if source.arm is not None and source.arm not in self.arms:
                    raise ValueError(f"rewards.{name}.arm: unknown arm {source.arm!r}; {hint(source.arm, self.arms)}")
                if source.world and self.world is None:
                    raise ValueError(f"rewards.{name}: `world: true` is a world's annotated set; give a `path`")
            versions = {self.arms[source.arm].version for source in reward.parts if source.arm is not None}
            if versions and reward.version not in versions:
                (own,) = versions
                raise ValueError(f"rewards.{name}.version: its arms are of {own}; give `version: {own}`")
            for key in reward.backbones or []:
                if key not in self.backbones:
                    raise ValueError(f"rewards.{name}.backbones: unknown backbone {key!r}; {hint(key, self.backbones)}")
        for name, arm in self.arms.items():
            for key in arm.backbones or []:
                if key not in self.backbones:
                    raise ValueError(f"arms.{name}.backbones: unknown backbone {key!r}; {hint(key, self.backbones)}")
            if arm.writer is not None and arm.writer not in self.writers:
                near = hint(arm.writer, self.writers)
                raise ValueError(f"arms.{name}.writer: no such writer {arm.writer!r} in `writers`; {near}")
            if arm.data == "annotated" and self.world is None and self.data.preferences is None:
                raise ValueError(f"arms.{name}.data: annotated pairs come from `data.preferences`; give it")
            if arm.data in ("relabelled", "flawless") and self.world is None:
                raise ValueError(f"arms.{name}.data: {arm.data} needs a world's oracle; give `world`")
            if arm.offline and self.world is not None:
                raise ValueError(f"arms.{name}.offline: in a world no job draws for all queries; leave it out")
            if arm.data == "flawless" and not isinstance(self.world, MicroWorld):
                raise ValueError(f"arms.{name}.data: only the micro-world makes faultless answers; leave the arm out")
            if self.data.generator_queries and self._needs_all_triples(arm):
                raise ValueError(f"arms.{name}.data: {arm.data} needs triples of all queries, see generator_queries")
            for key in self.backbones:
                self._check_evaluation(key, name)
                evaluation = self.evaluation_of(key, name)
                for one in FOR_ALL:
                    if getattr(evaluation, one) != getattr(self.evaluation, one):
                        raise ValueError(f"evaluation.{one}: one for all, so arm {name!r} and {key!r} can't set it")
        for key in self.backbones:
            self._check_start(key, [n for n, arm in self.arms.items() if arm.backbones is None or key in arm.backbones])
        kinds = {writer.kind == "policy" for writer in self.all_writers}
        if len(kinds) > 1:
            raise ValueError("writers: either all principles are written by the policy itself or none")
        known = self.model_dump()
        for key in self.assumed:
            if not _has(known, key):
                raise ValueError(f"assumed.{key}: this config has no such key")
        if (self.world is None) == (self.data.queries is None):
            raise ValueError("give either `world` (one with an oracle) or `data.queries` (a JSON Lines file)")
        none = Data()
        for key in Data.model_fields if self.world else ():
            if key != "generator_queries" and getattr(self.data, key) != getattr(none, key):
                raise ValueError(f"data.{key}: a world makes its own prompts and pairs; see the sizes in `world`")
        for name, backbone in self.backbones.items():
            if backbone.sft and (self.sft is None or (self.sft.data is None and self.world is None)):
                raise ValueError(f"backbones.{name}.sft needs `sft.data`, the dialogues to train on")
        scratch = [name for name, backbone in self.backbones.items() if backbone.architecture]
        if scratch and (not isinstance(self.world, MicroWorld) or self.sft is None):
            raise ValueError(f"backbone {scratch[0]!r} is trained from scratch, which needs a micro-world and `sft`")
        if self.sampling.engine == "endpoint":
            raise ValueError("sampling.engine: an endpoint serves one model, but arms sample from what they trained")
        if self.world is None and self.principles.kind == "procedural":
            raise ValueError("principles.kind: the procedural writer knows only a world with an oracle")
        if isinstance(self.world, RealWorld) and not self.world.sources:
            raise ValueError("world.sources: give prompts with answers, a data set of the hub or a JSON Lines file")
        if self.world is not None and self.evaluation.difficulty is not None:
            raise ValueError("evaluation.difficulty: AlpacaEval's; a world's prompts have none, leave it out")
        if self.world is None and self.evaluation.judge.kind == "oracle" and self.evaluation.judged:
            raise ValueError("evaluation.judge.kind: the oracle judges only its world; give `world`, or another judge")
        return self

    def _needs_all_triples(self, arm: Arm) -> bool:
        """Whether a policy trains on what is made of a triple of each query, and not on pairs that are drawn for it."""
        if arm.policy is None or (arm.data == "annotated" and self.world is None):
            return False
        # v1's triples are never limited.
        return arm.version == "v2" if arm.chained else arm.data != "good_bad"

    def _check_start(self, backbone: str, arms: list[str]) -> None:
        """Raise ValueError where an arm is to be compared with a starting model's answers that nobody makes."""
        asked = {name: set(self.evaluation_of(backbone, name).needs_start) for name in arms}
        if not any(asked.values()):
            return
        one = next(iter(set.union(*asked.values())))
        if self.world is not None:
            raise ValueError(
                f"evaluation.judged: {one} is for prompts of one's own; a world has `sft_wr`, leave it out"
            )
        if not self.data.held_out:
            raise ValueError(f"evaluation.judged: {one} asks prompts that are held out; give `data.held_out`")
        base = next((name for name in arms if self.arms[name].policy is None), None)
        if base is None or not asked[base] >= set.union(*asked.values()):
            raise ValueError(
                f"evaluation.judged: {one} compares with the starting model; give {backbone} an arm without `policy` "
                "that answers it too, or leave it out"
            )

    def _check_evaluation(self, backbone: str, arm: str) -> None:
        """Raise ValueError, with the key, for what is laid over the evaluation and does not fit it."""
        merged = self.evaluation.model_dump()
        for owner, own in (("backbones", self.backbones[backbone]), ("arms", self.arms[arm])):
            merged = merge(merged, own.evaluation)
            try:
                Evaluation.model_validate(merged)
            except ValidationError as error:
                name = backbone if owner == "backbones" else arm
                raise ValueError(sentence(f"{owner}.{name}.evaluation", error, Evaluation)) from None

    @property
    def all_writers(self) -> list[Writer]:
        """Everyone who writes principles."""
        return [self.principles, *self.writers.values()]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluation of each arm on each backbone."""
        return [self.evaluation_of(backbone, arm) for backbone in self.backbones for arm in self.arms]

    def evaluation_of(self, backbone: str, arm: str) -> Evaluation:
        """The evaluation of an arm on a backbone: the experiment's with theirs laid over."""
        over = merge(self.backbones[backbone].evaluation, self.arms[arm].evaluation)
        if not over:
            return self.evaluation
        return Evaluation.model_validate(merge(self.evaluation.model_dump(), over))


@cache
def _paper_methods() -> dict[str, list[str]]:
    """By version, what the paper's tables have rows of."""
    found: dict[str, dict[str, None]] = {"v1": {}, "v2": {}}
    with (ROOT / "results" / "paper" / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["version"]][row["method"]] = None
    return {version: list(methods) for version, methods in found.items()}


def _with_contrasts(training: Any, objectives: Any, key: str) -> Any:
    """A training with the contrasts of the own objective that it names and of no other: its result depends on no more.

    Raises ValueError where it names an objective that nobody knows, or brings contrasts that are not the experiment's.
    """
    own = objectives if isinstance(objectives, dict) else {}
    given = training.get("objectives") if isinstance(training, dict) else None
    if isinstance(given, dict) and any(name not in own or own[name] != given[name] for name in given):
        raise ValueError(f"{key}.objectives: an experiment's own objectives stand at its top, in `objectives`")
    name = training.get("objective") if isinstance(training, dict) else None
    known = [*load_objectives(), *own]
    if isinstance(name, str) and name not in known:
        raise ValueError(f"`{key}.objective`: unknown objective {name!r}; {hint(name, known)}")
    if isinstance(name, str) and name in own:
        return {**training, "objectives": {name: own[name]}}
    return {k: v for k, v in training.items() if k != "objectives"} if isinstance(given, dict) else training


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """A config with every text that is one of ``names`` replaced; keys stay."""
    if isinstance(value, dict):
        return {key: _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


HUB_FILE = re.compile(r"(hf://(?:datasets/|spaces/)?)([^/@]+/[^/@]+)(?:@([^/]+))?(/.+)")
"""A file of the hub: kind, repository, revision and path in it."""


def _pinned(value: Any, revisions: dict[str, str]) -> Any:
    """A config with every repository of ``revisions`` as NAME@COMMIT, where it has no revision yet; the name of a
    served model (`model`) is none."""
    if isinstance(value, dict):
        own = {"model", "path"} if value.get("revision") else {"model"}
        return {key: item if key in own else _pinned(item, revisions) for key, item in value.items()}
    if isinstance(value, list):
        return [_pinned(item, revisions) for item in value]
    if not isinstance(value, str):
        return value
    if value in revisions:
        return f"{value}@{revisions[value]}"
    file = HUB_FILE.fullmatch(value)
    if file and not file[3] and file[2] in revisions:
        return f"{file[1]}{file[2]}@{revisions[file[2]]}{file[4]}"
    return value


def _has(values: Any, key: str) -> bool:
    """Whether nested mappings have a key `a.b.c`."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def parse(values: dict[str, Any], source: str) -> Experiment:
    """A checked experiment; raises InputError with one sentence that names ``source`` and the key."""
    load_objectives()  # a mistake in the shipped ones is told first
    try:
        return Experiment.model_validate(json.loads(json.dumps(values)))
    except ValidationError as error:
        raise InputError(sentence(source, error, Experiment)) from error
    except (TypeError, ValueError, RecursionError) as error:  # dates, keys that are lists, anchors within themselves
        raise InputError(
            f"{source}: holds what JSON can't ({error}); use plain mappings, lists and scalars."
        ) from error


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read, extend, override and check an experiment file."""
    return parse(lay(read_yaml(config_file(path) or path), overrides or {}, path), str(path))


def schema() -> dict[str, Any]:
    """JSON schema of an experiment, draft 2020-12: what editors and the workflow check against."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}
