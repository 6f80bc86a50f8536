"""Bradley-Terry reward models: a scalar head on the last token, loss -log sigmoid(r_w - r_l).

Starts from a causal checkpoint (the SFT model) and is a plain `AutoModelForSequenceClassification` with one
label afterwards, so that it loads anywhere without this code. Knows nothing of where pairs come from.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardbench.data import Comparison, Pairs
from rewardbench.score import encode, pad, rewards
from sso.config import Reward
from sso.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 0.1
"""Share of the pairs that is never trained on: its accuracy is the honest one."""

LOGGED = ("loss", "grad_norm", "learning_rate")


def start(path: str | Path, seed: int) -> tuple["PreTrainedModel", Any]:
    """The causal checkpoint at ``path`` with a fresh scalar head, and its tokenizer.

    The head starts at N(0, 1 / (width + 1)) (Stiennon et al. 2020): rewards of about unit size, where the
    default 0.02 leaves a narrow model's first steps to the head's scale alone. Dropout is off, since the two
    sides of a pair must be read by the same network. The padding id is set, since it finds the last token.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    from sso.chat import check_checkpoint, load_tokenizer

    check_checkpoint(path)
    tokenizer = load_tokenizer(path)
    set_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no model can be loaded ({' '.join(str(error).split())[:160]}).") from error
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    for key in vars(model.config):
        if "dropout" in key and isinstance(getattr(model.config, key), float):
            setattr(model.config, key, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    head = model.score.weight
    torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    return model, tokenizer


def bradley_terry(values: Any) -> Any:
    """-log sigmoid(r_w - r_l) of rewards [2 * pairs], winners first; the mean over pairs, in nats."""
    from torch.nn.functional import logsigmoid

    winners, losers = values.chunk(2)
    return -logsigmoid(winners - losers).mean()


def split(pairs: list[Comparison], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training and the held-out pairs; fewer than ten pairs leave none to hold out."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    held_out = int(HELD_OUT * len(pairs))
    return sorted(order[held_out:]), sorted(order[:held_out])


def train(model_path: str | Path, pairs: Pairs, settings: Reward, seed: int, out: str | Path, run: Any) -> None:
    """Train on nine tenths of ``pairs`` and write a model folder to ``out``, whole or not at all.

    ``run`` is a `sso.tracking.run`: gets the loss by step, and as summary the accuracy (share of pairs whose
    winner has the larger reward; ties do not count) on the training and on the held-out pairs.
    """
    import numpy as np
    from transformers import Trainer, TrainerCallback

    from sso.chat import context_limit
    from sso.sft import arguments

    model, tokenizer = start(model_path, seed)
    chosen, rejected = encode(tokenizer, pairs.kept, context_limit(model.config))
    trained, held_out = split(pairs.kept, seed)

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if kept := {k: float(v) for k, v in (logs or {}).items() if k in LOGGED}:
                run.log(state.global_step, kept)

    class PairTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs, use_cache=False)
            loss = bradley_terry(output.logits[:, 0])
            return (loss, output) if return_outputs else loss

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        how = arguments(
            Path(scratch),
            seed,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=5,
        )
        trainer = PairTrainer(
            model=model,
            args=how,
            train_dataset=[(chosen[i], rejected[i]) for i in trained],
            data_collator=lambda rows: pad([r[0] for r in rows] + [r[1] for r in rows], tokenizer.pad_token_id),
            callbacks=[Log()],
        )
        trainer.train()
        for name, rows in (("train", trained), ("held_out", held_out)):
            run.summary[f"pairs_{name}"] = len(rows)
            if rows:
                values = rewards(model, [chosen[i] for i in rows] + [rejected[i] for i in rows], settings.batch_size)
                if not np.isfinite(values).all():
                    raise InputError(
                        f"reward training diverged: rewards of the {name} pairs are not finite; lower `learning_rate`."
                    )
                run.summary[f"accuracy_{name}"] = float((values[: len(rows)] > values[len(rows) :]).mean())
        whole = Path(scratch) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        shutil.rmtree(out, ignore_errors=True)
        whole.replace(out)
