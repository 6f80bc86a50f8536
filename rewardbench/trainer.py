"""The Bradley-Terry loss on global batches of pairs, in micro-batches that change nothing but memory and speed.

Both sides of a pair are in the same one: in a forest their prompt stands once (sso/packing.py); else they are rows,
padded on the right to the longest, and pairs of like length go together. Knows nothing of where pairs come from.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rewardbench.settings import Reward
from sso.attention import layout_of
from sso.packing import in_row, to_device
from sso.reward_model import in_batch, read
from sso.train.global_batch import GlobalBatchTrainer


@dataclass(frozen=True)
class Sides:
    """Token ids of prompt with chosen and prompt with rejected response."""

    id: str
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None

    def __len__(self) -> int:
        """Tokens that the pair takes in a batch of its own."""
        return 2 * max(len(self.chosen), len(self.rejected))


def bradley_terry(winners: Tensor, losers: Tensor, margins: Tensor | float = 0.0, centering: float = 0.0) -> Tensor:
    """-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2 of each pair, in nats. [pairs]."""
    return -logsigmoid(winners - losers - margins) + centering * (winners + losers) ** 2


def bucketed(costs: Sequence[int], budget: int, devices: int = 1) -> list[list[list[int]]]:
    """Micro-batches by device, ``[device][step]`` lists of indices into ``costs``, neighbours by length.

    A micro-batch costs its longest member times their number: at most ``budget``, or it is one pair. Every device
    has the same number of steps, the fewest possible, and the largest micro-batch is as small as they allow; some are
    empty only where there are fewer samples than micro-batches.
    """
    steps = -(-len(_groups(costs, budget)) // devices)
    smallest = bisect.bisect_left(range(budget), True, key=lambda b: len(_groups(costs, b)) <= steps * devices)
    groups = _groups(costs, smallest)
    while len(groups) < min(steps * devices, len(costs)):
        largest = max(range(len(groups)), key=lambda g: (len(groups[g]) > 1, costs[groups[g][0]] * len(groups[g])))
        half = len(groups[largest]) // 2
        groups[largest : largest + 1] = groups[largest][:half], groups[largest][half:]
    groups += [[] for _ in range(steps * devices - len(groups))]
    return [groups[device::devices] for device in range(devices)]


def _groups(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbours by length, the longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        # The first of a group is its longest.
        if not groups or costs[groups[-1][0]] * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(i)
    return groups


class RewardTrainer(GlobalBatchTrainer):
    """Minimises the mean Bradley-Terry loss of the global batch's pairs."""

    settings: Reward

    def __init__(self, *args: Any, settings: Reward, **kwargs: Any):
        super().__init__(*args, settings=settings, **kwargs)
        self.layout = layout_of(self.model.config, settings.layout)
        # ZeRO-3 keeps a part of each weight here.
        sizes = {id(p): getattr(p, "ds_numel", p.numel()) for p in self.model.parameters()}
        self._body = sum(sizes.values()) - sizes[id(self.model.get_input_embeddings().weight)]

    def name(self, item: Sides) -> str:
        return item.id

    def cost(self, item: Sides) -> int:
        return in_row((item.chosen, item.rejected)) if self.layout == "forest" else len(item)

    def plan(self, costs: Sequence[int]) -> list[list[list[int]]]:
        if self.layout == "forest":
            return super().plan(costs)
        return bucketed(costs, self.settings.tokens_per_batch, self.args.world_size)

    def sample_losses(self, model: Any, items: list[Sides], counts: bool = True) -> Tensor:
        """Loss of each pair, zero where it does not count. [pairs]."""
        sequences = [item.chosen for item in items] + [item.rejected for item in items]
        batch = to_device(in_batch(sequences, self.model.config.pad_token_id, self.layout), self.args.device)
        with self.compute_loss_context_manager():
            winners, losers = read(model, batch).float().chunk(2)
        own = [1.0 if item.margin is None else item.margin for item in items]
        margins = self.settings.margin * torch.tensor(own, device=self.args.device)
        losses = bradley_terry(winners, losers, margins, self.settings.centering)
        places = batch["input_ids"].numel()
        tokens = batch["attention_mask"].sum().double() if self.layout == "padded" else places
        rows = {"margin": winners - losers, "accuracy": winners > losers, "reward": (winners + losers) / 2}
        sums: dict[str, Tensor | float] = {name: value.detach().sum().double() for name, value in rows.items()}
        sums |= {"samples": len(items), "tokens": tokens, "places": places}
        self.tally.add([item.id for item in items], losses, sums | {"flops": 6.0 * self._body * tokens}, counts)
        return losses if counts else losses * 0.0
