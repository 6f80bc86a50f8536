"""Bradley-Terry reward models: a scalar head on the last token, loss -log sigmoid(r_w - r_l).

Starts from a causal checkpoint (the SFT model) and is a plain `AutoModelForSequenceClassification` with one
label afterwards, so that it loads anywhere without this code. Knows nothing of where pairs come from.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardbench.data import TextPair
from rewardbench.score import encode
from rewardbench.settings import Reward
from sso.chat import end_of_turn
from sso.errors import InputError, first_of
from sso.reward_model import READS_TURN, rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rewardbench.trainer import Sides

HELD_OUT, HELD_OUT_PAIRS = 0.1, 1000
"""Share of the pairs that is never trained on, and at most so many: their accuracy is the honest one."""


def start(path: str | Path, seed: int) -> tuple["PreTrainedModel", Any]:
    """The causal checkpoint at ``path`` with a fresh scalar head, and its tokenizer.

    The head starts at N(0, 1 / (width + 1)) (Stiennon et al. 2020): rewards of about unit size, where the
    default 0.02 leaves a narrow model's first steps to the head's scale alone. Dropout is off, since the two
    sides of a pair must be read by the same network. The padding id is set, since it finds the last token.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    from sso.chat import check_checkpoint, load_tokenizer, pretrained

    check_checkpoint(path)
    tokenizer = load_tokenizer(path)
    set_seed(seed)
    model, _ = pretrained(AutoModelForSequenceClassification, path, "model", num_labels=1)
    tokenizer.padding_side = "right"
    _own_padding(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    setattr(model.config, READS_TURN, True)
    for key in vars(model.config):
        if "dropout" in key and isinstance(getattr(model.config, key), float):
            setattr(model.config, key, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    head = model.score.weight
    with _whole(head):
        torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    return model, tokenizer


def _own_padding(tokenizer: Any) -> None:
    """Pad by a token that ends no turn, where the vocabulary has one: the last token before padding is the one read."""
    if tokenizer.pad_token_id != end_of_turn(tokenizer):
        return
    added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if i not in tokenizer.outside}
    spare = [token for token in added.values() if re.search("pad|reserved", token.lower())]
    if token := next(filter(None, [*spare, tokenizer.unk_token]), None):
        tokenizer.pad_token = token


def _whole(weight: Any) -> Any:
    """While open, a weight of which ZeRO-3 keeps only a part on each device is whole; the main process's counts."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weight, modifier_rank=0)


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training and the held-out pairs; fewer than ten pairs leave none to hold out."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = min(int(HELD_OUT * count), HELD_OUT_PAIRS)
    return sorted(order[held_out:]), sorted(order[:held_out])


def accuracy(model: Any, pairs: Sequence["Sides"], settings: Reward, name: str) -> float:
    """Share of pairs whose winner has the larger reward; ties do not count as won.

    Raises:
        InputError: a reward is not finite.
    """
    import numpy as np

    from sso.reference import autocast

    with autocast(model.device, settings.dtype):
        sequences = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        values = rewards(model, sequences, budget=settings.tokens_per_batch)
    bad = [pair.id for pair, each in zip(pairs, values.reshape(-1, 2), strict=True) if not np.isfinite(each).all()]
    if bad:
        raise InputError(
            f"reward training diverged: rewards of the {name} pairs are not finite (pair {bad[0]!r}); "
            "lower `learning_rate`."
        )
    return float((values[::2] > values[1::2]).mean())


def train(
    model_path: str | Path, pairs: Sequence[TextPair], settings: Reward, seed: int, out: str | Path, run: Any
) -> None:
    """Train on all but the held-out ``pairs`` and write a model folder to ``out``, whole or not at all.

    A killed training goes on from its last checkpoint where ``save_steps`` asks for them. ``run`` is a
    `sso.jobs.tracking.run`: gets the loss by step, and as summary the pairs that were too long, and the accuracy on the
    held-out pairs and on as many of the trained ones.
    """
    from rewardbench.trainer import RewardTrainer, Sides
    from sso.attention import forests
    from sso.chat import context_limit, load_tokenizer
    from sso.jobs import distributed
    from sso.records import digest
    from sso.reference import weights_digest
    from sso.train.run import Growing, curve, go, kept, last_checkpoint, save_trained, training_arguments

    distributed.start(settings)
    out = Path(out)
    work = out.with_name(f".{out.name}.work")
    # With ZeRO-3 the arguments must exist before the model is loaded, which is then loaded in parts.
    arguments = training_arguments(settings, settings.learning_rate, seed, work)
    chosen, rejected = encode(
        load_tokenizer(model_path), pairs, end_cut_responses=settings.end_cut_responses
    )  # what can't be encoded is told before this:
    model, tokenizer = start(model_path, seed)
    limit = min(settings.max_length, context_limit(model.config))
    sides = [Sides(p.id, c, r, p.margin) for p, c, r in zip(pairs, chosen, rejected, strict=True)]
    fitting = [s for s in sides if len(s) <= 2 * limit]
    if long := [s.id for s in sides if len(s) > 2 * limit]:
        why = f"more than {limit} tokens (max_length, or the model's context)"
        print(f"left out {len(long)} pairs of {why}: {first_of(long)}")
    if not fitting:
        raise InputError(f"all {len(sides)} pairs have more than {limit} tokens; raise max_length.")
    trained, held_out = ([fitting[i] for i in part] for part in split(len(fitting), seed))

    def key() -> dict[str, Any]:
        texts = digest([[s.id, s.chosen, s.rejected] for s in trained])
        weights = weights_digest(model_path)
        return {"settings": settings.model_dump(), "weights": weights, "seed": seed, "pairs": texts}

    with kept(work):
        checkpoint = last_checkpoint(work, key, "reward model")
        trainer = RewardTrainer(
            model=model, args=arguments, train_dataset=trained, settings=settings, callbacks=[Growing(run)]
        )
        with forests(model, trainer.layout == "forest"):
            go(trainer, settings.engine, checkpoint)
        for step, values in curve(trainer.state.log_history):
            run.log(step, values)
        run.summary.update({"pairs_train": len(trained), "pairs_held_out": len(held_out), "pairs_too_long": len(long)})
        run.summary["pairs_cut_when_drawn"] = sum(bool(pair.cut) for pair in pairs)
        for name, some in (("train", trained[: max(HELD_OUT_PAIRS, len(held_out))]), ("held_out", held_out)):
            if some:
                run.summary[f"accuracy_{name}"] = accuracy(model, some, settings, name)
        save_trained(trainer, settings, tokenizer, out, model_path, run.summary)
    distributed.stop()
