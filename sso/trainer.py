"""PreferenceTrainer: any objective of config/objectives.yaml on `transformers.Trainer`.

The batch is a mean over samples, whatever the micro-batch size, the accumulation steps or the number of
devices. Reference scores come from disk; no reference model is in memory. Knows nothing of how triples are
sampled or which arm this is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from sso.config import Training
from sso.errors import InputError
from sso.logprobs import Sample, collate, response_logps
from sso.objective import Node, Objective, Scores, build
from sso.reference import Reference
from sso.sft import arguments


class Rows(torch.utils.data.Dataset):
    """Samples with their line of reference scores."""

    def __init__(self, samples: Sequence[Sample], reference: Reference, nodes: Sequence[Node]):
        if [s.id for s in samples] != reference.ids:
            raise InputError("the reference scores belong to other records; delete the file and score again.")
        columns = [reference.column(node) for node in nodes]
        self.samples, self.logp = samples, reference.logp[:, columns]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Sample, torch.Tensor]:
        return self.samples[index], self.logp[index]


@dataclass
class Collator:
    """A micro-batch: the rows of `sso.logprobs.collate` and the reference scores [samples, nodes]."""

    nodes: Sequence[Node]
    pad: int

    def __call__(self, items: list[tuple[Sample, torch.Tensor]]) -> dict[str, Any]:
        rows = collate([sample for sample, _ in items], self.nodes, self.pad)
        return {**rows, "reference": torch.stack([logp for _, logp in items])}


class PreferenceTrainer(Trainer):
    """Minimises an `Objective` averaged over the samples of the global batch."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.objective = objective
        # The loss is divided by the number of samples of the whole step here, not per micro-batch by Trainer.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, float] = {}
        self._count = 0

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        count = torch.tensor(sum(len(batch["reference"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> Scores:
        """Policy and reference scores of a micro-batch by node."""
        nodes, reference = self.objective.nodes, inputs["reference"]
        logp, tokens = response_logps(model, inputs)
        logp, tokens = logp.view(-1, len(nodes)), tokens.view(-1, len(nodes))
        return Scores(
            {node: logp[:, i] for i, node in enumerate(nodes)},
            {node: reference[:, i] for i, node in enumerate(nodes)},
            {node: tokens[:, i] for i, node in enumerate(nodes)},
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        scores = self.scores(model, inputs)
        losses = self.objective(scores)
        if not torch.isfinite(losses).all():
            raise InputError("the loss is not finite; lower learning_rate or beta, or look for empty responses.")
        self._record(scores, losses)
        # Gradients are averaged over devices afterwards, hence the factor.
        items = losses.numel() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() * self.args.world_size / items
        return (loss, losses) if return_outputs else loss

    @torch.no_grad()
    def _record(self, scores: Scores, losses: torch.Tensor) -> None:
        rows = {"loss_per_sample": losses}
        for contrast, term in zip(self.objective.contrasts, self.objective.terms(scores), strict=True):
            name = f"{contrast.context}:{contrast.winner}>{contrast.loser}"
            rows |= {f"{name}/base": term["base"], f"{name}/sft": term["sft"], f"{name}/margin": term["margin"]}
            rows[f"{name}/accuracy"] = (term["margin"] > 0).float()
        if self.objective.uses_weight:
            rows["W"] = self.objective.weight(scores)
        for name, value in rows.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.sum())
        self._count += losses.numel()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self._count and "loss" in logs:
            logs |= {name: total / self._count for name, total in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)


def train(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    reference: Reference,
    training: Training,
    learning_rate: float,
    seed: int,
    workspace: Path,
) -> list[dict[str, float]]:
    """Train ``model`` in place; returns the log, a row an optimizer step."""
    objective = build(training)
    micro, world = training.micro_batch_size, max(1, torch.cuda.device_count())
    if training.batch_size % (micro * world):
        raise InputError(f"batch_size {training.batch_size} is no multiple of {micro} x {world} devices.")
    trainer = PreferenceTrainer(
        model=model,
        args=arguments(
            workspace,
            seed,
            max_steps=training.max_steps,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=training.batch_size // (micro * world),
            learning_rate=learning_rate,
            lr_scheduler_type=training.scheduler,
            warmup_steps=training.warmup_ratio,
            max_grad_norm=training.max_grad_norm,
            optim=training.optimizer,
            bf16=training.dtype == "bfloat16",
            activation_checkpointing=training.gradient_checkpointing,
            logging_steps=1,
        ),
        train_dataset=Rows(samples, reference, objective.nodes),
        data_collator=Collator(objective.nodes, tokenizer.pad_token_id),
        objective=objective,
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]
