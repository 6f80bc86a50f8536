"""Supervised fine-tuning of a base model on dialogues (v1's SFT backbones); transformers.Trainer, assistant turns only.

The tiny models of the micro-world are sso/train/sft.py's.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from sso import dialogues
from sso.chat import bare_tokenizer, describe, end_of_turn, load_model, load_tokenizer
from sso.errors import InputError, first_of
from sso.hub import checkpoint, rows
from sso.jobs import distributed, lifeline
from sso.preferences import file_rows
from sso.records import digest, file_digest
from sso.train.run import Growing, MarkingTrainer, arguments, curve, go, kept, last_checkpoint, order, save_trained
from sso.train.settings import Sft
from sso.train.sft import answers, labels

REFUSED, TOO_LONG = "refused by the chat template", "no answer within max_length"
"""Why a dialogue is left out, beside what sso/dialogues.py names."""
TEXT = "json"
"""The column of rows that are kept as text."""
ROWS_A_PROCESS = 1000
"""Fewer dialogues than twice this are tokenized by one process, in seconds."""


def tokenizer_for(base: Path, template: str | None) -> Any:
    """The base model's tokenizer; without a template of its own it takes that of the checkpoint ``template``.

    Raises:
        InputError: neither has one, or the template's control tokens are no single tokens of the base model's.
    """
    if template is None:
        tokenizer = load_tokenizer(base)
        tokenizer.outside = {}  # training gives all of its tokens embeddings
        return _ending_turns(tokenizer)
    tokenizer, other = bare_tokenizer(base), load_tokenizer(checkpoint(template))
    tokenizer.chat_template = other.chat_template
    vocabulary = tokenizer.get_vocab()
    marks = [token for token in other.all_special_tokens if token in other.chat_template]
    added = [token for token in marks if token not in vocabulary]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    if added:
        print(f"sft: {len(added)} tokens of the template are new to the model: {', '.join(added)}")
    return _ending_turns(tokenizer)


def _ending_turns(tokenizer: Any) -> Any:
    """The tokenizer with the end of a turn as its eos: a base model's own ends documents, which answers are not."""
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    return tokenizer


def tokenized(settings: Sft, tokenizer: Any) -> tuple[Any, dict[str, float]]:
    """The dialogues as a memory-mapped data set with input_ids and labels, cut at ``max_length`` tokens; and counts
    for the run's record: `examples`, rows left out by reason, `answers_not_scored`.

    What is left out is named on standard error.

    Raises:
        InputError: the data can't be read, or no row is a dialogue with an answer within ``max_length``.
    """
    from datasets import Features, List, Value

    found = _rows(settings)

    def encode(row: dict[str, Any], number: int, made_by: str) -> dict[str, Any]:
        row = json.loads(row[TEXT]) if TEXT in row else row
        own = row.get("id")
        made = {"id": str(number if own is None else own), "reason": "", "unscored": 0, "input_ids": [], "labels": []}
        try:
            turns = dialogues.dialogue(row)
            ids, spans = answers(tokenizer, turns)
        except dialogues.LeftOut as why:
            return made | {"reason": str(why)}
        except InputError:
            return made | {"reason": REFUSED}
        if spans[0][0] >= settings.max_length:
            return made | {"reason": TOO_LONG}
        unscored = sum(turn.role == "assistant" for turn in turns) - len(spans)
        values = {"input_ids": ids, "labels": labels(ids, spans)}
        return made | {"unscored": unscored} | {key: value[: settings.max_length] for key, value in values.items()}

    whole, text = Value("int32"), Value("string")
    features = Features(id=text, reason=text, unscored=whole, input_ids=List(whole), labels=List(whole))
    processes = min(distributed.cores(), len(found) // ROWS_A_PROCESS)
    if processes > 1:
        os.register_at_fork(after_in_child=lifeline.die_with_parent)  # else a killed training leaves them behind
    made = found.map(
        encode,
        with_indices=True,
        fn_kwargs={"made_by": _made_by()},
        remove_columns=found.column_names,
        features=features,
        num_proc=processes if processes > 1 else None,
        desc="tokenize",
    )
    left_out: dict[str, list[str]] = {}
    numbers: dict[str, int] = {}
    for number, (key, reason) in enumerate(zip(made["id"], made["reason"], strict=True), 1):
        if reason:
            left_out.setdefault(reason, []).append(key)
            numbers[key] = number
    unscored = {key: count for key, count in zip(made["id"], made["unscored"], strict=True) if count}
    if distributed.is_main():
        dialogues.warn(left_out, str(settings.data), numbers)
        if unscored:
            print(
                f"warning: {settings.data}: {sum(unscored.values())} earlier answers of {len(unscored)} dialogues are "
                f"not scored, the chat template shows them in other tokens than they were said in: "
                f"{first_of(list(unscored))}",
                file=sys.stderr,
            )
    if left_out:
        made = made.filter(lambda reason: not reason, input_columns="reason", desc="filter")
    if not len(made):
        raise InputError(
            f"{settings.data}: no dialogue to train on ({dialogues.why(left_out, numbers)}); rows need `messages`, "
            f"`conversations`, or Alpaca's columns, and an answer within max_length {settings.max_length}."
        )
    lost = {"left_out_dialogues": len(numbers), **dialogues.counts(left_out)}
    counts: dict[str, float] = {"examples": len(made), **lost, "answers_not_scored": sum(unscored.values())}
    return made.select_columns(["input_ids", "labels"]), counts


@cache
def _made_by() -> str:
    """Digest of what makes rows and tokens: the suite's sources and the libraries' versions. The cache of `datasets`
    knows functions of a module by their name alone, and would take what an older suite made for this one's."""
    package = Path(__file__).parents[1]
    sources = {str(file.relative_to(package)): file_digest(file) for file in sorted(package.rglob("*.py"))}
    return digest([sources, *map(version, ("transformers", "tokenizers"))])


def _rows(settings: Sft) -> Any:
    """The rows of a data set; those of a file of JSON as text, since columns would give them all one shape."""
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    assert settings.data is not None, "without them the corpus is the micro-world's"
    path = Path(settings.data)
    if not path.is_file() or path.suffix == ".parquet":
        return rows(settings.data, settings.split, settings.limit)
    own = {"path": str(path), "made_of": f"{file_digest(path)} {_made_by()}"}
    try:
        found = Dataset.from_generator(_texts, Features({TEXT: Value("string")}), gen_kwargs=own)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    return found.select(range(min(settings.limit, len(found)))) if settings.limit else found


def _texts(path: str, made_of: str) -> Iterator[dict[str, str]]:
    """The rows of a file; ``made_of`` makes a changed file another one to the cache of `datasets`."""
    for row in file_rows(Path(path)):
        yield {TEXT: json.dumps(row)}


def _key(base: Path, tokenizer: Any, settings: Sft, seed: int) -> dict[str, Any]:
    """What a fine-tuning's checkpoints depend on."""
    local = Path(str(settings.data))
    data = file_digest(local) if local.is_file() else None
    about = {"settings": settings.model_dump(), "seed": seed, "template": describe(tokenizer)}
    return {**about, "model": file_digest(base), "data": data}


class ByLength(LengthGroupedSampler):
    """Dialogues of like length together, in an order that seed and epoch alone fix.

    The trainer tells the epoch: its state is another one after resuming.
    """

    def __init__(self, batch_size: int, lengths: list[int], trainer: Trainer):
        super().__init__(batch_size, lengths=lengths)
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        self.generator = order(self.trainer.args.seed, int(self.trainer.state.epoch or 0))
        return super().__iter__()


class AnswersCollator(DataCollatorForSeq2Seq):
    """Batches whose logits begin where the first answer does: before it, on prompts, no logit is of any use.

    The model takes ``logits_to_keep``, and ``labels`` are of these last positions alone.
    """

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        batch = super().__call__(features, return_tensors)
        targets = (batch["labels"] != self.label_pad_token_id).any(0)
        keep = len(targets) - max(0, int(targets.int().argmax()) - 1)  # a position predicts the next one's token
        return {**batch, "labels": batch["labels"][:, -keep:], "logits_to_keep": keep}


class ResumingTrainer(MarkingTrainer):
    """Goes on within an epoch with the batches that are left."""

    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        return ByLength(batch, lengths, self)


def train(start: str, settings: Sft, seed: int, out: Path, run: Any = None) -> dict[str, float]:
    """Fine-tune the checkpoint ``start`` and save model and tokenizer to ``out``; goes on from its last checkpoint.

    ``run`` is a `sso.jobs.tracking.Run`, which gets the loss by step.
    """
    engine = distributed.engine_arguments(settings) | {"per_device_train_batch_size": settings.micro_batch_size}
    steps = settings.batch_size / (settings.micro_batch_size * distributed.world_size())
    if steps != int(steps) or steps < 1:
        raise InputError(
            f"sft.batch_size: {settings.batch_size} is no multiple of micro_batch_size {settings.micro_batch_size} "
            f"times {distributed.world_size()} devices; change one of them."
        )
    if "deepspeed" in engine:
        engine["deepspeed"] = engine["deepspeed"] | {"gradient_accumulation_steps": "auto"}
    scratch = out.with_name(f".{out.name}.checkpoints")
    trainer_arguments = arguments(
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
        save_total_limit=2,
    )
    base = checkpoint(start)
    tokenizer = tokenizer_for(base, settings.chat_template)
    with trainer_arguments.main_process_first(desc="tokenize"):
        data, counts = tokenized(settings, tokenizer)
    model = load_model(base)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with kept(scratch):
        last = last_checkpoint(scratch, lambda: _key(base, tokenizer, settings, seed), "sft")
        trainer = ResumingTrainer(
            model=model,
            args=trainer_arguments,
            train_dataset=data,
            data_collator=AnswersCollator(tokenizer, padding=True, pad_to_multiple_of=8),
            callbacks=[Growing(run)] if run else [],
        )
        result = go(trainer, settings.engine, last, "sft")
        for step, values in curve(trainer.state.log_history) if run else ():
            run.log(step, values)
        save_trained(trainer, settings, tokenizer, out, base, counts)
    return {"train_loss": result.training_loss, "parameters": model.num_parameters(), **counts}
