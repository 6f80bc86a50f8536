"""Every setting of the suite, defined once.

An experiment is one YAML file: where the data comes from, which backbones, and the grid of arms as data.
``load`` resolves ``extends:``, merges overrides and returns a checked `Experiment`; the workflow's JSON
schema is made from these models (``sso schema``). Knows nothing of paths: those are workflow/grid.py's.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sso.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
OFFICIAL_DIFFICULTY = "hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv"
"""What `evaluation.difficulty: hub` is short for."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class World(Settings):
    """The micro-world: a procedural language with an exact oracle (docs/microworld.md)."""

    name: Literal["a1", "base"] = "a1"
    """Noise law: in `a1` bad principles mostly elicit near misses, in `base` mostly gross flaws."""
    seed: int = 0
    entities: int = Field(300, ge=20, le=300)
    sft_examples: int = Field(40_000, ge=1)
    train_queries: int = Field(768, ge=1)
    """Queries of one training set; iterative arms get a fresh set each iteration."""
    tune_queries: int = Field(480, ge=1)
    eval_queries: int = Field(1200, ge=1)
    benchmark_items: int = Field(300, ge=1)
    """Items of each lm-eval benchmark and of MT-Bench's look-alike."""
    annotated_pairs: int = Field(1024, ge=1)
    """Pairs of the annotated preference set, which the paper's Skywork set is to the arms' pairs: 80k to 60k."""


class Preferences(Settings):
    """A preference set: a data set of the hub or a local copy of its folder, or a JSON Lines, JSON or Parquet file."""

    path: str
    subset: str | None = None
    """Its configuration on the hub, where it has several."""
    split: str = "train"
    """Of a hub data set; UltraFeedback-binarized: train_prefs."""
    revision: str | None = None
    """A commit of the hub."""
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
    """Of a data set on the hub."""
    limit: int | None = Field(None, ge=1)
    tune: str | None = None
    generator_queries: int | None = Field(None, ge=1)
    """Generators train on the triples of so many first queries; None: of all. The paper: 8,000 of 60,000."""
    preferences: Preferences | None = None
    """Annotated pairs for arms with `data: annotated`."""


class Backbone(Settings):
    """A checkpoint on disk or the hub, or a tiny model trained from scratch."""

    path: str | None = None
    revision: str | None = None
    architecture: Literal["qwen2", "llama"] | None = None
    hidden_size: int = 64
    layers: int = 3
    heads: int = 2
    kv_heads: int = 1
    max_length: int = 2048
    sft: bool = False
    """Fine-tune `path`, a base model, on `sft.data` first."""
    chat_template: str | None = None
    """For that: this backbone's, in place of `sft.chat_template`."""
    paper: dict[str, str] = {}
    """The paper's backbone whose figures stand beside ours, by version: {v2: Qwen2-7B-SFT}."""
    evaluation: dict[str, Any] = {}
    """Laid over the experiment's `evaluation` for this backbone; an arm's own is laid over both."""

    @model_validator(mode="after")
    def _one_source(self) -> "Backbone":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give either `path` (a checkpoint) or `architecture` (a tiny model from scratch)")
        if self.path and "@" in self.path and self.revision and not Path(self.path).exists():
            raise ValueError("`path` names a revision, and `revision` another; give one")
        return self

    @property
    def checkpoint(self) -> str | None:
        """`path`, with its revision as PATH@REVISION; None for a model from scratch."""
        return f"{self.path}@{self.revision}" if self.path and self.revision else self.path


class Spread(Settings):
    """How a training is spread over devices, and in which precision it computes."""

    batch_size: int = Field(32, ge=1)
    """Samples an optimizer step, over all devices and micro-batches."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    devices: int = Field(1, ge=1)
    """Processes on this machine, one a device; under torchrun or a cluster's launcher, theirs count."""
    nodes: int = Field(1, ge=1)
    """Machines, in a SLURM allocation of so many."""
    engine: Literal["ddp", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"] = "ddp"
    """What splits the work between devices: DeepSpeed ZeRO, FSDP2, or plain data parallelism."""
    save_steps: int = Field(0, ge=0)
    """Optimizer steps between checkpoints for resuming; 0: none."""

    @property
    def numerics(self) -> Literal["float32", "bfloat16", "bfloat16 weights"]:
        """What a forward pass of the training computes in: with bfloat16 plain data parallelism keeps float32 weights
        under autocast, while DeepSpeed and FSDP2 cast the weights themselves. Reference scores must be made alike."""
        if self.dtype == "float32":
            return "float32"
        return "bfloat16" if self.engine == "ddp" else "bfloat16 weights"

    @property
    def shards_weights(self) -> bool:
        """Whether each device holds a part of the weights only."""
        return self.engine in ("zero3", "zero3_offload", "fsdp2")


class Sft(Spread):
    """Supervised fine-tuning: of a tiny model on the world's corpus, or of a base model on `data`."""

    steps: int = 3300
    """-1: as many as `epochs` make."""
    epochs: float = Field(1, gt=0)
    learning_rate: float = 5e-3
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    data: str | None = None
    """Dialogues: a hub data set, or JSON Lines, with `messages`. None: the world's corpus, on one device in float32:
    what stands below, and how to spread the training, is for `data` alone."""
    split: str = "train"
    limit: int | None = Field(None, ge=1)
    chat_template: str | None = None
    """For base models that have none: a checkpoint whose template and end-of-turn token are taken."""
    max_length: int = Field(2048, ge=8)
    """Tokens of a dialogue; longer ones are cut at the end."""
    micro_batch_size: int = Field(1, ge=1)
    gradient_checkpointing: bool = True


class Vllm(Settings):
    """How vLLM holds a model."""

    tensor_parallel: int = Field(1, ge=1)
    """GPUs over which vLLM splits the model."""
    context: int | None = Field(None, ge=8)
    """Tokens of prompt and response that vLLM makes room for; None: all that the checkpoint can attend to."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""


class Decoding(Vllm):
    """Who draws text, and how (docs/engines.md)."""

    engine: Literal["transformers", "vllm", "endpoint"] = "transformers"
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    max_new_tokens: int = Field(2048, ge=1)
    batch_size: int = Field(8, ge=1)
    """Of transformers; vLLM fills its batches itself."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    devices: int = Field(1, ge=1)
    """Processes that share the prompts, each on `tensor_parallel` GPUs of its own; the draws stay the same."""
    endpoint: "Endpoint | None" = None
    """The served model of `engine: endpoint`."""

    @model_validator(mode="after")
    def _one_engine(self) -> "Decoding":
        if (self.engine == "endpoint") != (self.endpoint is not None):
            raise ValueError("`engine: endpoint` and the settings of an `endpoint` go together")
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError("`tensor_parallel` needs `engine: vllm`")
        if self.devices > 1 and self.engine == "endpoint":
            raise ValueError("an endpoint needs one process; its `concurrency` is what asks in parallel")
        return self


class Writer(Decoding):
    """Who writes the principles: the world's procedure, the policy itself, a checkpoint, or an endpoint."""

    kind: Literal["procedural", "policy", "checkpoint", "endpoint"] = "procedural"
    path: str | None = None
    wrapper: Literal["micro", "paper", "paper_v1"] = "micro"
    """How a principle becomes a system message; `paper` is that of the arm's version, `paper_v1` that of v1 anyway."""
    max_new_tokens: int = Field(256, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        served = isinstance(values, dict) and values.get("kind") == "endpoint"
        return {"engine": "endpoint", **values} if served else values

    @model_validator(mode="after")
    def _one_writer(self) -> "Writer":
        if (self.kind == "endpoint") != (self.engine == "endpoint"):
            raise ValueError("`kind: endpoint` is the writer that an `endpoint` serves, and the only one")
        return self


class Sampling(Decoding):
    """How y+, y- and yo are drawn, all three alike. Paper: temperature 0.7, top-p 0.8, 2,048 tokens."""


class Lora(Settings):
    """Low-rank adapters (peft)."""

    rank: int = Field(16, ge=1)
    alpha: float = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class Optimization(Spread):
    """How weights are trained on global batches, whatever the loss."""

    epochs: float = Field(1, gt=0)
    max_steps: int = -1
    tokens_per_batch: int = Field(8192, ge=1)
    """Tokens of a micro-batch on one device: memory, never the result. A larger sample is a micro-batch by itself."""
    scheduler: str = "cosine"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    weight_decay: float = Field(0.0, ge=0)
    """Of all weights but norms and biases; DeepSpeed's own optimizer, which the offload engines need, spares none."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    end_cut_responses: bool = False
    """Teach an end of turn after responses that never ended: those that were cut when they were drawn."""
    max_length: int = Field(4096, ge=8)
    """Tokens of a context with a response. Responses are cut; a record whose contexts leave no room is left out."""


class Training(Optimization):
    """One preference training of a generator or a policy. Defaults are the paper's where it states them."""

    use: str | None = None
    """A named setting of `trainings` that this one starts from."""
    objective: str = "pairs"
    base_loss: Literal["dpo", "ipo", "hinge", "orpo", "simpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences taken to be wrong (DPO only)."""
    simpo_margin: float = Field(0.5, ge=0)
    gamma: float = Field(0.1, ge=0)
    """Weight of L_sft in (2) and (4)."""
    lambda_minus: float = Field(1.0, ge=0)
    """Weight of L- beside L+; the paper's (1) has 1."""
    alpha: float = Field(0.5, ge=0, le=1)
    """W's share of the chosen response (v1)."""
    detach_weight: bool = False
    """Keep gradients out of W; the paper's formula and the released code let them through."""
    beta_g: float = Field(0.1, ge=0)
    """Weight of G (v1)."""
    learning_rates: list[float] = Field([5e-7], min_length=1)
    """More than one: each is trained, and the one that scores best on the tuning queries is kept."""
    layout: Literal["auto", "forest", "padded"] = "auto"
    """How responses share their contexts (docs/training.md); auto: forest where the model's class allows it."""
    lora: Lora | None = None
    """Train adapters and merge them; None: all weights."""

    @model_validator(mode="after")
    def _coherent(self) -> "Training":
        if self.label_smoothing and self.base_loss != "dpo":
            raise ValueError("label_smoothing belongs to base_loss dpo")
        if len(self.learning_rates) > 1 and (self.devices * self.nodes > 1 or self.engine != "ddp"):
            raise ValueError("several learning_rates are tried on one device only; give one")
        if self.lora and self.shards_weights:
            raise ValueError(f"lora: adapters are merged on one device, which {self.engine} does not allow; use zero2")
        return self


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
    data: Literal["none", "triples", "good_bad", "good_original", "annotated"] = "good_bad"
    """What the policy is trained on: nothing (the SFT model), whole triples (v1), or pairs made of them."""
    generator: Training | None = None
    policy: Training | None = None
    iterations: int = Field(1, ge=1)
    offline: bool = False
    """Triples of all queries are drawn from the starting model and trained on once (v1, table 3)."""
    writer: str | None = None
    """Who writes this arm's principles: a key of `writers`; None: `principles`."""
    backbones: list[str] | None = None
    """Only on these backbones; None: on all."""
    evaluation: dict[str, Any] = {}
    """Laid over the backbone's and the experiment's `evaluation`."""

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


class Source(Preferences):
    """Pairs that go into a reward model: an arm's, a preference set's (`path`), or the micro-world's annotated ones."""

    path: str | None = None  # type: ignore[assignment]  # the other kinds of source have none
    arm: str | None = None
    world: bool = False
    """The micro-world's annotated set: its own procedure's responses to queries of its own, labelled by the oracle."""
    weight: float | None = Field(None, gt=0)
    """Share of the mixture, beside the others' weights; the mixture is as large as the scarcest source allows."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        if (self.path is not None) + (self.arm is not None) + self.world != 1:
            raise ValueError("a source is one of `arm`, `path` (a preference set) and `world: true`")
        if self.weight is not None and self.limit is not None:
            raise ValueError("a source has a `limit` or a `weight`, not both")
        return self


class Mixture(Settings):
    """Which pairs a reward model is trained on."""

    arm: str | None = None
    """Short for one source, this arm's pairs."""
    sources: list[Source] = []
    dedupe: bool = True
    """A prompt that an earlier source has is not taken from a later one. Pairs that repeat wholly never count twice."""
    ngram: int = Field(13, ge=0)
    """Pairs whose prompt shares so many words in a row with a RewardBench prompt are left out; 0: none are."""

    @model_validator(mode="after")
    def _coherent(self) -> "Mixture":
        if self.arm is not None and self.sources:
            raise ValueError("give `arm` or `sources`, not both")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("sources: all have a `weight`, or none has")
        return self

    @property
    def parts(self) -> list[Source]:
        """The sources, `arm` among them."""
        return self.sources or ([Source(arm=self.arm)] if self.arm else [])


class Reward(Mixture, Optimization):
    """A Bradley-Terry reward model on pairs of arms and preference sets."""

    label: str
    version: Literal["v1", "v2"] = "v2"
    """Of the paper, in whose table it stands."""
    method: str | None = None
    """The paper's name of its data in results/paper/results.csv, e.g. `skywork+sso`."""
    base: str | None = None
    """A checkpoint to start from, e.g. meta-llama/Meta-Llama-3-8B-Instruct; None: the backbone's starting model."""
    backbones: list[str] | None = None
    """Only in these backbones' cells; None: in all that have the arms."""
    learning_rate: float = Field(5e-4, gt=0)
    epochs: float = Field(2, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(4096, ge=8)
    """Tokens of a prompt with a response; longer pairs are left out, nothing is cut."""
    margin: float = Field(0.0, ge=0)
    """m in -log sigmoid(r_w - r_l - m), times the pair's own margin where its set has one."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_w + r_l)^2, which keeps rewards around zero (Eisenstein et al. 2023)."""


class Endpoint(Settings):
    """An OpenAI-compatible endpoint: a hosted model, or a local server such as vLLM's."""

    model: str
    base_url: str | None = None
    """None: OpenAI's own."""
    key_variable: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key, which is never a setting. A server on this machine needs none."""
    concurrency: int = Field(8, ge=1)
    """Requests in flight at once."""
    timeout_s: float = Field(120, gt=0)
    retries: int = Field(6, ge=0)
    """Of one request, on 429, 5xx, timeouts, dropped connections and replies that are no JSON."""
    backoff_s: float = Field(0.5, ge=0)
    """Pause before the first retry; it doubles with each, and the server's Retry-After goes before it."""
    ask_again: bool = False
    """Ask again for what was refused before; else a refusal is remembered like a reply."""
    parameters: dict[str, Any] = {}
    """Laid over each request's own; null takes one away: {max_tokens: null, max_completion_tokens: 4096}."""
    max_requests: int | None = Field(None, ge=0)
    """Budget of the cache file: requests that were sent for this endpoint and model, retries included."""
    max_cost: float | None = Field(None, ge=0)
    """The same in money, by the tokens that the endpoint reports; what is in flight when it is spent still ends."""
    price_input: float = Field(0, ge=0)
    """Per million tokens, as is `price_output`."""
    price_output: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _priced(self) -> "Endpoint":
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError("max_cost needs price_input and price_output, per million tokens")
        return self


class Judge(Endpoint):
    """Who compares and grades answers: the micro-world's oracle, an endpoint (`openai`), or a reward model."""

    kind: Literal["oracle", "openai", "reward"] = "oracle"
    model: str = "oracle"
    path: str | None = None
    """The reward model's folder."""
    prompts: str | None = None
    """FastChat's judge_prompts.jsonl, in place of the copy that comes with the suite."""
    pairs: int | None = Field(None, ge=1)
    """How many pairs of a set data quality samples; None: all. The paper: 200."""
    repeats: int = Field(1, ge=1)
    """More than one: a subset of the items is judged so often, and the spread is reported."""
    repeat_items: int = Field(40, ge=2)

    @model_validator(mode="after")
    def _complete(self) -> "Judge":
        if (self.kind == "reward") != (self.path is not None):
            raise ValueError("`path` names the reward model of `kind: reward`, and of no other")
        if self.kind == "openai" and "model" not in self.model_fields_set:
            raise ValueError("`kind: openai` needs `model`, the name of the endpoint's model")
        return self


class Task(Settings):
    """A benchmark of eval/benchmarks.py (`micro_*`, `real_*`); what is left out is the benchmark's own."""

    name: str
    file: str | None = None
    """A JSON Lines mirror of its data. Without: `mirrors`, then (micro) the data folder or (real) the hub."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows."""
    num_fewshot: int | None = Field(None, ge=0)
    """Worked examples, as turns of the chat; None: the stock task's number."""
    max_new_tokens: int | None = Field(None, ge=1)
    """None: `max_new_tokens` of the evaluation."""


class Mirror(Settings):
    """Local JSON Lines files of one benchmark; docs/evaluation.md has the columns."""

    test: str
    shots: str | None = None
    """Rows to draw worked examples from. None: `train.jsonl` or `dev.jsonl` beside `test`, where there is one."""


Open = Literal["alpaca_eval", "mt_bench", "arena_hard"]
"""The benchmarks of open prompts, whose answers are judged."""


class AnswerDecoding(Settings):
    """How one benchmark's answers are drawn; what is left out is as for the others."""

    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    """Of Arena-Hard nothing else than 0, and of MT-Bench's categories FastChat's own."""
    top_p: float | None = Field(None, gt=0, le=1)


class Evaluation(Vllm):
    """Which benchmarks, and how answers are drawn."""

    engine: Literal["transformers", "vllm"] = "transformers"
    tasks: list[Task] = []
    mirrors: dict[Literal["gsm8k", "math", "mmlu", "ifeval", "gpqa", "mmlu_pro"], Mirror] = {}
    """Local files in place of the hub's data sets, by benchmark."""
    files: dict[Literal["reference", "mt_bench", "mt_bench_reference", "arena_hard", "arena_hard_baseline"], str] = {}
    """The judged benchmarks' own files (docs/evaluation_judges.md): local, or hf://datasets/OWNER/NAME/FILE."""
    difficulty: str | None = None
    """Of AlpacaEval's instructions, for the length-controlled win rate: `hub` (the official df_gamed.csv), a local or
    hf:// CSV, or None: one fit without difficulties. The report says which model a figure is of."""
    pairwise: bool = True
    """AlpacaEval 2 (micro: its look-alike): answers against a fixed reference."""
    mt_bench: bool = True
    arena_hard: bool = False
    rewardbench: str = "allenai/reward-bench"
    """Where reward models are scored outside the micro-world: RewardBench on the hub, or a JSON Lines copy of it."""
    batch_size: int = 64
    max_new_tokens: int = 64
    temperature: float = 1.0
    """Of the open-ended answers; lm-eval's tasks decode greedily."""
    top_p: float = 1.0
    decoding: dict[Open, AnswerDecoding] = {}
    """What one benchmark of open prompts does otherwise."""
    judge: Judge = Judge()
    judges: dict[Open, dict[str, Any]] = {}
    """Settings of one benchmark's judge, laid over `judge`."""

    @model_validator(mode="after")
    def _judges(self) -> "Evaluation":
        for name in self.judges:
            try:
                self.judge_of(name)
            except ValidationError as error:
                raise ValueError(_sentence(f"judges.{name}", error, Judge)) from None
        return self

    @property
    def open(self) -> list[Open]:
        """The benchmarks of open prompts that are switched on."""
        switches: dict[Open, bool] = {
            "alpaca_eval": self.pairwise,
            "mt_bench": self.mt_bench,
            "arena_hard": self.arena_hard,
        }
        return [name for name, on in switches.items() if on]

    def drawn_as(self, benchmark: Open) -> "Evaluation":
        """These settings with the decoding of one benchmark's answers."""
        own = self.decoding.get(benchmark, AnswerDecoding())
        return self.model_copy(update=own.model_dump(exclude_none=True))

    def judge_of(self, benchmark: Open) -> Judge:
        """Who judges a benchmark."""
        return Judge.model_validate(merge(self.judge.model_dump(), self.judges.get(benchmark, {})))


class Hardware(Settings):
    """The machine that `sso plan` reckons with; the workflow asks for GPUs only where it is given."""

    name: str = "H100-80GB"
    gpus: int = Field(8, ge=1)
    """On one machine."""
    memory_gb: float = Field(80, gt=0)
    """Of one GPU."""
    tflops: float = Field(989, gt=0)
    """Peak of one GPU in bfloat16, dense."""
    bandwidth_gbs: float = Field(3350, gt=0)
    """Of one GPU's memory."""
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

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = ""
    seeds: list[int] = Field([0], min_length=1)
    world: World | None = None
    data: Data = Data()
    backbones: dict[str, Backbone] = Field(min_length=1)
    sft: Sft | None = None
    principles: Writer = Writer()
    writers: dict[str, Writer] = {}
    """Other writers, which arms name."""
    sampling: Sampling = Sampling()
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
    revisions: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{40}$")]] = {}
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
        if isinstance(local := values.get("local"), dict):
            values = {**_replaced({k: v for k, v in values.items() if k != "local"}, local), "local": local}
        if isinstance(revisions := values.get("revisions"), dict):
            keep = {key: values[key] for key in ("revisions", "local", "assumed") if key in values}
            values = {**_pinned(values, revisions), **keep}
        named, arms = values.get("trainings") or {}, values.get("arms")
        for name, arm in arms.items() if isinstance(arms, dict) and isinstance(named, dict) else ():
            for stage in ("generator", "policy"):
                own = arm.get(stage) if isinstance(arm, dict) else None
                if isinstance(own, dict) and own.get("use") is not None:
                    if not isinstance(own["use"], str) or not isinstance(named.get(own["use"]), dict):
                        raise ValueError(f"arms.{name}.{stage}.use: no such training {own['use']!r} in `trainings`")
                    arm[stage] = {**named[own["use"]], **own}
        return values

    @model_validator(mode="after")
    def _references(self) -> "Experiment":
        for name, reward in self.rewards.items():
            if not reward.parts:
                raise ValueError(f"rewards.{name}: give `arm` or `sources`: the pairs that it is trained on")
            for source in reward.parts:
                if source.arm is not None and source.arm not in self.arms:
                    raise ValueError(f"rewards.{name}.arm: unknown arm {source.arm!r}; known: {', '.join(self.arms)}")
                if source.world and self.world is None:
                    raise ValueError(f"rewards.{name}: `world: true` is the micro-world's annotated set; give a `path`")
            for key in reward.backbones or []:
                if key not in self.backbones:
                    raise ValueError(f"rewards.{name}.backbones: unknown backbone {key!r}")
        for name, arm in self.arms.items():
            for key in arm.backbones or []:
                if key not in self.backbones:
                    raise ValueError(f"arms.{name}.backbones: unknown backbone {key!r}")
            if arm.writer is not None and arm.writer not in self.writers:
                raise ValueError(f"arms.{name}.writer: no such writer {arm.writer!r} in `writers`")
            if arm.data == "annotated" and self.world is None and self.data.preferences is None:
                raise ValueError(f"arms.{name}.data: annotated pairs come from `data.preferences`; give it")
            if arm.data == "good_original" and self.data.generator_queries:
                raise ValueError(f"arms.{name}.data: good_original needs triples of all queries, see generator_queries")
            for key in self.backbones:
                if self.evaluation_of(key, name).difficulty != self.evaluation.difficulty:
                    raise ValueError(f"evaluation.difficulty: one for all, so arm {name!r} and {key!r} can't set it")
        kinds = {writer.kind == "policy" for writer in self.all_writers}
        if len(kinds) > 1:
            raise ValueError("writers: either all principles are written by the policy itself or none")
        known = self.model_dump()
        for key in self.assumed:
            if not _has(known, key):
                raise ValueError(f"assumed.{key}: this config has no such key")
        if (self.world is None) == (self.data.queries is None):
            raise ValueError("give either `world` (the micro-world) or `data.queries` (a JSON Lines file)")
        for name, backbone in self.backbones.items():
            if backbone.sft and (self.sft is None or self.sft.data is None):
                raise ValueError(f"backbones.{name}.sft needs `sft.data`, the dialogues to train on")
        scratch = [name for name, backbone in self.backbones.items() if backbone.architecture]
        if scratch and (self.world is None or self.sft is None):
            raise ValueError(f"backbone {scratch[0]!r} is trained from scratch, which needs `world` and `sft`")
        if self.sampling.engine == "endpoint":
            raise ValueError("sampling.engine: an endpoint serves one model, but arms sample from what they trained")
        if self.world is None and self.principles.kind == "procedural":
            raise ValueError("principles.kind: the procedural writer knows only the micro-world")
        if self.world is not None and self.evaluation.difficulty is not None:
            raise ValueError("evaluation.difficulty: AlpacaEval's; the micro-world's prompts have none, leave it out")
        asked = self.evaluation
        judged = asked.pairwise or asked.mt_bench or asked.arena_hard
        if self.world is None and self.evaluation.judge.kind == "oracle" and judged:
            raise ValueError("evaluation.judge.kind: the oracle judges only the micro-world")
        return self

    @property
    def all_writers(self) -> list[Writer]:
        """Everyone who writes principles."""
        return [self.principles, *self.writers.values()]

    def evaluation_of(self, backbone: str, arm: str) -> Evaluation:
        """The evaluation of an arm on a backbone: the experiment's with theirs laid over."""
        over = merge(self.backbones[backbone].evaluation, self.arms[arm].evaluation)
        if not over:
            return self.evaluation
        return Evaluation.model_validate(merge(self.evaluation.model_dump(), over))


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


def read_yaml(path: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML mapping with its ``extends:`` (a file beside it) resolved; ``children`` are the files that extend it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file.")
    if path.resolve() in children:
        raise InputError(f"{path}: `extends` leads back to the file itself.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also impossible dates, and deep nesting
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a YAML mapping.")
    parent = values.pop("extends", None)
    if not isinstance(parent, str | None):
        raise InputError(f"{path}: `extends`: the name of a file beside it.")
    return merge(read_yaml(path.parent / parent, (*children, path.resolve())), values) if parent else values


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings that a field's type holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _sentence(source: str, error: ValidationError, model: type[BaseModel] = Experiment) -> str:
    """One sentence for the first problem in settings of ``model``; an unknown key gets the nearest known one."""
    problems = error.errors()
    # A misspelt key can leave another one missing: it is the cause.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        end = "" if message.endswith((".", "?")) else "."
        return f"{source}: {f'`{key}`: ' if key else ''}{message[0].lower()}{message[1:]}{end}"
    within: type[BaseModel] | None = model
    for part in first["loc"][:-1]:
        if within and part in within.model_fields:  # else the name of an entry, or its number
            within = next(iter(_models(within.model_fields[str(part)].annotation)), None)
    known = list(within.model_fields) if within else []
    near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}."
    return f"{source}: unknown key `{key}`; {hint}"


def parse(values: dict[str, Any], source: str) -> Experiment:
    """A checked experiment; raises InputError with one sentence that names ``source`` and the key."""
    from sso.objective import load_objectives

    try:
        experiment = Experiment.model_validate(json.loads(json.dumps(values)))
    except ValidationError as error:
        raise InputError(_sentence(source, error)) from error
    except (TypeError, ValueError, RecursionError) as error:  # dates, keys that are lists, anchors within themselves
        raise InputError(
            f"{source}: holds what JSON can't ({error}); use plain mappings, lists and scalars."
        ) from error
    known = load_objectives()
    for name, arm in experiment.arms.items():
        for stage, training in (("generator", arm.generator), ("policy", arm.policy)):
            if training is not None and training.objective not in known:
                raise InputError(
                    f"{source}: `arms.{name}.{stage}.objective`: unknown objective {training.objective!r}; "
                    f"known: {', '.join(known)}."
                )
    return experiment


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read, extend, override and check an experiment file."""
    return parse(merge(read_yaml(path), overrides or {}), str(path))


def schema() -> dict[str, Any]:
    """JSON schema of an experiment, draft 2020-12: what editors and the workflow check against."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}
