"""PreferenceTrainer: any objective on `transformers.Trainer`, over the samples of the global batch.

Reference scores come from disk; no reference model is in memory. Knows nothing of how triples are sampled or which arm
this is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from sso.errors import InputError
from sso.logprobs import Scorer
from sso.objective import Node, Objective, Scores
from sso.packing import Sample, cost, to_device
from sso.reference import Reference
from sso.train.global_batch import GlobalBatchTrainer
from sso.train.run import go

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
        """Loss of each sample of a micro-batch, zero where it does not count. [samples]."""
        batch = to_device(self.scorer.batch([sample for sample, _ in items]), self.args.device)
        reference = torch.stack([logp for _, logp in items]).to(self.args.device)
        with self.compute_loss_context_manager():
            logp = self.scorer(model, batch)
        scores = Scores(
            *({n: t[:, i] for i, n in enumerate(self.scorer.nodes)} for t in (logp, reference, batch["tokens"]))
        )
        losses = self.objective(scores)
        self.tally.add(list(map(self.name, items)), losses, self._sums(scores, losses, batch), counts)
        return losses if counts else losses * 0.0

    @torch.no_grad()
    def _sums(self, scores: Scores, losses: torch.Tensor, batch: dict[str, Any]) -> dict[str, torch.Tensor | float]:
        rows = {"loss_per_sample": losses}
        for contrast, term in zip(self.objective.contrasts, self.objective.terms(scores), strict=True):
            name = f"{contrast.context}:{contrast.winner}>{contrast.loser}"
            rows |= {f"{name}/base": term["base"], f"{name}/sft": term["sft"], f"{name}/margin": term["margin"]}
            rows[f"{name}/accuracy"] = (term["margin"] > 0).float()
        if self.objective.uses_weight:
            rows["W"] = self.objective.weight(scores)
        places = batch["input_ids"].numel()
        forest = self.scorer.layout == "forest"
        seen = places if forest else batch["attention_mask"].sum().double()
        scored = len(batch["target"]) if forest else batch["response_mask"].numel()
        sums: dict[str, torch.Tensor | float] = {name: value.sum().double() for name, value in rows.items()}
        flops = 6.0 * (self._body * seen + self._head * scored)
        return sums | {"samples": len(losses), "tokens": seen, "places": places, "flops": flops}


def _weights(model: Any) -> tuple[int, int]:
    """Weights of the head, and those that every token is multiplied with: all but embeddings and head."""

    def size(weight: Any) -> int:
        return getattr(weight, "ds_numel", weight.numel())  # ZeRO-3 keeps a part of each here

    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return size(head), sum(size(p) for p in model.parameters() if p is not head and p is not embedding)


def with_adapters(model: Any, training: Any, seed: int) -> Any:
    """The model with low-rank adapters where the training asks for them: the reference is the model without.

    What they start from depends on ``seed`` alone.
    """
    if training.lora is None:
        return model
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    lora = training.lora
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, settings)


def fit(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    reference: Reference | None,
    objective: Objective,
    arguments: TrainingArguments,
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
        args=arguments,
        train_dataset=Rows(samples, reference, objective.nodes),
        callbacks=list(callbacks),
        objective=objective,
        scorer=scorer,
    )
    with scorer.attention(model):
        go(trainer, training.engine, checkpoint)
    return trainer


def what_ran(trainer: PreferenceTrainer) -> str:
    """The class that wrapped the model, ZeRO's stage if it was DeepSpeed's, and the number of processes."""
    wrapped = trainer.model_wrapped
    stage = getattr(wrapped, "zero_optimization_stage", None)
    zero = f" with ZeRO stage {stage()}" if callable(stage) else ""
    return f"{type(wrapped).__name__}{zero} on {trainer.args.world_size} processes, {trainer.scorer.layout} layout"
