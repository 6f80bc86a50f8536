"""Supervised fine-tuning of a tiny model from scratch, on transformers.Trainer; loss on assistant turns only."""

from pathlib import Path
from typing import Any

from sso.chat import encode_prompt, encode_response, save_tokenizer
from sso.config import Backbone, Sft
from sso.progress import show_steps
from sso.records import Message, iter_json_lines, whole_folder


def tokens(tokenizer: Any, messages: list[Message]) -> dict[str, list[int]]:
    """input_ids and labels of a dialogue; labels are -100 outside the assistant's turns.

    Each turn is encoded as it is met when answering it, so that training and sampling see the same ids.
    """
    ids: list[int] = []
    labels: list[int] = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = encode_prompt(tokenizer, messages[:i])
        response = encode_response(tokenizer, message.content)
        labels += [-100] * (len(prompt) - len(ids)) + response
        ids = prompt + response
    return {"input_ids": ids, "labels": labels}


def arguments(out: Path, seed: int, **settings: Any) -> Any:
    """TrainingArguments with what all our trainings share: no checkpoints but asked for, no external reports."""
    import torch
    from transformers import TrainingArguments

    shared = {
        "seed": seed,
        "data_seed": seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "steps",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,  # sso.progress shows the steps
    }
    return TrainingArguments(output_dir=str(out), **{**shared, **settings})


def train(backbone: Backbone, settings: Sft, data: Path, seed: int, out: Path, log: Any = None) -> dict[str, float]:
    """Train from scratch and save model and tokenizer to ``out``. Returns final loss and tokens seen."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer

    from sso.micro.models import build

    model, tokenizer = build(backbone, seed)
    rows = [tokens(tokenizer, [Message.model_validate(m) for m in row["messages"]]) for _, row in iter_json_lines(data)]

    class ResponseTrainer(Trainer):
        """Runs the language-model head at the assistant's tokens alone: they are less than half."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            labels = inputs["labels"][:, 1:]
            scored = labels >= 0
            hidden = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            logits = model.lm_head(hidden.last_hidden_state[:, :-1][scored])
            return torch.nn.functional.cross_entropy(logits, labels[scored])

    trainer = ResponseTrainer(
        model=model,
        args=arguments(
            out,
            seed,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            train_sampling_strategy="group_by_length",
            logging_steps=max(1, settings.steps // 50),
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=8),
    )
    show_steps(trainer, "sft")
    result = trainer.train()
    for row in trainer.state.log_history:
        if log is not None and "loss" in row:
            log(row["step"], {"loss": row["loss"], "learning_rate": row["learning_rate"]})
    save(model, tokenizer, out)
    return {"train_loss": result.training_loss, "parameters": model.num_parameters(), "examples": len(rows)}


def save(model: Any, tokenizer: Any, out: Path, weights: dict[str, Any] | None = None) -> None:
    """A plain Hugging Face checkpoint, safetensors, whole or not at all; ``weights`` in place of the model's own."""
    with whole_folder(out) as folder:
        model.save_pretrained(folder, state_dict=weights)
        save_tokenizer(tokenizer, folder)
