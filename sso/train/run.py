"""What every training shares: its arguments, where it resumes, that the engine is the one asked for, and how it saves.

A training keeps whole checkpoints beside its output (checkpoints.py) and goes on from the last that has its key.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from sso.chat import save_tokenizer, stop_ids
from sso.errors import InputError
from sso.hub import checkpoint as checkpoint_folder
from sso.jobs.distributed import engine_arguments, from_main, is_main, world_size
from sso.jobs.progress import show_steps
from sso.records import whole_folder
from sso.train import checkpoints
from sso.train.pickles import plain_alone
from sso.train.settings import Optimization, Spread


def order(seed: int, epoch: int) -> torch.Generator:
    """What an epoch's order is drawn from: seed and epoch alone."""
    return torch.Generator().manual_seed((seed << 20) + epoch)


def curve(history: Iterable[Mapping[str, Any]], before: str = "") -> Iterator[tuple[int, dict[str, float]]]:
    """Of a Trainer's log history the steps that have a loss, with all their figures; ``before`` each name."""
    for row in history:
        if "loss" in row:
            yield row["step"], {before + k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}


class Growing(TrainerCallback):
    """Shows a run's curves as they grow (`sso.jobs.tracking.Run`): what a checkpoint has of them, then each log."""

    def __init__(self, run: Any, before: str = ""):
        self.run, self.before = run, before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._grow(state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._grow(state.log_history[-1:])

    def _grow(self, history: Iterable[Mapping[str, Any]]) -> None:
        for step, values in curve(history, self.before):
            self.run.grow(step, values)


class MarkingTrainer(Trainer):
    """Marks a checkpoint once it is whole, and only then removes older ones (sso/train/checkpoints.py).

    ``made_of`` stands in the mark: what a checkpoint may be resumed with, for those who ask.
    """

    made_of = ""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if num_training_steps == 1 and self.args.get_warmup_steps(1) and is_main():
            print(
                "warning: the only step belongs to the warm-up, whose first rate is 0: no weight will move; train for "
                "more steps, or without warm-up.",
                file=sys.stderr,
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        made = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.unmark(made)  # of an earlier run
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # which would remove before the mark
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        if not self.args.save_only_model:  # without its optimizer there is nothing to go on with
            checkpoints.mark(made, self.made_of)
        if limit and limit > 0:
            self._remove_older(folder, {made, Path(self.state.best_model_checkpoint or made)}, limit)

    def _remove_older(self, folder: Path, needed: set[Path], limit: int) -> None:
        """Of more checkpoints than ``limit`` remove the first, those that are not whole before the others."""
        by_age = map(Path, sort_checkpoints(str(folder), use_mtime=True))
        found = sorted(by_age, key=lambda path: checkpoints.made_of(path) is not None)
        spare = [path for path in found if path not in needed]
        for path in spare[: max(0, len(found) - max(limit, len(needed)))]:
            checkpoints.remove(path)


def arguments(out: Path, seed: int, **settings: Any) -> TrainingArguments:
    """TrainingArguments with what all our trainings share: no checkpoints but asked for, no external reports, and one
    device a process, though more are visible."""
    shared = {
        "seed": seed,
        "data_seed": seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "steps",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,  # sso.jobs.progress shows the steps
    }
    made = TrainingArguments(output_dir=str(out), **{**shared, **settings})
    made._n_gpu = min(made.n_gpu, 1)  # never DataParallel, whose batch is that of all devices
    return made


def training_arguments(training: Optimization, learning_rate: float, seed: int, workspace: Path) -> TrainingArguments:
    """TrainingArguments; with ZeRO-3 they must exist before the model is loaded, which is then loaded in parts."""
    return arguments(
        workspace,
        seed,
        max_steps=training.max_steps,
        num_train_epochs=training.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_ratio,
        max_grad_norm=training.max_grad_norm,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        bf16=training.dtype == "bfloat16",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=2,
        **engine_arguments(training),
    )


ENGINES = {"ddp": ("NO", "MULTI_CPU", "MULTI_GPU"), "fsdp2": ("FSDP",)}
"""What accelerate calls each engine; all others are DEEPSPEED."""


@contextmanager
def kept(work: Path) -> Iterator[None]:
    """`checkpoints.kept` of the main process, in which the others take part."""
    with checkpoints.kept(work) if is_main() else nullcontext():
        yield


def last_checkpoint(folder: Path, key: Callable[[], Mapping[str, Any]], what: str) -> Path | None:
    """The checkpoint that all processes go on from: the main one looks, and makes the ``key`` that it must have."""
    found = from_main(checkpoints.resume_from(folder, key()) if is_main() else None)
    if found and is_main():
        print(f"{what}: goes on from {found}", flush=True)
    return found


def check_engine(trainer: Trainer, engine: str) -> None:
    """Raise InputError where another engine, or fewer processes, would run than were asked for.

    transformers and accelerate fall back on plain or lone processes without a word: on CPU, for FSDP.
    """
    runs = trainer.accelerator.distributed_type.value
    if runs not in ENGINES.get(engine, ("DEEPSPEED",)) or trainer.args.world_size != world_size():
        raise InputError(
            f"engine {engine}: accelerate would run {runs} on {trainer.args.world_size} of {world_size()} processes "
            "instead; FSDP needs GPUs, DeepSpeed a launcher (set devices, or start with torchrun)."
        )


def go(trainer: Trainer, engine: str, checkpoint: str | Path | None, what: str = "train") -> Any:
    """Train, from a checkpoint if there is one, with the steps shown as those of ``what``; returns Trainer's result.

    Raises:
        InputError: another engine would run than was asked for, or the checkpoint holds more than tensors.
    """
    check_engine(trainer, engine)
    show_steps(trainer, what)
    with resuming(checkpoint):
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


@contextmanager
def resuming(checkpoint: str | Path | None) -> Iterator[None]:
    """Within, a checkpoint that holds more than tensors raises an InputError that names it."""
    try:
        with plain_alone(Path(checkpoint)) if checkpoint else nullcontext():
            yield
    except UnpicklingError as error:
        raise InputError(
            f"{checkpoint}: holds what a checkpoint of tensors does not; delete the folder to start the training over."
        ) from error


def save(model: Any, tokenizer: Any, out: Path, weights: dict[str, Any] | None = None) -> None:
    """A plain Hugging Face checkpoint, safetensors, whole or not at all; ``weights`` in place of the model's own.

    Its generation config ends a response where this suite does, so that any engine stops at the end of a turn.
    """
    if model.can_generate():
        stop = stop_ids(tokenizer, model.generation_config.eos_token_id)
        model.generation_config.eos_token_id = stop if len(stop) > 1 else stop[0]
    with whole_folder(out) as folder:
        model.save_pretrained(folder, state_dict=weights)
        save_tokenizer(tokenizer, folder)


def moved_nothing(start: str | Path, out: Path) -> bool:
    """Whether two checkpoints have the same weights, as far as names and shapes agree, in the precision of ``out``."""
    before, after = _weights(checkpoint_folder(start)), _weights(out)
    common = [name for name in after if name in before]
    for name in common:  # the first that differs ends it: what moved is told at the cost of a few tensors
        with safe_open(before[name], "pt") as old, safe_open(after[name], "pt") as new:
            was, now = old.get_tensor(name), new.get_tensor(name)
        if was.shape == now.shape and not torch.equal(was.to(now.dtype), now):
            return False
    return bool(common)


def _weights(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a checkpoint."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def save_trained(
    trainer: Any, settings: Spread, tokenizer: Any, out: Path, start: str | Path, summary: dict[str, float]
) -> None:
    """Save what was trained as a plain checkpoint: shards gathered, adapters merged, in the precision that
    ``settings`` compute in, which is half the disk of float32 masters. Call on every device.

    ``summary`` gets `moved_nothing`: 1 where all weights are those of the checkpoint ``start``.
    """
    model, dtype = trainer.accelerator.unwrap_model(trainer.model), getattr(torch, settings.dtype)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if settings.shards_weights else None
    if is_main():
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        if weights is None:
            model = model.to(dtype)
        else:
            weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model.config.dtype = dtype
        save(model, tokenizer, out, weights)
        summary["moved_nothing"] = float(moved_nothing(start, out))
        if summary["moved_nothing"]:
            print(
                f"warning: {out}: no weight differs from those of {start}; train for more steps, at a higher rate or, "
                "where bfloat16 rounds the steps away, in float32.",
                file=sys.stderr,
            )
    trainer.accelerator.wait_for_everyone()
