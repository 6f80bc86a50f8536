"""Triples of a model's own responses, by the engines and writers of `sso principles` and `sso sample`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from sso.errors import InputError
from sso.library.models import origin, tokenizer_of
from sso.principles import WRAPPERS, write_v1, write_v2
from sso.records import Principles, Query, checked
from sso.sampling.engine import Engine, asking, make_engine, name_missing
from sso.sampling.settings import Sampling, Writer
from sso.sampling.transformers_engine import TransformersEngine
from sso.sampling.triples import distinct, draw
from sso.settings import hint


def generate_triples(
    model: Any,
    prompts: Iterable[str | list[Mapping[str, str]] | Mapping[str, Any]],
    principles: Literal["columns", "v1", "v2"] | None = None,
    processing_class: Any = None,
    sampling: Sampling | None = None,
    writer: Writer | None = None,
    wrapper: Literal["paper", "paper_v1", "micro"] | None = None,
    seed: int = 0,
    replies: str | Path = "replies.db",
) -> Any:
    """Draw y+ under the good principle, y- under the bad one and yo under none, for each prompt.

    Args:
        model: a checkpoint's folder or name on the hub; a model in memory, which draws as it is; None where
            ``sampling`` names an endpoint.
        prompts: texts, lists of messages, or rows (a `datasets.Dataset`) with a column `prompt` of either.
        principles: `columns`: the rows' own, in `good` and `bad`; `v1` (named features) or `v2` (written for the
            prompt): written by the model itself. None: `columns` where the rows have them, else `v2`.
        processing_class: the tokenizer of a model in memory; None: the one beside its checkpoint.
        sampling: engine, temperature, top_p and token limit of responses; None: the paper's, by transformers.
        writer: temperature, top_p and token limit of principles.
        wrapper: how a principle becomes a system message; None: the paper's of the version.
        seed: with a prompt's id (column `id`, else its number from 0) and the response's name it fixes each draw.
        replies: where an endpoint's replies are kept.

    Returns:
        `datasets.Dataset` with `id`, `prompt` (messages), `system_good`, `system_bad`, `chosen`, `rejected`, `original`
        and `cut` (the responses that did not end by themselves), in the order of ``prompts``. Prompts that are too long
        are left out and named on standard error; with v1 triples of equal responses, too.

    Raises:
        InputError: a row is bad (names row and key), the model can't be loaded, or nothing can be drawn.
    """
    from datasets import Dataset, Features, List, Value

    sampling, writer = sampling or Sampling(), writer or Writer(kind="policy")
    if sampling.devices > 1:
        raise InputError("sampling.devices: draws here come from one process; use `sso sample` for several.")
    if isinstance(prompts, str):
        raise InputError("prompts: a text, but must be a list of them, or a datasets.Dataset.")
    if isinstance(prompts, dict):
        raise InputError(f"prompts: a mapping of {', '.join(map(str, prompts))}; give one split, as prompts['train'].")
    rows = [dict(row) if isinstance(row, Mapping) else {"prompt": row} for row in prompts]
    given = bool(rows) and ("good" in rows[0] or "bad" in rows[0])
    version = principles or ("columns" if given else "v2")
    wrapper = wrapper or ("paper_v1" if version == "v1" else "paper")
    if wrapper not in WRAPPERS:
        raise InputError(f"wrapper: {wrapper!r}; {hint(wrapper, WRAPPERS)}")
    if version == "columns":
        own = [{"writer": "column", **row} for row in rows]
        written, engine = checked(enumerate(own, 1), Principles, "prompts", "row"), None
    elif version in ("v1", "v2"):
        queries = checked(enumerate(rows, 1), Query, "prompts", "row")
        engine = _engine(model, processing_class, sampling, Path(replies))
        ask, told = asking(engine, writer, seed)
        name = sampling.endpoint.model if sampling.endpoint else str(getattr(model, "name_or_path", model))
        written = write_v1(queries, ask, seed, name) if version == "v1" else write_v2(queries, ask, name)
        name_missing([key.rpartition("/")[0] for key in told], list(told.values()), "principles")
    else:
        raise InputError(f"principles: {version!r}; must be columns, v1 or v2.")
    engine = engine or _engine(model, processing_class, sampling, Path(replies))
    responses = ["y+", "y-", "yo"]
    triples, _ = draw(engine, written, sampling, wrapper, seed, responses)
    if version == "v1":
        triples, _ = distinct(triples, responses)
    text = Value("string")
    columns = dict.fromkeys(("system_good", "system_bad", "chosen", "rejected", "original"), text)
    features = Features(id=text, prompt=List({"role": text, "content": text}), **columns, cut=List(text))
    return Dataset.from_list([{name: getattr(t, name) for name in features} | _messages(t) for t in triples], features)


def _messages(record: Any) -> dict[str, Any]:
    return {"prompt": [message.model_dump() for message in record.prompt]}


def _engine(model: Any, tokenizer: Any, sampling: Sampling, replies: Path) -> Engine:
    """The engine of the settings, around a model that is in memory already if it is one."""
    if model is None or isinstance(model, str | Path):
        return make_engine(sampling, model and Path(origin(model)), replies)
    if sampling.engine != "transformers":
        raise InputError(f"engine {sampling.engine} can't draw from a model in memory; give a checkpoint.")
    return TransformersEngine.of(model.eval(), tokenizer_of(model, tokenizer), sampling.batch_size)
