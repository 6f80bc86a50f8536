"""Supervised fine-tuning of a tiny model from scratch, on transformers.Trainer; loss on assistant turns only."""

from pathlib import Path
from typing import Any

from sso import dialogues
from sso.chat import encode_prompt, encode_response
from sso.errors import InputError
from sso.jobs.progress import show_steps
from sso.preferences import file_rows
from sso.records import Message
from sso.settings import Backbone
from sso.train.settings import Sft


def tokens(tokenizer: Any, messages: list[Message]) -> dict[str, list[int]]:
    """input_ids and labels of a dialogue up to its last answer; labels are -100 outside its `answers`."""
    ids, spans = answers(tokenizer, messages)
    return {"input_ids": ids, "labels": labels(ids, spans)}


def labels(ids: list[int], spans: list[tuple[int, int]]) -> list[int]:
    """The ids within the spans [start, end), where they stand; -100 elsewhere."""
    made = [-100] * len(ids)
    for start, end in spans:
        made[start:end] = ids[start:end]
    return made


def answers(tokenizer: Any, messages: list[Message]) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a dialogue as they are when its last answer is given (`sso.chat.encode`'s), and where in them the answers
    stand that can be trained on: [start, end), each from its first token to its end-of-turn token.

    An earlier answer counts only where the dialogue begins with just the ids that prompt and answer have when that
    answer is given, but for white space around it, which some templates strip. Elsewhere the template shows the past
    in another way than the model said it (without its reasoning, say) or a token spans the answer's edge: no model
    that is sampled ever meets such ids, and the answer is not scored.
    """
    *earlier, last = [i for i, message in enumerate(messages) if message.role == "assistant"]
    prompt = encode_prompt(tokenizer, messages[:last])
    ids = prompt + encode_response(tokenizer, messages[last].content)
    spans = []
    for i in earlier:
        start, said = encode_prompt(tokenizer, messages[:i]), messages[i].content
        for text in dict.fromkeys([said, said.strip(), said.lstrip(), said.rstrip()]):
            own = start + encode_response(tokenizer, text)
            if prompt[: len(own)] == own:
                spans.append((len(start), len(own)))
                break
    return ids, [*spans, (len(prompt), len(ids))]


def train(backbone: Backbone, settings: Sft, data: Path, seed: int, out: Path, run: Any = None) -> dict[str, float]:
    """Train from scratch and save model and tokenizer to ``out``. Returns final loss and tokens seen.

    ``run`` is a `sso.jobs.tracking.Run`, which gets the loss by step.
    """
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer

    from sso.train.run import Growing, arguments, curve, save
    from sso.worlds.micro.models import build

    model, tokenizer = build(backbone, seed)
    found = dialogues.read(file_rows(data), lambda row, _: tokens(tokenizer, dialogues.dialogue(row)))
    dialogues.warn(found.left_out, data, found.numbers)
    rows = found.made
    if not rows:
        raise InputError(
            f"{data}: no dialogue to train on ({dialogues.why(found.left_out, found.numbers)}); "
            "rows need `messages` that end with an answer."
        )

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
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[Growing(run)] if run else [],
    )
    show_steps(trainer, "sft")
    result = trainer.train()
    for step, values in curve(trainer.state.log_history) if run else ():
        run.log(step, values)
    save(model, tokenizer, out)
    counts = {"examples": len(rows), "left_out_dialogues": len(found.numbers), **dialogues.counts(found.left_out)}
    return {"train_loss": result.training_loss, "parameters": model.num_parameters(), **counts}
