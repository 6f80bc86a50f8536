"""What a job of the experiment costs: tokens, hours, memory, requests, money, disk. Reads jobs, runs nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from eval import benchmarks
from eval.benchmarks.record import Load
from eval.settings import Evaluation, Judge, Task
from rewardbench.settings import Reward
from sso.config import Experiment, Hardware
from sso.jobs.job import Job
from sso.sampling.settings import Decoding, Sampling, Writer
from sso.train.settings import Sft, Training
from workflow.arithmetic import Arithmetic, Cost
from workflow.machine import this_machine
from workflow.shapes import Shape, from_scratch, shape

SettingsT = TypeVar("SettingsT")

QUERIES = ANNOTATED = 60_000
"""Queries and annotated replies of a data set with no `limit`; UltraFeedback has about as many."""
SFT_EXAMPLES, SFT_TOKENS = 200_000, 1200
"""Dialogues of a set with no `limit`, and tokens of one on average (UltraChat's mean is near it)."""
REWARDBENCH = (2985, 550)
"""Pairs, and tokens of one text."""
CONVERSION_S = 2e-7
"""Seconds a parameter: 26 CPU-seconds for 135 million, on one core."""
SECONDS_A_REQUEST = 8
"""A guess, not a measurement: endpoints differ."""
REWARD_JUDGE_SLOWER = 4
"""A guess, not a measurement: than the same model would be in bfloat16."""


class Costs:
    """The costs of an experiment's jobs on its hardware."""

    def __init__(self, experiment: Experiment, hardware: Hardware | None = None):
        self.experiment = experiment
        self._given = hardware or experiment.hardware
        self._names = {local: name for name, local in experiment.local.items()}
        self._stages: dict[str, Callable[[Job], Cost]] = {
            "convert": self._convert,
            "sft": self._sft,
            "principles": self._principles,
            "sample": self._sample,
            "pairs": self._reference,
            "generated_pairs": self._generated_pairs,
            "reference": self._reference,
            "generator": self._train,
            "policy": self._train,
            "answer": self._answer,
            "judge": self._judge,
            "data_quality": self._data_quality,
            "reward_model": self._reward_model,
            "rewardbench": self._rewardbench,
        }

    def of(self, job: Job) -> Cost:
        """The cost of a job; one that runs no model and asks no endpoint costs nothing here."""
        stage = self._stages.get(job.rule)
        return stage(job) if stage else Cost()

    @cached_property
    def hardware(self) -> Hardware:
        """The config's, else a core of this machine: measured when it is asked for, not where a workflow is made."""
        return self._given or this_machine(self.experiment.world)

    @cached_property
    def _work(self) -> Arithmetic:
        return Arithmetic(self.hardware)

    # Sizes.

    def _backbone(self, job: Job) -> Shape:
        """The shape of the job's backbone; one that is trained from scratch has its config's."""
        about = self.experiment.backbones[str(job.backbone)]
        name = about.wheel.name if about.wheel else about.path
        return shape(name, self._names) if name else from_scratch(about)

    def _count(self, job: Job) -> float:
        """Queries, or annotated pairs, that the job works on."""
        experiment = self.experiment
        if experiment.world:
            return experiment.world.train_queries
        data, everything = experiment.data, experiment.data.limit or QUERIES
        if job.queries == "annotated":
            pairs = (data.preferences and data.preferences.limit) or ANNOTATED
            return pairs / (experiment.arms[job.arm].iterations if job.arm else 1)
        if job.queries == "generator" and data.generator_queries:
            return data.generator_queries
        return everything if job.queries == "all" else everything / self._iterations

    @cached_property
    def _iterations(self) -> int:
        return max(arm.iterations for arm in self.experiment.arms.values())

    # Stages.

    def _convert(self, job: Job) -> Cost:
        size = self._backbone(job).parameters
        return Cost(hours=CONVERSION_S * size / 3600, disk_gb=4 * size / 1e9)

    def _sft(self, job: Job) -> Cost:
        sft = _as(Sft, job)
        corpus = None if sft.data else self.experiment.world
        count, long = (corpus.sft_examples, corpus.DIALOGUE) if corpus else (SFT_EXAMPLES, SFT_TOKENS)
        if sft.steps > 0:
            tokens, micro = float(sft.steps * sft.batch_size * long), 4096
        else:
            tokens, micro = sft.epochs * (sft.limit or count) * long, sft.micro_batch_size * sft.max_length
        return self._work.fit(self._backbone(job), sft, tokens, micro)

    def _principles(self, job: Job) -> Cost:
        writer = _as(Writer, job)
        # v1 asks for features once, v2 for a bad guideline and then a good one, behind three worked examples.
        asked, prompt = (1, self.hardware.prompt_tokens + 60) if job.version == "v1" else (2, 900)
        count = asked * self._count(job)
        if writer.kind in ("procedural", "endpoint"):
            return Cost(requests=round(count) if writer.kind == "endpoint" else 0)
        size = shape(writer.path, self._names) if writer.path else self._backbone(job)
        return self._work.decode(size, writer, count, prompt, self.hardware.principle_tokens)

    def _sample(self, job: Job) -> Cost:
        device, count = self.hardware, len(job.responses) * self._count(job)
        prompt = device.prompt_tokens + device.principle_tokens
        cost = self._work.decode(self._backbone(job), _as(Sampling, job), count, prompt, device.response_tokens)
        cost.disk_gb = count * device.response_tokens * 6 / 1e9
        return cost

    def _generated_pairs(self, job: Job) -> Cost:
        policy = self.experiment.arms[str(job.arm)].policy
        assert policy is not None, "the pairs are made for it"
        cost = self._sample(job)
        scored = self._score(job, policy, cost.gpus)
        cost.tokens, cost.hours = cost.tokens + scored.tokens, cost.hours + scored.hours
        cost.memory_gb, cost.host_gb = max(cost.memory_gb, scored.memory_gb), max(cost.host_gb, scored.host_gb)
        return cost

    def _reference(self, job: Job) -> Cost:
        training = _as(Training, job)
        return self._score(job, training, training.devices)

    def _score(self, job: Job, training: Training, devices: int) -> Cost:
        tokens = self._count(job) * self._work.sample_tokens(job.nodes)
        width = 2 if training.numerics == "bfloat16 weights" else 4
        return self._work.score(self._backbone(job), tokens, devices, width)

    def _train(self, job: Job) -> Cost:
        training = _as(Training, job)
        samples = (
            training.max_steps * training.batch_size if training.max_steps > 0 else training.epochs * self._count(job)
        )
        tokens = len(training.learning_rates) * samples * self._work.sample_tokens(job.nodes)
        cost = self._work.fit(self._backbone(job), training, tokens, training.tokens_per_batch)
        if "reference" not in job.inputs:
            # Nothing scored the starting model before: training does, at a third of a forward and backward pass.
            cost.hours *= 4 / 3
        return cost

    def _answer(self, job: Job) -> Cost:
        settings, size, device, total = _as(Evaluation, job), self._backbone(job), self.hardware, Cost()
        decoding = Decoding(
            engine=settings.engine, batch_size=settings.batch_size, tensor_parallel=settings.tensor_parallel
        )
        if self.experiment.world:
            world = self.experiment.world
            probes = 3 * world.benchmark_items if "steering" in settings.judged else 0
            asked = len(settings.tasks) * world.benchmark_items + settings.samples * (world.eval_queries + probes)
            context = device.prompt_tokens + device.principle_tokens
            return self._work.decode(size, decoding, asked, context, device.response_tokens)
        loads = [load for task in settings.tasks if (load := _load(task))]
        loads += [benchmarks.of_judges()[name].load for name in settings.judged]
        for load in loads:
            prompt = device.prompt_tokens if load.prompt is None else load.prompt
            new = device.response_tokens if load.new is None else load.new
            items = load.items or self.experiment.data.held_out
            part = self._work.decode(size, decoding, items, prompt, new, load.scored)
            total.tokens, total.hours = total.tokens + part.tokens, total.hours + part.hours
            total.memory_gb, total.host_gb = max(total.memory_gb, part.memory_gb), part.host_gb
        total.gpus = settings.tensor_parallel if loads or settings.tasks else 0
        return total

    def _judge(self, job: Job) -> Cost:
        settings, total = _as(Evaluation, job), Cost()
        for name in settings.judged:
            record = benchmarks.of_judges()[name]
            asked = record.judging
            samples = settings.samples if name == "alpaca_eval" else 1
            times = samples if record.load.items else self.experiment.data.held_out
            part = self._ask(settings.judge_of(name), times * asked.requests, asked.read, asked.said)
            total.requests, total.money = total.requests + part.requests, total.money + part.money
            total.gpus, total.hours = max(total.gpus, part.gpus), total.hours + part.hours
            total.tokens, total.memory_gb = total.tokens + part.tokens, max(total.memory_gb, part.memory_gb)
            total.host_gb = max(total.host_gb, part.host_gb)
        return total

    def _data_quality(self, job: Job) -> Cost:
        judge = _as(Judge, job)
        return self._ask(judge, 2 * (judge.pairs or 0), 1200, 300)

    def _ask(self, judge: Judge, requests: int, read: int, said: int) -> Cost:
        """Requests with ``read`` tokens of a prompt and ``said`` of a reply; a reward model only reads."""
        if judge.path is not None:
            # It computes in float32: without tensor cores at a quarter of the peak or less.
            cost = self._work.score(shape(judge.path, self._names), requests * read, 1, width=4)
            return replace(cost, hours=REWARD_JUDGE_SLOWER * cost.hours)
        if not judge.asks_an_endpoint:
            return Cost()
        money = requests * (read * judge.price_input + said * judge.price_output) / 1e6
        return Cost(requests=requests, money=money, hours=requests * SECONDS_A_REQUEST / judge.concurrency / 3600)

    def _reward_model(self, job: Job) -> Cost:
        reward, device = _as(Reward, job), self.hardware
        pairs = sum(source.limit or self._count(job) for source in reward.parts)
        tokens = reward.epochs * pairs * 2 * (device.prompt_tokens + device.response_tokens)
        return self._work.fit(self._scored(job), reward, tokens, reward.tokens_per_batch)

    def _scored(self, job: Job) -> Shape:
        base = _as(Reward, job).base
        return shape(base, self._names) if base else self._backbone(job)

    def _rewardbench(self, job: Job) -> Cost:
        size, (pairs, long) = self._scored(job), REWARDBENCH if not self.experiment.world else (500, 45)
        return self._work.score(size, 2 * pairs * long, 1, 2 if _as(Reward, job).dtype == "bfloat16" else 4)


def unpriced(experiment: Experiment) -> list[str]:
    """Tasks whose size nobody knows, which the costs leave out."""
    found = [task.name for settings in experiment.evaluations for task in settings.tasks if _load(task) is None]
    return [] if experiment.world else list(dict.fromkeys(found))


def _load(task: Task) -> Load | None:
    """What a task asks, less where it has a limit; None for one that no record knows."""
    record = benchmarks.of_lm_eval().get(benchmarks.metric(task.name)) if task.name.startswith("real_") else None
    load = record.load if record and task.kind == "benchmark" else None
    return replace(load, items=min(load.items, task.limit)) if load and task.limit else load


def _as(kind: type[SettingsT], job: Job) -> SettingsT:
    """The job's settings, of the kind that its rule has."""
    assert isinstance(job.settings, kind), f"{job.name}: {type(job.settings).__name__} is no {kind.__name__}"
    return job.settings
