"""Supervised fine-tuning of a base model on dialogues (v1's SFT backbones); transformers.Trainer, assistant turns only.

The tiny models of the micro-world are sso/sft.py's.
"""

import shutil
from pathlib import Path
from typing import Any

from sso import distributed
from sso.chat import bare_tokenizer, load_model, load_tokenizer, naming
from sso.config import Sft
from sso.errors import InputError
from sso.hub import checkpoint, rows
from sso.records import Message
from sso.sft import arguments, tokens
from sso.trainer import go
from sso.tuning import save_trained


def tokenizer_for(base: Path, template: str | None) -> Any:
    """The base model's tokenizer; without a template of its own it takes that of the checkpoint ``template``.

    Raises:
        InputError: neither has one, or the template's control tokens are no single tokens of the base model's.
    """
    if template is None:
        tokenizer = load_tokenizer(base)
        tokenizer.outside = {}  # training gives all of its tokens embeddings
        return tokenizer
    tokenizer, other = bare_tokenizer(base), load_tokenizer(checkpoint(template))
    tokenizer.chat_template = other.chat_template
    vocabulary = tokenizer.get_vocab()
    marks = [token for token in other.all_special_tokens if token in other.chat_template]
    added = [token for token in marks if token not in vocabulary]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    if added:
        print(f"sft: {len(added)} tokens of the template are new to the model: {', '.join(added)}")
    return tokenizer


def dialogues(settings: Sft, tokenizer: Any) -> Any:
    """The tokenized dialogues as a memory-mapped data set with input_ids and labels, cut at ``max_length`` tokens.

    Raises:
        InputError: the data have no `messages`, or none has an assistant's turn within ``max_length``.
    """
    assert settings.data is not None, "without them the corpus is the micro-world's"
    found = rows(settings.data, settings.split, settings.limit)
    if "messages" not in found.column_names:
        raise InputError(f"{settings.data}: no column `messages`; it has {', '.join(found.column_names)}.")

    def encode(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        with naming([f"{settings.data}:{number + 1}"], "row"):
            made = tokens(tokenizer, [Message(role=m["role"], content=m["content"]) for m in row["messages"]])
        return {key: ids[: settings.max_length] for key, ids in made.items()}

    made = found.map(encode, with_indices=True, remove_columns=found.column_names, desc="tokenize")
    kept = made.filter(lambda row: any(label >= 0 for label in row["labels"]), desc="filter")
    if len(kept) < len(made):
        print(
            f"sft: {len(made) - len(kept)} of {len(made)} dialogues have no answer within {settings.max_length} tokens"
        )
    if not len(kept):
        raise InputError(f"{settings.data}: no dialogue has an answer within {settings.max_length} tokens.")
    return kept


def train(start: str, settings: Sft, seed: int, out: Path, log: Any = None) -> dict[str, float]:
    """Fine-tune the checkpoint ``start`` and save model and tokenizer to ``out``; goes on from its last checkpoint."""
    from transformers import DataCollatorForSeq2Seq, Trainer
    from transformers.trainer_utils import get_last_checkpoint

    engine = distributed.engine_arguments(settings) | {"per_device_train_batch_size": settings.micro_batch_size}
    steps = settings.batch_size / (settings.micro_batch_size * distributed.world_size())
    if steps != int(steps) or steps < 1:
        raise InputError(
            f"sft.batch_size: {settings.batch_size} is no multiple of micro_batch_size {settings.micro_batch_size} "
            f"times {distributed.world_size()} devices."
        )
    if "deepspeed" in engine:
        engine["deepspeed"] = engine["deepspeed"] | {"gradient_accumulation_steps": "auto"}
    scratch = out.with_name(f".{out.name}.checkpoints")
    how = arguments(
        scratch,
        seed,
        **engine,
        max_steps=settings.steps,
        num_train_epochs=settings.epochs,
        gradient_accumulation_steps=int(steps),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        bf16=settings.dtype == "bfloat16",
        train_sampling_strategy="group_by_length",
        logging_steps=10,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=1,
    )
    base = checkpoint(start)
    tokenizer = tokenizer_for(base, settings.chat_template)
    with how.main_process_first(desc="tokenize"):
        data = dialogues(settings, tokenizer)
    model = load_model(base)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = Trainer(
        model=model,
        args=how,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, pad_to_multiple_of=8),
    )
    last = get_last_checkpoint(str(scratch)) if scratch.is_dir() else None
    result = go(trainer, settings.engine, last, "sft")
    for row in trainer.state.log_history:
        if log is not None and "loss" in row:
            log(row["step"], {"loss": row["loss"], "learning_rate": row["learning_rate"]})
    save_trained(trainer, settings, tokenizer, out)
    if distributed.is_main():
        shutil.rmtree(scratch, ignore_errors=True)
    return {"train_loss": result.training_loss, "parameters": model.num_parameters(), "examples": len(data)}
