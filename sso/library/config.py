"""SSOConfig: transformers' TrainingArguments with an objective; `sso.train.settings.Training` is what it stands for.

Defaults are Training's and so are the checks: nothing is said twice.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from transformers import TrainingArguments

from sso.errors import InputError
from sso.objective import build
from sso.settings import from_yaml, sentence
from sso.train.settings import Training

OWN = (
    "objective base_loss beta gamma lambda_minus beta_g alpha detach_weight label_smoothing simpo_margin "
    "max_length end_cut_responses layout tokens_per_batch"
).split()
"""Fields that are Training's by name."""
SHARED = {
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "lr_scheduler_type": "scheduler",
    "max_grad_norm": "max_grad_norm",
    "optim": "optimizer",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "activation_checkpointing": "gradient_checkpointing",
}
"""transformers' name -> Training's."""
WITHOUT = (
    "fp16",
    "deepspeed",
    "fsdp",
    "dataloader_drop_last",
    "auto_find_batch_size",
    "label_smoothing_factor",
    "push_to_hub",
    "bf16_full_eval",
    "fp16_full_eval",
)
"""What TrainingArguments have and this trainer could only ignore."""


def _as_training(name: str, help: str = "") -> Any:
    """A field with the default of Training's ``name``."""
    return field(default=Training.model_fields[name].get_default(), metadata={"help": help or f"Training's {name}."})


@dataclass
class SSOConfig(TrainingArguments):
    """Arguments of an `SSOTrainer`: transformers' own, and those of the objective (docs/library.md).

    The loss is a mean over per_device_train_batch_size * gradient_accumulation_steps samples of each device. How many
    of them are in memory at a time is `tokens_per_batch`'s matter and changes nothing else.

    Raises:
        InputError: a value is out of its range, unknown, or one that this trainer has no use for; names the field.
    """

    objective: str = field(default="sso_v2", metadata={"help": "A row of config/objectives.yaml, or of `objectives`."})
    objectives: dict | str | None = field(
        default=None, metadata={"help": "Own objectives: name -> contrasts, on a command line as JSON or YAML."}
    )
    base_loss: str = _as_training("base_loss", "dpo, ipo, hinge, orpo, simpo or sft.")
    beta: float = _as_training("beta", "Strength of the base loss.")
    gamma: float = _as_training("gamma", "Weight of the SFT terms of v2.")
    lambda_minus: float = _as_training("lambda_minus", "Weight of L- beside L+.")
    beta_g: float = _as_training("beta_g", "Weight of G (v1).")
    alpha: float = _as_training("alpha", "W's share of the chosen response (v1).")
    detach_weight: bool = _as_training("detach_weight", "Keep gradients out of W (v1).")
    label_smoothing: float = _as_training("label_smoothing", "Share of preferences taken to be wrong (dpo).")
    simpo_margin: float = _as_training("simpo_margin", "Target margin of simpo.")
    max_length: int = _as_training("max_length", "Tokens of a context with a response; responses are cut to fit.")
    end_cut_responses: bool = _as_training("end_cut_responses", "Teach an end after responses that never ended.")
    layout: str = _as_training("layout", "auto, forest or padded: how responses share their contexts.")
    tokens_per_batch: int = _as_training("tokens_per_batch", "Tokens of a micro-batch on a device: memory alone.")
    reference_scores: str | None = field(
        default=None,
        metadata={"help": "File of reference scores; None: OUTPUT_DIR.reference.safetensors, made again if need be."},
    )

    num_train_epochs: float = _as_training("epochs")
    max_steps: int = _as_training("max_steps")
    per_device_train_batch_size: int = _as_training("batch_size", "Samples of an optimizer step on a device.")
    learning_rate: float = field(
        default=Training.model_fields["learning_rates"].get_default()[0], metadata={"help": "Training's."}
    )
    lr_scheduler_type: str = _as_training("scheduler")
    warmup_steps: float = _as_training("warmup_ratio", "Steps; below 1 a share of all.")
    max_grad_norm: float = _as_training("max_grad_norm")
    optim: str = _as_training("optimizer")
    weight_decay: float = _as_training("weight_decay")
    adam_beta1: float = _as_training("adam_beta1")
    adam_beta2: float = _as_training("adam_beta2")
    adam_epsilon: float = _as_training("adam_epsilon")
    bf16: bool = field(
        default=Training.model_fields["dtype"].get_default() == "bfloat16",
        metadata={"help": "Compute in bfloat16 on float32 weights; else in float32."},
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All weights are used."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between two logs."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite is an error."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no part: columns go by their names."})

    def __post_init__(self) -> None:
        for name in WITHOUT:
            if getattr(self, name):
                way = "use `sso train`, whose engines shard" if name in ("deepspeed", "fsdp") else "leave it out"
                raise InputError(f"SSOConfig: `{name}`: this trainer has no use for it; {way}.")
        for name, only in (("data_seed", (None, self.seed)), ("train_sampling_strategy", ("random",))):
            if getattr(self, name) not in only:
                raise InputError(f"SSOConfig: `{name}`: the order of samples comes from `seed`; leave it out.")
        # The suite knows CPUs and CUDA; processes without GPUs are each other's strangers unless this is said.
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        super().__post_init__()
        build(self.training())

    @property
    def global_batch_size(self) -> int:
        """Samples of an optimizer step, over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    def training(self) -> Training:
        """The suite's settings that these arguments stand for.

        Raises:
            InputError: a value is not allowed there; names the field.
        """
        values = {name: getattr(self, name) for name in OWN}
        values |= {ours: getattr(value := getattr(self, theirs), "value", value) for theirs, ours in SHARED.items()}
        values |= {"batch_size": self.global_batch_size, "dtype": "bfloat16" if self.bf16 else "float32"}
        values |= {"learning_rates": [self.learning_rate]}
        own = self.objectives or {}
        values["objectives"] = from_yaml(own, "SSOConfig: `objectives`") if isinstance(own, str) else own
        if self.warmup_steps < 1:
            values["warmup_ratio"] = self.warmup_steps
        try:
            return Training.model_validate(values)
        except ValidationError as error:
            raise InputError(sentence("SSOConfig", error, Training)) from error

    def planned(self) -> "SSOConfig":
        """A copy for GlobalBatchTrainer, which takes a whole global batch a step and plans its micro-batches itself."""
        arguments = copy.copy(self)
        arguments.per_device_train_batch_size *= arguments.gradient_accumulation_steps
        arguments.gradient_accumulation_steps = 1
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a device, never DataParallel
        return arguments
