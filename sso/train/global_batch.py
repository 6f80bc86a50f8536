"""GlobalBatchTrainer: a mean loss over the samples of the global batch, whatever the micro-batches and devices.

Every device reads the whole batch, computes the same plan of micro-batches and takes its own. Knows nothing of what a
sample is or what its loss is.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from sso.errors import InputError, first_of
from sso.jobs.distributed import keep_outputs
from sso.packing import plan
from sso.train.run import MarkingTrainer, order
from sso.train.settings import Optimization

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of a device, by a part of its name (the makers' data sheets); for MFU."""


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


COUNTS = ("samples", "tokens", "places", "flops")
"""The sums that are logged as they are, not as means over samples. Places are tokens with padding."""


class Tally:
    """Losses and sums of micro-batches. They stay on the device, which nothing waits for before they are asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: dict[str, torch.Tensor | float] = {}
        self._losses: list[torch.Tensor] = []

    def add(
        self, names: Sequence[str], losses: torch.Tensor, sums: Mapping[str, torch.Tensor | float], counts: bool
    ) -> None:
        """Add a micro-batch: the names and losses of its samples, and sums over them, zero where it does not count.

        An idle device has to add its own too: devices' sums are united name by name.
        """
        self.names += names
        self._losses.append(losses.detach())
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + (value if counts else 0.0)

    def check_finite(self) -> None:
        """Raise InputError that names the first samples whose losses are not finite: later ones only follow."""
        if not self._losses or bool(torch.cat(self._losses).isfinite().all()):
            return
        names = iter(self.names)
        for losses in self._losses:
            finite = zip(losses.isfinite().tolist(), names, strict=False)
            if bad := [name for good, name in finite if not good]:
                raise InputError(
                    f"the loss is not finite for the samples {first_of(bad, 5)}; lower the learning rate, or look at "
                    "these records."
                )

    def values(self, device: torch.device) -> tuple[list[str], torch.Tensor]:
        """The sums' names, sorted, and values on ``device``."""
        names = sorted(self.sums)
        each = [torch.as_tensor(self.sums[name], dtype=torch.float64, device=device) for name in names]
        return names, torch.stack(each) if each else torch.zeros(0, dtype=torch.float64, device=device)


class GlobalBatchTrainer(MarkingTrainer):
    """Minimises a mean over the samples of the global batch, in micro-batches that change nothing but memory.

    A subclass says what a sample costs and what its loss is, and adds what is to be logged to ``tally``: sums over
    samples by name, and `COUNTS`. A loss that is not finite is found by the next log or checkpoint.
    """

    model: PreTrainedModel
    train_dataset: Any

    def __init__(self, *args: Any, settings: Optimization, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = settings
        if settings.engine == "fsdp2":
            keep_outputs(self.accelerator)
        self.peak = _peak_flops()
        self.tally = Tally()
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
        costs, devices = [self.cost(item) for item in items], self.args.world_size
        own_steps = self.plan(costs)[self.args.process_index]
        smallest = min(range(len(items)), key=costs.__getitem__)
        state, total = self.accelerator.gradient_state, torch.zeros((), device=self.args.device)
        plain = self.accelerator.distributed_type in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        for step, members in enumerate(own_steps, 1):
            # All devices do the same number of passes: sharded weights are gathered by all. An idle pass weighs 0.
            batch = [items[i] for i in members or [smallest]]
            last = step == len(own_steps)
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.tally.check_finite()  # what is broken is not kept
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means over the samples since the last call, over all devices, and the speed.

        Raises:
            InputError: a loss or the gradient's norm is not finite; names the samples.
        """
        self.tally.check_finite()  # at the end of the training too, of steps that no log has
        if self.tally.sums and "loss" in logs:
            tally, self.tally = self.tally, Tally()
            if not math.isfinite(logs.get("grad_norm") or 0.0):
                raise InputError(
                    f"step {self.state.global_step}: the gradient is not finite, though the losses of the "
                    f"samples {first_of(tally.names, 5)} are; lower learning_rate, or train in float32."
                )
            names, values = tally.values(self.args.device)
            sums = dict(zip(names, self.accelerator.reduce(values, "sum").tolist(), strict=True))
            seconds, self._since = time.monotonic() - self._since, time.monotonic()
            samples, tokens, places, flops = (sums.pop(n) for n in COUNTS)
            self.state.total_flos += flops
            logs |= {name: value / samples for name, value in sums.items()}
            logs |= {"tokens_per_s": tokens / seconds, "padding": 1 - tokens / places}
            if self.peak:
                logs["mfu"] = flops / seconds / self.peak / self.args.world_size
        super().log(logs, *args, **kwargs)


def _peak_flops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
