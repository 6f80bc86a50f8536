"""What a job costs, by a model simple enough to check by hand: tokens, FLOPs, bytes read, GPU memory, requests, disk.

Training: 6 FLOPs a parameter and token, 8 with gradient checkpointing; scoring and prompts: 2. Decoding: every step
reads the weights once and each sequence's keys and values, or computes 2 FLOPs a parameter and token, whichever takes
longer. Memory of training: 16 bytes a parameter (weights and gradients in bfloat16, float32 master weights and Adam's
two moments), split over devices as the engine does, and activations of one micro-batch. docs/paper_scale.md compares
it with measured runs. Knows the grid's jobs, runs nothing.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from eval.settings import Judge
from sso.config import Experiment, Hardware
from sso.errors import InputError
from sso.objective import load_objectives
from sso.sampling.settings import Decoding, Writer
from sso.settings import ROOT
from sso.train.settings import Spread, Training

MODELS = ROOT / "workflow" / "models.yaml"
OVERHEAD_H = 0.05
"""Start, loading and saving of a job on GPUs, in hours."""
SFT_TOKENS = 1200
"""Of a dialogue, on average (UltraChat's mean is near it)."""

BENCHMARKS = {
    # items, prompt tokens, new tokens, continuations scored a prompt
    "real_ifeval": (541, 60, 400, 0),
    "real_gsm8k": (1319, 900, 200, 0),
    "real_math": (5000, 700, 350, 0),
    "real_mmlu": (14042, 700, 0, 4),
    "real_gpqa": (198, 250, 0, 4),
    "real_mmlu_pro": (12032, 1500, 400, 0),
}
JUDGED = {
    # answers, requests, prompt tokens, reply tokens a request
    "alpaca_eval": (805, 805, 1300, 1),
    "mt_bench": (160, 160, 1500, 250),
    "arena_hard": (500, 1000, 3000, 600),
}
"""Rough means of the judged benchmarks' prompts with two answers in them, and of the replies."""


@dataclass(frozen=True)
class Shape:
    """A model's size."""

    parameters: float
    layers: int
    hidden: int
    kv: int
    """Width of one layer's keys."""
    vocabulary: int


@dataclass
class Cost:
    """Of one job. ``gpu_hours`` counts every GPU that it holds."""

    gpus: int = 0
    nodes: int = 1
    tokens: float = 0
    hours: float = 0
    """Of the work itself, on all its devices at once."""
    memory_gb: float = 0
    """Of one GPU, at its peak."""
    host_gb: float = 2.5
    disk_gb: float = 0
    requests: int = 0
    money: float = 0

    @property
    def wall_hours(self) -> float:
        """With starting, loading and saving."""
        return self.hours + (OVERHEAD_H if self.gpus else 0)

    @property
    def gpu_hours(self) -> float:
        """GPUs times wall time."""
        return self.gpus * self.wall_hours


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(MODELS.read_text(encoding="utf-8"))


def shape(name: str, names: Mapping[str, str]) -> Shape:
    """A model's shape, from its folder or from workflow/models.yaml; ``names`` maps local paths back to hub names."""
    config = Path(name) / "config.json"
    if config.is_file():
        about = json.loads(config.read_text(encoding="utf-8"))
        hidden, layers, vocabulary = about["hidden_size"], about["num_hidden_layers"], about["vocab_size"]
        heads = about["num_attention_heads"]
        width = about.get("head_dim") or hidden // heads
        kv = width * about.get("num_key_value_heads", heads)
        layer = 2 * hidden * (heads * width + kv) + 3 * hidden * about["intermediate_size"]
        ends = (1 if about.get("tie_word_embeddings") else 2) * vocabulary * hidden
        return Shape(layers * layer + ends, layers, hidden, kv, vocabulary)
    known = _table().get(name.partition("@")[0]) or _table().get(names.get(name, ""))
    if known is None:
        raise InputError(f"{name}: its size is unknown; add it to {MODELS.relative_to(ROOT)}.")
    return Shape(**{**known, "parameters": known["parameters"] * 1e9})


@cache
def this_machine(micro: bool) -> Hardware:
    """One core of this machine in float32: two rates, measured in half a second and taken as reached in full, so that
    what follows is a floor. The model counts bfloat16's 2 bytes a parameter, so half the bandwidth. ``micro``: with the
    micro-world's mean lengths.
    """
    import numpy as np

    def rate(work: Callable[[], Any], amount: float) -> float:
        work()
        start, count = time.process_time(), 0
        while time.process_time() - start < 0.2:
            work()
            count += 1
        return count * amount / (time.process_time() - start)

    rng = np.random.default_rng(0)
    a, large = rng.normal(size=(512, 512)).astype("float32"), rng.normal(size=(4096, 4096)).astype("float32")
    x = rng.normal(size=4096).astype("float32")
    flops, read = rate(lambda: a @ a, 2 * 512**3), rate(lambda: large @ x, 4 * 4096**2)
    own = {"tflops": flops / 1e12, "bandwidth_gbs": read / 2e9, "training_mfu": 1, "decoding_mbu": 1}
    lengths = {"prompt_tokens": 26, "principle_tokens": 25, "response_tokens": 18} if micro else {}
    return Hardware(name="one core of this machine", gpus=1, **own, **lengths)


class Costs:
    """The costs of an experiment's jobs on its hardware."""

    def __init__(self, experiment: Experiment, hardware: Hardware | None = None):
        self.experiment = experiment
        self._given = hardware or experiment.hardware
        self.names = {local: name for name, local in experiment.local.items()}
        self.queries = experiment.data.limit or 60_000

    @cached_property
    def hardware(self) -> Hardware:
        """The config's, else a core of this machine: measured when it is asked for, not where a workflow is made."""
        return self._given or this_machine(self.experiment.world is not None)

    def shape(self, name: str) -> Shape:
        """Of a model by its name or path."""
        return shape(name, self.names)

    def backbone(self, name: str) -> Shape:
        """Of a backbone; one that is trained from scratch has its config's."""
        about = self.experiment.backbones[name]
        if about.path:
            return self.shape(about.path)
        layer = about.hidden_size**2 * 2 * (1 + about.kv_heads / about.heads) + 3 * about.hidden_size * (
            4 * about.hidden_size
        )
        kv = about.hidden_size // about.heads * about.kv_heads
        return Shape(about.layers * layer + 512 * about.hidden_size, about.layers, about.hidden_size, kv, 512)

    def of(self, rule: str, wildcards: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        """The cost of a job of the grid; a rule that runs no model costs nothing here."""
        make = getattr(self, f"_{rule}", None)
        return make(wildcards, params) if make else Cost()

    # Arithmetic.

    def _decode(self, size: Shape, how: Decoding, prompts: float, prompt: float, new: float, scored: float = 0) -> Cost:
        """``prompts`` of ``prompt`` tokens, ``new`` tokens drawn for each; ``scored`` continuations instead."""
        device = self.hardware
        peak, bandwidth = device.tflops * 1e12, device.bandwidth_gbs * 1e9
        split = how.tensor_parallel
        together = device.sequences if how.engine == "vllm" else how.batch_size
        cache_bytes = 2 * 2 * size.layers * size.kv * (prompt + new / 2)
        if how.engine == "vllm" and cache_bytes:
            # vLLM takes no more sequences than its memory holds.
            room = (how.gpu_memory * device.memory_gb - 4) * 1e9 * split - 2 * size.parameters
            together = int(max(1, min(together, room // cache_bytes)))
        work = 2 * size.parameters * prompts * prompt * max(1, scored) / (peak * device.training_mfu * split)
        step = (2 * size.parameters + together * cache_bytes) / (bandwidth * device.decoding_mbu * split)
        step = max(step, 2 * size.parameters * together / (peak * device.training_mfu * split))
        seconds = work + prompts * new / together * step
        memory = (2 * size.parameters + together * cache_bytes) / split / 1e9 + 4
        gpus = how.devices * split
        tokens = prompts * (prompt * max(1, scored) + new)
        hours = seconds / 3600 / how.devices
        return Cost(gpus, 1, tokens, hours, memory, 16 + 2 * size.parameters * how.devices / 1e9)

    def _fit(self, size: Shape, how: Spread, tokens: float, micro: int) -> Cost:
        """A training over ``tokens`` with micro-batches of ``micro`` tokens."""
        device, count = self.hardware, how.devices * how.nodes
        flops = (8 if how.gradient_checkpointing else 6) * size.parameters * tokens
        hours = flops / (device.tflops * 1e12 * device.training_mfu * count) / 3600
        weights, moments = 4 * size.parameters, 12 * size.parameters
        if how.engine.startswith("zero3") or how.engine == "fsdp2":
            weights /= count
        if how.engine != "ddp":
            moments /= count
        host = 2 * size.parameters * how.devices
        if how.engine.endswith("offload"):
            host, moments = host + moments * how.devices, 0
        each = 34 if not how.gradient_checkpointing else 2
        active = micro * size.hidden * (each * size.layers + 34) + 2048 * size.vocabulary * 8
        memory = (weights + moments + active) / 1e9 + 4
        disk = 2 * size.parameters / 1e9
        return Cost(count, how.nodes, tokens, hours, memory, 16 + host / 1e9, disk)

    def _sample_tokens(self, objective: str) -> float:
        """Tokens of one sample: each context once, each response behind it once."""
        device = self.hardware
        contexts: dict[str, set[str]] = {}
        for contrast in load_objectives()[objective]:
            contexts.setdefault(contrast.context, set()).update((contrast.winner, contrast.loser))
        lengths = {"x": device.prompt_tokens}
        long = device.prompt_tokens + device.principle_tokens
        return sum(lengths.get(c, long) + len(r) * device.response_tokens for c, r in contexts.items())

    # One a rule.

    def _sft(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        how, size = self.experiment.sft, self.backbone(at["backbone"])
        assert how is not None, "its jobs were made from it"
        examples = how.limit or 200_000
        if how.steps > 0:
            return self._fit(size, how, how.steps * how.batch_size * (SFT_TOKENS if how.data else 50), 4096)
        return self._fit(size, how, how.epochs * examples * SFT_TOKENS, how.micro_batch_size * how.max_length)

    def _principles(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        writer = Writer.model_validate_json(params["settings"])
        # v1 asks for features once, v2 for a bad guideline and then a good one, behind three worked examples.
        asked, prompt = (1, self.hardware.prompt_tokens + 60) if params["version"] == "v1" else (2, 900)
        count = asked * self._queries(at["guidelines"])
        if writer.kind in ("procedural", "endpoint"):
            return Cost(requests=round(count) if writer.kind == "endpoint" else 0)
        size = self.shape(writer.path) if writer.path else self.backbone(at["backbone"])
        return self._decode(size, writer, count, prompt, self.hardware.principle_tokens)

    def _queries(self, part: str) -> float:
        """Of one iteration's set, or of all."""
        parts = max(arm.iterations for arm in self.experiment.arms.values())
        if self.experiment.world:
            return self.experiment.world.train_queries
        return self.queries if part.endswith("all") else self.queries / parts

    def _sample(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        responses = params["responses"].count(",") + 1
        limit = self.experiment.data.generator_queries if "--limit" in params["options"] else None
        return self._draw(at, responses * (limit or self._queries(at["set"])))

    def _draw(self, at: Mapping[str, str], count: float) -> Cost:
        device = self.hardware
        prompt = device.prompt_tokens + device.principle_tokens
        cost = self._decode(
            self.backbone(at["backbone"]), self.experiment.sampling, count, prompt, device.response_tokens
        )
        cost.disk_gb = count * device.response_tokens * 6 / 1e9
        return cost

    def _generated_pairs(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        count = self._queries("")
        cost, scored = self._draw(at, 2 * count), self._score(at, "pairs", count, cost_devices=1)
        cost.tokens, cost.hours = cost.tokens + scored.tokens, cost.hours + scored.hours
        return cost

    def _pairs(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        return self._score(at, "pairs", self._queries(""), cost_devices=1)

    def _score(self, at: Mapping[str, str], objective: str, count: float, cost_devices: int) -> Cost:
        size, device = self.backbone(at["backbone"]), self.hardware
        tokens = count * self._sample_tokens(objective)
        seconds = 2 * size.parameters * tokens / (device.tflops * 1e12 * device.training_mfu * cost_devices)
        memory = 2 * size.parameters / 1e9 + 8
        return Cost(cost_devices, 1, tokens, seconds / 3600, memory, 16 + 2 * size.parameters / 1e9)

    def _reference(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        how = Training.model_validate(json.loads(params["settings"]))
        count = (self.experiment.data.generator_queries or self._queries("")) if at["set"] != "preferences" else 60_000
        objective = "sso_v2" if params["objectives"] != "pairs" else "pairs"
        return self._score(at, objective, count, how.devices)

    def _generator(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        count = self.experiment.data.generator_queries or self._queries("")
        return self._train(at, params, count)

    def _policy(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        arm = self.experiment.arms[at["run"].partition("/")[0]]
        return self._train(at, params, self._queries("all" if arm.offline else ""))

    def _train(self, at: Mapping[str, str], params: Mapping[str, Any], count: float) -> Cost:
        how = Training.model_validate(json.loads(params["settings"]))
        samples = how.max_steps * how.batch_size if how.max_steps > 0 else how.epochs * count
        tries = len(how.learning_rates)
        tokens = tries * samples * self._sample_tokens(how.objective)
        cost = self._fit(self.backbone(at["backbone"]), how, tokens, how.tokens_per_batch)
        if not params.get("options"):
            # Nothing scored the starting model before: training does, at a third of a forward and backward pass.
            cost.hours *= 4 / 3
        return cost

    def _evaluate(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        arm = at["run"].partition("/")[0]
        settings = self.experiment.evaluation_of(at["backbone"], arm)
        split = settings.tensor_parallel
        how = Decoding(engine=settings.engine, batch_size=settings.batch_size, tensor_parallel=split)
        size, total = self.backbone(at["backbone"]), Cost()
        if self.experiment.world:
            rows = 6 * self.experiment.world.benchmark_items + self.experiment.world.eval_queries
            return self._decode(size, how, rows, 50, self.hardware.response_tokens)
        asked = [BENCHMARKS[task.name] for task in settings.tasks if task.name in BENCHMARKS]
        asked += [
            (JUDGED[name][0], self.hardware.prompt_tokens, self.hardware.response_tokens, 0) for name in settings.open
        ]
        for items, prompt, new, scored in asked:
            part = self._decode(size, how, items, prompt, new, scored)
            total.tokens, total.hours = total.tokens + part.tokens, total.hours + part.hours
            total.memory_gb, total.host_gb = max(total.memory_gb, part.memory_gb), part.host_gb
        total.gpus = split if asked else 0
        return total

    def _judge(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        settings = self.experiment.evaluation_of(at["backbone"], at["run"].partition("/")[0])
        total = Cost()
        for name in settings.open:
            part = self._ask(settings.judge_of(name), JUDGED[name][1:])
            total.requests, total.money = total.requests + part.requests, total.money + part.money
            total.gpus, total.hours = max(total.gpus, part.gpus), total.hours + part.hours
        return total

    def _data_quality(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        judge = self.experiment.evaluation_of(at["backbone"], at["arm"]).judge
        return self._ask(judge, (2 * (judge.pairs or 0), 1200, 300))

    def _ask(self, judge: Judge, asked: tuple[int, int, int]) -> Cost:
        """``asked``: requests, and tokens of a prompt and of a reply."""
        if judge.kind != "openai":
            return Cost(gpus=int(judge.kind == "reward"), hours=0.2 * (judge.kind == "reward"))
        requests, read, said = asked
        money = requests * (read * judge.price_input + said * judge.price_output) / 1e6
        # Eight seconds a request is a guess, not a measurement: endpoints differ.
        return Cost(requests=requests, money=money, hours=requests * 8 / judge.concurrency / 3600)

    def _reward_model(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        reward, device = self.experiment.rewards[at["reward"]], self.hardware
        pairs = sum(source.limit or self._queries("") for source in reward.parts)
        tokens = reward.epochs * pairs * 2 * (device.prompt_tokens + device.response_tokens)
        return self._fit(self._scored(at), reward, tokens, reward.tokens_per_batch)

    def _scored(self, at: Mapping[str, str]) -> Shape:
        base = self.experiment.rewards[at["reward"]].base
        return self.shape(base) if base else self.backbone(at["backbone"])

    def _rewardbench(self, at: Mapping[str, str], params: Mapping[str, Any]) -> Cost:
        size = self._scored(at)
        tokens = 2985 * 2 * 550 if not self.experiment.world else 2 * 500 * 45
        hours = 2 * size.parameters * tokens / (self.hardware.tflops * 1e12 * self.hardware.training_mfu) / 3600
        return Cost(1, 1, tokens, hours, 2 * size.parameters / 1e9 + 8)
