"""The jobs of one cell (a backbone with a seed), a method each: what a stage reads, and its settings.

A job's settings hold exactly what its result depends on, because a change of them is what makes Snakemake run the job
again: an arm's beta is in that arm's training and nowhere else. Which arms need which stages is cell.py's.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sso.config import Arm
from sso.jobs.job import Job, Portion
from sso.objective import NODES, PAIR_NODES, Node, build
from sso.sampling.settings import Writer
from sso.train.settings import Training
from workflow.shared import Draft, Model, text

REFERENCE = ("dtype", "end_cut_responses", "engine", "max_length")
"""Settings of a training that its reference scores depend on."""


class Stages:
    """What a cell's jobs are made by; ``arms`` are those of its backbone."""

    def __init__(self, draft: Draft, backbone: str, seed: int):
        self.draft, self.experiment = draft, draft.experiment
        self.name, self.seed = backbone, seed
        self.backbone, self.base = self.experiment.backbones[backbone], draft.base(backbone)
        self.at = {"backbone": backbone, "seed": seed}
        self.first = {**self.at, "seed": self.experiment.seeds[0]}
        """This backbone's cell of the first seed, where learning rates are chosen."""
        self.arms = {n: a for n, a in self.experiment.arms.items() if a.backbones is None or backbone in a.backbones}
        self.data, self.world = draft.data_files, self.experiment.world

    def add(self, rule: str, inputs: Mapping[str, Any], **rest: Any) -> Job:
        """A job of this cell; see `Draft.add`."""
        return self.draft.add(rule, inputs, **{**rest, "at": {**self.at, **rest.get("at", {})}})

    @cached_property
    def oracle(self) -> list[str]:
        """Options that name the oracle; sizes of the data sets are not part of it."""
        return ["--world", text(self.world, *self.world.ORACLE)] if self.world else []

    @property
    def whole(self) -> Portion:
        """The queries of an arm without iterations: all, though other arms take them in turns. A world has as many for
        each iteration."""
        return "all" if self.draft.iterations > 1 and not self.world else "iteration"

    @cached_property
    def start(self) -> Model:
        """The model that everything starts from."""
        if self.base and not self.backbone.sft:
            return self.base
        return Model(self.draft.paths.path("sft", **self.at), made=True)

    def sft(self) -> Job:
        """The starting model: a tiny one from scratch, or a base model on dialogues."""
        sft = self.experiment.sft
        assert sft is not None, "Experiment checks it"
        shape = () if self.base else ("architecture", "hidden_size", "layers", "heads", "kv_heads")
        made = {"path": self.base.path} if self.base and self.base.made else {}
        settings = text(self.backbone.model_copy(update=made), "path", "revision", "sft", "max_length", *shape)
        source = (self.base and sft.data) or self.data["sft"]
        sft = sft.model_copy(update={"chat_template": self.backbone.chat_template or sft.chat_template})
        given = source in self.data.values() or Path(source).is_file()
        return self.add(
            "sft",
            {**(self.base.input() if self.base else {}), "data": source if given else ""},
            params={"backbone": settings, "settings": text(sft), "data": source},
            settings=sft,
        )

    # Principles, triples and pairs.

    def writer(self, arm: Arm) -> Writer:
        """Who writes an arm's principles."""
        return self.experiment.writers[arm.writer] if arm.writer else self.experiment.principles

    def principles(self, arm: Arm, queries: Portion, iteration: int, policy: tuple[str, Model] | None = None) -> Job:
        """Guidelines for the queries of an iteration, or of all.

        A policy that writes its own is the starting model, or that of the iteration before: ``policy``, the
        guidelines' place and the model.
        """
        writer, own = self.writer(arm), self.writer(arm).kind == "policy"
        part = "all" if queries == "all" else str(iteration)
        shared = "_".join(filter(None, [arm.version, arm.writer, part]))
        place, current = policy if policy and own else (shared, self.start)
        model = {"policy": current.path, "checkpoint": writer.path}.get(writer.kind)
        options = [*(self.oracle if writer.kind == "procedural" else []), *(["--model", model] if model else [])]
        source = self.data["queries_all" if queries == "all" else f"queries{iteration}"]
        return self.draft.add(
            "principles",
            {"queries": source, **(current.input() if own else {})},
            at={**(self.at if own else {}), "guidelines": place},
            params={
                "version": arm.version,
                "settings": text(writer),
                "options": options,
                # One text for all seeds, unless each policy writes its own.
                "seed": self.seed if own else (self.world.seed if self.world else 0),
            },
            settings=writer,
            version=arm.version,
            queries=queries,
            iteration=iteration,
        )

    def folder(self, arm: Arm, queries: Portion = "iteration") -> str:
        """Folder of the triples that arms share: `v2`, `v2_weak` for another writer, `v1_all` for an offline arm."""
        return "_".join(filter(None, [arm.version, arm.writer, "all" if queries == "all" else None]))

    def sampling(self, arm: Arm) -> dict[str, str]:
        """How an arm's responses are drawn, and how a principle is put into the prompt."""
        wrapper = self.writer(arm).wrapper
        own = "paper_v1" if wrapper == "paper" and arm.version == "v1" else wrapper
        return {"settings": text(self.experiment.sampling), "wrapper": own}

    def sample(self, name: str, model: Model, queries: Portion = "iteration", iteration: int = 1) -> Job:
        """Triples of one model; the first iteration's are shared by all arms of a version and a writer."""
        arm, count = self.arms[name], self.experiment.data.generator_queries
        count = count if arm.version == "v2" else None
        shared = queries == "all" or iteration == 1
        folder = self.folder(arm, queries) if shared else f"{name}/it{iteration}"
        # A second unprompted response is for the pairs that the oracle labels. It is drawn whether an arm has them or
        # not, as one that comes later would make all of these triples, and what is trained on them, again.
        asked = any(a.data == "annotated" and a.version == arm.version for a in self.arms.values())
        labelled = self.world and (arm.version == "v2" or asked)
        responses = ("y+", "y-", "yo", *(["second"] if labelled and queries != "all" and iteration == 1 else []))
        guidelines = self.principles(arm, queries, iteration, None if shared else (folder, model))
        return self.add(
            "sample",
            {**model.input(), "principles": guidelines.output},
            at={"set": folder},
            params={
                **self.sampling(arm),
                "model": model.path,
                "responses": ",".join(responses),
                "options": [*(["--limit", str(count)] if count else []), *(["--distinct"] * (arm.version == "v1"))],
            },
            settings=self.experiment.sampling,
            arm=None if shared else name,
            iteration=iteration,
            version=arm.version,
            queries="generator" if count else queries,
            responses=responses,
        )

    def generated_pairs(self, name: str, source: Model, scoring: Training) -> Job:
        """Pairs that a model draws, and their scores under the starting model."""
        arm, at = self.arms[name], {"arm": name}
        # The job's GPUs, which drew the pairs, score them.
        sampling = self.experiment.sampling
        scoring = scoring.model_copy(update={"devices": sampling.devices * sampling.tensor_parallel})
        return self._pairs(
            "generated_pairs",
            {**self.start.input(), **(source.input("generator") if source != self.start else {})},
            {"principles": self.principles(arm, self.whole, 1).output},
            at,
            {**self.sampling(arm), "generator": source.path, "model": self.start.path},
            scoring,
        )

    def pairs(self, name: str, triples: Job, scoring: Training) -> Job:
        """Pairs made of the starting model's own triples, and their scores under it."""
        kind = self.arms[name].data
        params = {
            "kind": kind,
            "options": self.oracle if kind in ("annotated", "relabelled", "flawless") else [],
            "model": self.start.path,
        }
        return self._pairs("pairs", self.start.input(), {"triples": triples.output}, {"arm": name}, params, scoring)

    def _pairs(
        self,
        rule: str,
        models: Mapping[str, str],
        inputs: Mapping[str, str],
        at: Mapping[str, str],
        params: Mapping[str, Any],
        scoring: Training,
    ) -> Job:
        outputs = [self.draft.paths.path(name, **self.at, **at) for name in (rule, "pairs_reference")]
        return self.add(
            rule,
            {**models, **inputs},
            at=at,
            outputs=outputs,
            params={**params, "scoring": text(scoring, *REFERENCE, "devices")},
            settings=self.experiment.sampling if rule == "generated_pairs" else scoring,
            arm=at["arm"],
            version=self.arms[at["arm"]].version,
            responses=("y+", "y-") if rule == "generated_pairs" else (),
            nodes=PAIR_NODES,
            queries=self.whole,
        )

    def reference(self, place: str, data: Job, training: Training, nodes: tuple[Node, ...] = NODES) -> Job:
        """The starting model's scores of all nodes, once for all trainings that read them.

        Of all, though some may be nobody's: an arm more or less then changes nothing that another arm reads.
        """
        return self.add(
            "reference",
            {**self.start.input(), "data": data.output},
            at={"set": place},
            params={
                "model": self.start.path,
                "settings": text(training, *REFERENCE, "devices"),
            },
            settings=training,
            queries=data.queries,
            nodes=nodes,
        )

    def shared_reference(self, arm: Arm, triples: Job) -> Job:
        """Scores that all generators on these triples read; they agree on its settings (`check` sees to it)."""
        folder = self.folder(arm, self.whole)
        first = next(a.generator for a in self.arms.values() if a.generator and self.folder(a, self.whole) == folder)
        return self.reference(folder, triples, first)

    # Training.

    def train(
        self,
        rule: str,
        name: str,
        training: Training,
        data: Job,
        model: Model,
        reference: str | None,
        *,
        run: str | None = None,
        iteration: int = 0,
        rate_from: str | None = None,
    ) -> Job:
        """Train an arm's generator or policy on pairs or triples.

        Several learning rates are tried once, with the first seed and iteration; ``rate_from`` is the training of this
        cell that tried them.
        """
        at = {"arm": name} if run is None else {"run": run}
        needs: dict[str, Any] = {**model.input(), "data": data.output}
        options: list[str] = []
        if reference:
            needs["reference"] = reference
            options += ["--reference", reference]
        if len(training.learning_rates) > 1:
            if rate_from is None and self.at != self.first:
                rate_from = self.draft.paths.path(rule, **self.first, **at)
            if rate_from:
                needs["rate_from"] = rate_from
                options += ["--rate-from", f"{rate_from}/tuning.json"]
            else:
                needs["tune"] = [self.data["tune"], self.data["tune_reference"]]
                options += ["--tune", self.data["tune"], *self.oracle, "--sampling", text(self.experiment.sampling)]
        return self.add(
            rule,
            needs,
            at=at,
            params={"model": model.path, "settings": text(training, without=("use",)), "options": options},
            settings=training,
            arm=name,
            iteration=iteration,
            version=self.arms[name].version,
            queries=data.queries,
            nodes=build(training).nodes,
        )
