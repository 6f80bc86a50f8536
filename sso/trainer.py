"""PreferenceTrainer: any objective of config/objectives.yaml on `transformers.Trainer`.

The loss is a mean over the samples of the global batch, whatever the micro-batches and the number of devices: every
device reads the whole batch, computes the same plan of micro-batches and takes its own. Reference scores come from
disk; no reference model is in memory. Knows nothing of how triples are sampled or which arm this is.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, Trainer

from sso.checkpoints import SAVED
from sso.config import Optimization
from sso.distributed import engine_arguments, keep_outputs, world_size
from sso.errors import InputError
from sso.logprobs import Scorer
from sso.objective import Node, Objective, Scores
from sso.packing import Sample, cost, plan, to_device
from sso.progress import show_steps
from sso.reference import Reference
from sso.sft import arguments

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of a device, by a part of its name (the makers' data sheets); for MFU."""

Item = tuple[Sample, torch.Tensor]
"""A sample and its reference scores [nodes]."""


class Rows(torch.utils.data.Dataset):
    """Samples with their line of reference scores; without any (reference-free losses) the line is NaN."""

    def __init__(self, samples: Sequence[Sample], reference: Reference | None, nodes: Sequence[Node]):
        self.samples = samples
        if reference is None:
            self.logp = torch.full((len(samples), len(nodes)), torch.nan)
        elif [s.id for s in samples] != reference.ids:
            raise InputError("the reference scores belong to other records; delete the file and score again.")
        else:
            self.logp = reference.logp[:, [reference.column(node) for node in nodes]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return self.samples[index], self.logp[index]


def order(seed: int, epoch: int) -> torch.Generator:
    """What an epoch's order is drawn from: seed and epoch alone."""
    return torch.Generator().manual_seed((seed << 20) + epoch)


class Batches(torch.utils.data.Sampler[list[int]]):
    """Global batches, in an order that seed and epoch alone fix."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer, also when it resumes within an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        samples = torch.randperm(self.count, generator=order(self.seed, self.epoch)).tolist()
        return (samples[i : i + self.batch_size] for i in range(0, self.count, self.batch_size))


class Loader(torch.utils.data.DataLoader):
    """A DataLoader that hands the epoch on to `Batches`."""

    batch_sampler: Batches

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class MarkingTrainer(Trainer):
    """Marks a checkpoint once it is whole (sso/checkpoints.py)."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}" / SAVED).touch()


class GlobalBatchTrainer(MarkingTrainer):
    """Minimises a mean over the samples of the global batch, in micro-batches that change nothing but memory.

    A subclass says what a sample costs and what its loss is, and adds what is to be logged to ``_sums``: sums over
    samples by name, and `samples`, `tokens`, `places` (tokens with padding) and `flops`.
    """

    model: PreTrainedModel
    train_dataset: Any

    def __init__(self, *args: Any, settings: Optimization, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = settings
        if settings.engine == "fsdp2":
            keep_outputs(self.accelerator)
        self.peak = _peak_flops()
        self._sums: dict[str, float] = {}
        self._ids: list[str] = []
        self._since = time.monotonic()

    def name(self, item: Any) -> str:
        """The id of an item of the training set."""
        raise NotImplementedError

    def cost(self, item: Any) -> int:
        """Tokens of an item."""
        raise NotImplementedError

    def sample_losses(self, model: Any, items: list[Any], counts: bool = True) -> torch.Tensor:
        """Loss of each item of a micro-batch, zero where it does not count. [items]."""
        raise NotImplementedError

    def plan(self, costs: Sequence[int]) -> list[list[list[int]]]:
        """Micro-batches by device, see `packing.plan`."""
        return plan(costs, self.settings.tokens_per_batch, self.args.world_size)

    def get_train_dataloader(self) -> Loader:
        """Global batches as lists of items, the same on every device."""
        batches = Batches(len(self.train_dataset), self.settings.batch_size, self.args.seed)
        return Loader(self.train_dataset, batch_sampler=batches, collate_fn=list)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        return [next(epoch_iterator) for _ in range(num_batches)], None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted by micro-batch

    def training_step(  # type: ignore[override]  # a batch is a list of items here, not a mapping of tensors
        self, model: Any, items: list[Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of this device's micro-batches; returns its part of the mean loss."""
        model.train()
        self._ids = [self.name(item) for item in items]
        costs, devices = [self.cost(item) for item in items], self.args.world_size
        mine = self.plan(costs)[self.args.process_index]
        smallest = min(range(len(items)), key=costs.__getitem__)
        state, total = self.accelerator.gradient_state, torch.zeros((), device=self.args.device)
        plain = self.accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        for step, members in enumerate(mine, 1):
            # All devices do the same number of passes: sharded weights are gathered by all. An idle pass weighs 0.
            batch = [items[i] for i in members or [smallest]]
            last = step == len(mine)
            state._set_sync_gradients(last)
            with self.accelerator.no_sync(model) if plain and not last else nullcontext():
                # Devices' gradients are averaged, hence the factor.
                loss = self.sample_losses(model, batch, bool(members)).sum() * devices / len(items)
                self.accelerator.backward(loss, **self._backward)
            total += loss.detach()
        return total

    @property
    def _backward(self) -> dict[str, Any]:
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return {"scale_wrt_gas": False} if deepspeed else {}

    def check_finite(self, losses: torch.Tensor, items: list[Any]) -> None:
        """Raise InputError that names the items whose losses are not finite."""
        finite = torch.isfinite(losses)
        if not finite.all():
            bad = [self.name(item) for item, good in zip(items, finite.tolist(), strict=True) if not good]
            raise InputError(
                f"the loss is not finite for {_some(bad)}; lower the learning rate, or look at these records."
            )

    def add(self, sums: dict[str, float], counts: bool) -> None:
        """Add a micro-batch's sums, zero where it does not count, to those that the next `log` takes.

        An idle device has to add them too: devices' sums are united name by name.
        """
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + (value if counts else 0.0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means over the samples since the last call, over all devices, and the speed.

        Raises:
            InputError: the gradient's norm is not finite; names the samples of the step.
        """
        if self._sums and "loss" in logs:
            if not math.isfinite(logs.get("grad_norm") or 0.0):
                raise InputError(
                    f"step {self.state.global_step}: the gradient is not finite, though the losses of "
                    f"{_some(self._ids)} are; lower learning_rate, or train in float32."
                )
            names = sorted(self._sums)
            values = torch.tensor([self._sums[n] for n in names], dtype=torch.float64, device=self.args.device)
            sums = dict(zip(names, self.accelerator.reduce(values, "sum").tolist(), strict=True))
            seconds, self._since = time.monotonic() - self._since, time.monotonic()
            samples, tokens, places, flops = (sums.pop(n) for n in ("samples", "tokens", "places", "flops"))
            self.state.total_flos += flops
            logs |= {name: value / samples for name, value in sums.items()}
            logs |= {"tokens_per_s": tokens / seconds, "padding": 1 - tokens / places}
            if self.peak:
                logs["mfu"] = flops / seconds / self.peak / self.args.world_size
            self._sums = {}
        super().log(logs, *args, **kwargs)


class PreferenceTrainer(GlobalBatchTrainer):
    """Minimises an `Objective` averaged over the samples of the global batch."""

    train_dataset: Rows
    objective: Objective

    def __init__(self, *args: Any, objective: Objective, scorer: Scorer, **kwargs: Any):
        super().__init__(*args, settings=objective.training, **kwargs)
        self.objective, self.scorer = objective, scorer
        self._head, self._body = _weights(self.model)
        self._costs = {s.id: cost(s, scorer.nodes, scorer.layout) for s in self.train_dataset.samples}

    def name(self, item: Item) -> str:
        return item[0].id

    def cost(self, item: Item) -> int:
        return self._costs[item[0].id]

    def sample_losses(self, model: Any, items: list[Item], counts: bool = True) -> torch.Tensor:
        """Loss of each sample of a micro-batch, zero where it does not count. [samples].

        Raises:
            InputError: a loss is not finite; names the samples.
        """
        batch = to_device(self.scorer.batch([sample for sample, _ in items]), self.args.device)
        reference = torch.stack([logp for _, logp in items]).to(self.args.device)
        with self.compute_loss_context_manager():
            logp = self.scorer(model, batch)
        scores = Scores(
            *({n: t[:, i] for i, n in enumerate(self.scorer.nodes)} for t in (logp, reference, batch["tokens"]))
        )
        losses = self.objective(scores)
        if counts:
            self.check_finite(losses, items)
        self._record(scores, losses, batch, counts)
        return losses if counts else losses * 0.0

    @torch.no_grad()
    def _record(self, scores: Scores, losses: torch.Tensor, batch: dict[str, Any], counts: bool) -> None:
        rows = {"loss_per_sample": losses}
        for contrast, term in zip(self.objective.contrasts, self.objective.terms(scores), strict=True):
            name = f"{contrast.context}:{contrast.winner}>{contrast.loser}"
            rows |= {f"{name}/base": term["base"], f"{name}/sft": term["sft"], f"{name}/margin": term["margin"]}
            rows[f"{name}/accuracy"] = (term["margin"] > 0).float()
        if self.objective.uses_weight:
            rows["W"] = self.objective.weight(scores)
        places = batch["input_ids"].numel()
        forest = self.scorer.layout == "forest"
        seen = places if forest else float(batch["attention_mask"].sum())
        scored = len(batch["target"]) if forest else batch["response_mask"].numel()
        totals = torch.stack([value.sum().double() for value in rows.values()]).tolist()
        sums = dict(zip(rows, totals, strict=True))
        sums |= {"samples": len(losses), "tokens": seen, "places": places}
        sums["flops"] = 6.0 * (self._body * sums["tokens"] + self._head * scored)
        self.add(sums, counts)


def _weights(model: Any) -> tuple[int, int]:
    """Weights of the head, and those that every token is multiplied with: all but embeddings and head."""

    def size(weight: Any) -> int:
        return getattr(weight, "ds_numel", weight.numel())  # ZeRO-3 keeps a part of each here

    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return size(head), sum(size(p) for p in model.parameters() if p is not head and p is not embedding)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(f"sample {i!r}" for i in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _peak_flops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def training_arguments(training: Optimization, learning_rate: float, seed: int, workspace: Path) -> Any:
    """TrainingArguments; with ZeRO-3 they must exist before the model is loaded, which is then loaded in parts."""
    how = arguments(
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
    how._n_gpu = min(how.n_gpu, 1)  # one process a device, never DataParallel
    return how


ENGINES = {"ddp": ("NO", "MULTI_CPU", "MULTI_GPU"), "fsdp2": ("FSDP",)}
"""What accelerate calls each engine; all others are DEEPSPEED."""


def check_engine(trainer: Trainer, engine: str) -> None:
    """Raise InputError where another engine, or fewer processes, would run than were asked for.

    transformers and accelerate fall back on plain or lone processes without a word: on CPU, for FSDP.
    """
    runs = trainer.accelerator.distributed_type.value
    if runs not in ENGINES.get(engine, ("DEEPSPEED",)) or trainer.args.world_size != world_size():
        raise InputError(
            f"engine {engine}: {runs} with {trainer.args.world_size} of {world_size()} processes would run instead; "
            "FSDP needs GPUs, DeepSpeed a launcher (set devices, or start with torchrun)."
        )


def fit(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    reference: Reference | None,
    objective: Objective,
    how: Any,
    checkpoint: Path | None = None,
    callbacks: Sequence[Any] = (),
) -> PreferenceTrainer:
    """Train ``model`` in place, from a checkpoint if there is one; returns the trainer.

    Raises:
        InputError: the engine that the training names is not what runs (its libraries fall back silently).
    """
    training = objective.training
    scorer = Scorer(model, objective.nodes, tokenizer.pad_token_id, training.layout)
    trainer = PreferenceTrainer(
        model=model,
        args=how,
        train_dataset=Rows(samples, reference, objective.nodes),
        callbacks=list(callbacks),
        objective=objective,
        scorer=scorer,
    )
    with scorer.attention(model):
        go(trainer, training.engine, checkpoint)
    return trainer


def go(trainer: Trainer, engine: str, checkpoint: str | Path | None, what: str = "train") -> Any:
    """Train, from a checkpoint if there is one, with the steps shown as those of ``what``; returns Trainer's result.

    Raises:
        InputError: another engine would run than was asked for, or the checkpoint holds more than tensors.
    """
    check_engine(trainer, engine)
    show_steps(trainer, what)
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError as error:
        raise InputError(
            f"{checkpoint}: holds what a checkpoint of tensors does not; delete the folder to start the training over."
        ) from error


def what_ran(trainer: PreferenceTrainer) -> str:
    """The class that wrapped the model, ZeRO's stage if it was DeepSpeed's, and the number of processes."""
    wrapped = trainer.model_wrapped
    stage = getattr(wrapped, "zero_optimization_stage", None)
    zero = f" with ZeRO stage {stage()}" if callable(stage) else ""
    return f"{type(wrapped).__name__}{zero} on {trainer.args.world_size} processes, {trainer.scorer.layout} layout"
