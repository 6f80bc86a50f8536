"""Settings of every training: how it is spread over devices, how weights are optimized, and on which loss."""

from enum import Enum
from operator import not_
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, ValidationInfo, field_validator, model_validator

from sso.errors import InputError
from sso.objective import BaseLossName, Objectives, contrasts_of
from sso.settings import Settings, hint


def _some(steps: int) -> int:
    if steps < 1 and steps != -1:
        raise ValueError("give 1 or more, or -1 for as many as the epochs make")
    return steps


Steps = Annotated[int, AfterValidator(_some)]
"""Optimizer steps; -1: as many as the epochs make."""


class Spread(Settings):
    """How a training is spread over devices, and in which precision it computes."""

    batch_size: int = Field(32, ge=1)
    """Samples an optimizer step, over all devices and micro-batches."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What is computed in; `engine` says what the weights are then kept in."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
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

    steps: Steps = 3300
    """-1: as many as `epochs` make."""
    epochs: float = Field(1, gt=0)
    """Passes over the dialogues, where `steps` is -1."""
    learning_rate: float = Field(5e-3, gt=0)
    """The highest, after the warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of all weights but norms and biases."""
    data: str | None = None
    """Dialogues: a hub data set, or JSON Lines, with `messages`. None: the world's corpus, on one device in float32:
    what stands below, and how to spread the training, is for `data` alone."""
    split: str = "train"
    """The split of a hub data set."""
    limit: int | None = Field(None, ge=1)
    """Only so many dialogues; None: all."""
    chat_template: str | None = None
    """For base models that have none: a checkpoint whose template and end-of-turn token are taken."""
    max_length: int = Field(2048, ge=8)
    """Tokens of a dialogue; longer ones are cut at the end."""
    micro_batch_size: int = Field(1, ge=1)
    """Dialogues in memory at once on one device."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, a third more time."""


class Lora(Settings):
    """Low-rank adapters (peft)."""

    rank: int = Field(16, ge=1)
    """Columns of an adapter's matrices."""
    alpha: float = 32
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is set to 0 in training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get one, as peft takes them."""


def _known_scheduler(name: str) -> str:
    if name not in ("cosine", "linear", "constant", "constant_with_warmup"):  # known without the import
        from transformers.trainer_utils import SchedulerType

        _among(name, SchedulerType)
    return name


def _known_optimizer(name: str) -> str:
    if name not in ("adamw_torch_fused", "adamw_torch"):
        from transformers.training_args import OptimizerNames

        _among(name, OptimizerNames)
    return name


def _among(name: str, known: type[Enum]) -> None:
    names = [str(one.value) for one in known]
    if name not in names:
        raise ValueError(f"transformers has no {name!r}; {hint(name, names)}")


class Optimization(Spread):
    """How weights are trained on global batches, whatever the loss."""

    epochs: float = Field(1, gt=0)
    """Passes over the data."""
    max_steps: Steps = -1
    """Optimizer steps in place of `epochs`; -1: as many as those make."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Tokens of a micro-batch on one device: memory, never the result. A larger sample is a micro-batch by itself."""
    layout: Literal["auto", "forest", "padded"] = "auto"
    """How responses share their contexts (docs/training.md); auto: forest where the model's class allows it."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = "cosine"
    """transformers' name of how the learning rate falls after the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Longer gradients are cut to this norm."""
    optimizer: Annotated[str, AfterValidator(_known_optimizer)] = "adamw_torch_fused"
    """transformers' name of it."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of all weights but norms and biases; DeepSpeed's optimizer, which the offload engines need, spares none."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """What keeps Adam from dividing by 0."""
    end_cut_responses: bool = False
    """Teach an end of turn after responses that never ended: those that were cut when they were drawn."""
    max_length: int = Field(4096, ge=8)
    """Tokens of a context with a response. Responses are cut; a record whose contexts leave no room is left out."""


class Training(Optimization):
    """One preference training of a generator or a policy. Defaults are the paper's where it states them."""

    use: str | None = None
    """A named setting of `trainings` that this one starts from."""
    objectives: Objectives = Field({}, exclude_if=not_)
    """Own objectives that `objective` may name; an experiment fills in those of its `objectives` that are named."""
    objective: str = "pairs"
    """A row of config/objectives.yaml, or of `objectives`."""
    base_loss: BaseLossName = "dpo"
    """L_base of each contrast."""
    beta: float = Field(0.1, gt=0)
    """Scale of the base loss: of what is compared, or 1 / (2 beta) as IPO's target."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences taken to be wrong (DPO only)."""
    simpo_margin: float = Field(0.5, ge=0)
    """What SimPO's winner should be ahead by."""
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
    learning_rates: list[PositiveFloat] = Field([5e-7], min_length=1)
    """More than one: each is trained, and the one that scores best on the tuning queries is kept."""
    lora: Lora | None = None
    """Train adapters and merge them; None: all weights."""

    @field_validator("objective")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        try:
            contrasts_of(name, info.data.get("objectives", {}))
        except InputError as error:
            raise ValueError(error) from error
        return name

    @model_validator(mode="after")
    def _coherent(self) -> "Training":
        if self.label_smoothing and self.base_loss != "dpo":
            raise ValueError("label_smoothing belongs to base_loss dpo")
        if len({*self.learning_rates}) < len(self.learning_rates):
            raise ValueError(f"learning_rates: {self.learning_rates} has one twice; leave one out")
        if len(self.learning_rates) > 1 and (self.devices * self.nodes > 1 or self.engine != "ddp"):
            raise ValueError("several learning_rates are tried on one device only; give one")
        if self.lora and self.shards_weights:
            raise ValueError(f"lora: adapters are merged on one device, which {self.engine} does not allow; use zero2")
        return self


LOSS_NUMBERS = tuple(name for name, kind in Training.__annotations__.items() if kind is float)
"""What losses and contrasts' weights are made of: a training's own numbers."""
