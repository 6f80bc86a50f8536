"""From messages to token ids: the one place where text meets a chat template.

User text never becomes control tokens: where a message contains the text of one, it is encoded as plain text.
The unprompted context x has no system turn; what a template makes of that (Qwen2's inserts a default text) is
recorded by `describe`. Knows nothing of principles or models.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sso.errors import InputError
from sso.jobs import gpus
from sso.records import Message, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TODAY = datetime(2024, 7, 26)
"""What every template is told as the day (`strftime_now`): what it renders is the same on all days of an experiment.
It is the day that Llama 3.1's template writes where nobody tells it one."""


_DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcdDeFGHIjmMpSTuUVwWxXyY"]
_STRFTIME_NOW = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace({directive!r}, {TODAY.strftime(directive)!r})" for directive in _DIRECTIVES)
    + " }}{% endmacro %}\n"
)
"""A jinja macro in the place of transformers' function of that name, which can't be given as an argument. The newline
after a block is no text, so a template behind it renders as it would alone."""


def _on_the_day(tokenizer: Any, apply: Any, conversation: Any, **options: Any) -> Any:
    """transformers' `apply_chat_template`, ``apply``, with a template for which it is `TODAY`."""
    template = tokenizer.get_chat_template(options.pop("chat_template", None), options.get("tools"))
    dated = _STRFTIME_NOW if "strftime_now" in template else ""
    return apply(conversation, chat_template=dated + template, **options)


class Unfit(InputError):
    """A conversation that a template refuses, or a token that has no embedding; ``at``: its number of those given."""

    def __init__(self, reason: str, at: int = 0):
        super().__init__(reason)
        self.at = at


@contextmanager
def naming(names: Sequence[str], what: str = "record") -> Iterator[None]:
    """Where conversations of these names are encoded: what is unfit becomes an InputError with its name."""
    try:
        yield
    except Unfit as error:
        raise InputError(f"{what} {names[error.at]!r}: {error}") from error


@contextmanager
def _numbered(at: int) -> Iterator[None]:
    try:
        yield
    except Unfit as error:
        raise Unfit(str(error), at) from error


def _template(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], open_turn: bool = True) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))
    except Exception as error:  # jinja's own, what `raise_exception` says, or Python's out of a filter
        said = " ".join(str(error).split())[:160]
        raise Unfit(f"the chat template refuses the conversation: {said}") from error


def check_conversations(tokenizer: "PreTrainedTokenizerBase", conversations: Iterable[list[Message]]) -> None:
    """Raise Unfit for the first conversation that the template refuses; cheap, before a model is loaded."""
    for at, conversation in enumerate(conversations):
        with _numbered(at):
            _template(tokenizer, [m.model_dump() for m in conversation])


def _embedded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """The ids; raises Unfit for one that the model has no embedding of (see `load_tokenizer`)."""
    outside: dict[int, str] = getattr(tokenizer, "outside", {})
    if outside and (bad := outside.keys() & set(ids)):
        token = min(bad)
        raise Unfit(
            f"token {outside[token]!r} has id {token}, which is beyond the model's embeddings; "
            "use the tokenizer that belongs to the model, or resize its embeddings."
        )
    return ids


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, plain: bool = False) -> list[int]:
    """Ids of text; ``plain``: nothing in it is a control token.

    Where there is a core in Rust it is asked itself: on a short text the call around it takes four times as long.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=plain).input_ids
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = plain
    return core.encode(text, add_special_tokens=False).ids


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    every = [*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values())]
    return tuple(dict.fromkeys(t for t in every if t))


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Ids of a conversation with the generation prompt.

    Ordinary text is encoded in one piece, as every other tool does; only where a message spells a control token
    the contents are encoded apart from the template's own text.
    """
    return _encode(tokenizer, messages, True)


def encode_closed(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Ids of a whole conversation as its template writes it, with what that puts into and behind the last turn."""
    return _encode(tokenizer, messages, False)


def _encode(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], open_turn: bool) -> list[int]:
    plain = [m.model_dump() for m in messages]
    if not any(token in m["content"] for m in plain for token in _control_tokens(tokenizer)):
        text = _template(tokenizer, plain, open_turn)
        return _embedded(tokenizer, _ids(tokenizer, text))
    nonce = uuid4().hex
    marks = [f"{nonce}{i}{nonce}" for i in range(len(plain))]
    rest = _template(tokenizer, [{**m, "content": mark} for m, mark in zip(plain, marks, strict=True)], open_turn)
    ids: list[int] = []
    for message, mark in zip(plain, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise Unfit(f"the chat template leaves out a {message['role']} message; use another template.")
        ids += _ids(tokenizer, before) + _ids(tokenizer, message["content"], True)
    return _embedded(tokenizer, ids + _ids(tokenizer, rest))


def encode_all(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]]) -> list[list[int]]:
    """`encode_prompt` of each; raises Unfit with the number of the first that is."""
    prompts = []
    for at, conversation in enumerate(conversations):
        with _numbered(at):
            prompts.append(encode_prompt(tokenizer, conversation))
    return prompts


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], new_tokens: int, limit: int
) -> tuple[dict[int, list[int]], dict[int, str]]:
    """By row, `encode_prompt` of those that leave room for ``new_tokens``, and a sentence on each other one."""
    prompts: dict[int, list[int]] = {}
    too_long: dict[int, str] = {}
    encoded = encode_all(tokenizer, conversations)
    for row, (prompt, conversation) in enumerate(zip(encoded, conversations, strict=True)):
        if len(prompt) + new_tokens > limit:
            too_long[row] = (
                f"a prompt of {len(prompt)} tokens and {new_tokens} new ones exceed the context of {limit} "
                f"({conversation[-1].content[:60]!r}); drop the query or lower max_new_tokens."
            )
        else:
            prompts[row] = prompt
    return prompts, too_long


@lru_cache(maxsize=8)
def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends an assistant turn: what the template writes after one, else the tokenizer's eos."""
    mark = uuid4().hex
    text = _template(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}], False)
    after = _ids(tokenizer, text.partition(mark)[2])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return after[0] if after and after[0] in special else tokenizer.eos_token_id


def stop_ids(tokenizer: "PreTrainedTokenizerBase", configured: int | list[int] | None) -> list[int]:
    """Tokens that end a response: the turn's end, and what the checkpoint's generation config lists."""
    listed = configured if isinstance(configured, list) else [configured] if configured is not None else []
    return list(dict.fromkeys([end_of_turn(tokenizer), *listed]))


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str, ended: bool = True) -> list[int]:
    """Ids of an assistant turn's text and the end-of-turn token, once.

    Without it where the turn never ``ended``, unless nothing would be left.
    """
    ids = _ids(tokenizer, text, True)
    return _embedded(tokenizer, [*ids, end_of_turn(tokenizer)] if ended or not ids else ids)


def encode(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], response: str | None = None) -> list[int]:
    """Prompt ids with the generation prompt, followed by the response and its end-of-turn token if given."""
    ids = encode_prompt(tokenizer, messages)
    return ids if response is None else ids + encode_response(tokenizer, response)


def with_system(messages: list[Message], system: str) -> list[Message]:
    """x+ or x-: the query with a principle as its system message, before one that is there already."""
    if messages[0].role == "system":
        return [Message(role="system", content=f"{system}\n\n{messages[0].content}"), *messages[1:]]
    return [Message(role="system", content=system), *messages]


def describe(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What the template makes of a query without and with a system message, for provenance.

    x_with_principle is None where the template has no system turn; ``refused`` then holds its words.
    """
    query = [Message(role="user", content="QUERY")]
    refused = refuses_system(tokenizer)
    made = {
        "x": _template(tokenizer, [m.model_dump() for m in query]),
        "x_with_principle": None
        if refused
        else _template(tokenizer, [m.model_dump() for m in with_system(query, "PRINCIPLE")]),
        "end_of_turn": tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)),
        "today": TODAY.date().isoformat(),
    }
    return made | ({"refused": refused} if refused else {})


def refuses_system(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """What the template says to a system message before a query; None where it takes it."""
    try:
        check_conversations(tokenizer, [with_system([Message(role="user", content="a")], "b")])
    except Unfit as error:
        return str(error)
    return None


def bare_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer.json as it is, whatever class its settings name, with these settings; padding left.

    A class rebuilds the tokenizer by rules of its own, other ones in each version of transformers, so that the same
    folder would give other ids here, in vLLM's environment and in training. A folder without a tokenizer.json is left
    to its class. Templates of what is returned are told `TODAY` by all who ask, lm-eval too.

    Raises:
        InputError: no tokenizer can be loaded, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from sso.hub import checkpoint

    check_whole(path)
    folder = checkpoint(path)
    try:
        kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
        tokenizer: Any = kind.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.eos_token is None:  # old folders leave special tokens to their class
            vocabulary = tokenizer.get_vocab()
            named = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).special_tokens_map
            tokenizer.add_special_tokens({key: token for key, token in named.items() if token in vocabulary})
    except Exception as error:  # tokenizers raises it bare
        raise InputError(f"{path}: no tokenizer can be loaded ({' '.join(str(error).split())[:160]}).") from error
    if tokenizer.eos_token is None:
        raise InputError(f"{path}: the tokenizer has no eos_token; name it in tokenizer_config.json.")
    return _dressed(tokenizer)


def _dressed(tokenizer: Any) -> Any:
    """The tokenizer with templates that are told `TODAY`, padding left."""
    if "apply_chat_template" not in vars(tokenizer):
        tokenizer.apply_chat_template = partial(_on_the_day, tokenizer, tokenizer.apply_chat_template)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def adopt_tokenizer(tokenizer: Any, model: Any) -> Any:
    """A tokenizer in memory, made what `load_tokenizer` makes of a checkpoint's, for a model in memory.

    Raises:
        InputError: as `load_tokenizer`, or it has no end-of-sequence token.
    """
    if getattr(tokenizer, "eos_token", None) is None:
        raise InputError("processing_class: the tokenizer has no eos_token; set it.")
    return _fitted(_dressed(tokenizer), model.get_input_embeddings().num_embeddings, "processing_class")


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """`bare_tokenizer` with a chat template, fit for the checkpoint's model.

    Its `outside` holds the tokens (by id) that the model has no embeddings of: a padding token among them gives way
    to the end-of-sequence token, any other is refused where a conversation uses it.

    Raises:
        InputError: there is none, it has no chat template, or the template refuses a lone query.
    """
    tokenizer: Any = bare_tokenizer(path)
    if tokenizer.chat_template is None:
        raise InputError(f"{path}: the checkpoint has no chat template; add chat_template.jinja beside its tokenizer.")
    return _fitted(tokenizer, _embeddings(path), path)


def _fitted(tokenizer: Any, rows: int | None, name: str | Path) -> Any:
    """The tokenizer, fit for a model that has embeddings of ``rows`` tokens; ``name`` is theirs in messages."""
    if tokenizer.chat_template is None:
        raise InputError(f"{name}: the tokenizer has no chat template; set its `chat_template`.")
    tokenizer.outside = {i: t for t, i in tokenizer.get_vocab().items() if rows is not None and i >= rows}
    if tokenizer.pad_token_id in tokenizer.outside:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        _embedded(tokenizer, [tokenizer.pad_token_id, *encode(tokenizer, [Message(role="user", content="a")], "a")])
    except Unfit as error:
        raise InputError(f"{name}: {error}") from error
    return tokenizer


def _embeddings(path: str | Path) -> int | None:
    """How many tokens a checkpoint's model knows; None where there is no model to tell."""
    from transformers import AutoConfig

    from sso.hub import checkpoint

    try:
        config = AutoConfig.from_pretrained(checkpoint(path), trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return getattr(config.get_text_config(), "vocab_size", None)


_AS_SAVED = {"AutoTokenizer": [None, "load_without_trust_remote_code.PreTrainedTokenizerFast"]}
"""An `auto_map` that names no code. Where a model type's class is put in the place of the one that the settings name
(transformers' MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS, Qwen2 for one), a folder with an `auto_map` keeps its own."""


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save a tokenizer so that every version of transformers loads its tokenizer.json as it is.

    Call it after the model was saved there: which class AutoTokenizer takes depends on config.json, too.
    """
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        return
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("auto_map", None)  # names code that is not there
    # What `save_pretrained` leaves out, though loading asks for it.
    added = {
        key: tokenizer.init_kwargs[key] for key in ("add_bos_token", "add_eos_token") if key in tokenizer.init_kwargs
    }
    settings |= {**added, "tokenizer_class": "PreTrainedTokenizerFast"}
    for own in ({}, {"auto_map": _AS_SAVED}):
        text = json.dumps(settings | own, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
        if _loads_as_saved(tokenizer, folder):
            return


def _loads_as_saved(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> bool:
    """Whether AutoTokenizer makes the same ids and text of all that the tokenizer knows."""
    from transformers import AutoTokenizer

    text = tokenizer.decode(list(range(len(tokenizer))))
    try:
        found: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # a config.json of a type that is not known, or a class that can't read this tokenizer.json
        return False
    ids = found(text, verbose=False).input_ids  # which would warn of a text that no model takes
    return ids == tokenizer(text, verbose=False).input_ids and found.decode(ids) == tokenizer.decode(ids)


def check_whole(path: str | Path) -> None:
    """Raise InputError for a folder that holds an adapter in place of a model."""
    if (Path(path) / "adapter_config.json").is_file():
        raise InputError(
            f"{path}: an adapter, not a whole model; merge it into its base first (peft: AutoPeftModelForCausalLM."
            "from_pretrained(FOLDER).merge_and_unload().save_pretrained(OUT)) and copy the tokenizer's files to OUT."
        )


def pretrained(kind: Any, path: str | Path, what: str, dtype: str = "float32", **settings: Any) -> tuple[Any, Any]:
    """A model by one of transformers' auto classes and what was found in its files, safetensors only, no code.

    On a GPU where there is one; then the weights go there as they are stored, straight out of the mapped file, and
    are cast there: the host holds a checkpoint once, whatever the precision and however many processes load it.

    Raises:
        InputError: no ``what`` can be loaded from there; names the path and the reason. Or the job has GPUs that
            torch does not find.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    check_whole(path)
    gpus.check()
    safe = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    on_gpu = torch.cuda.is_available() and not is_deepspeed_zero3_enabled()  # which loads parts, where they belong
    asked = getattr(torch, dtype)
    try:
        model, found = kind.from_pretrained(path, dtype="auto" if on_gpu else asked, **safe, **settings)
        return (cast(model.to("cuda"), asked) if on_gpu else model), found
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        raise InputError(f"{path}: no {what} can be loaded ({' '.join(str(error).split())[:160]}).") from error


def cast(model: Any, dtype: Any) -> Any:
    """The model with its weights in ``dtype``, changed in place, as if it had been loaded so: buffers stay."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype
    return model


def load_model(path: str | Path, dtype: str = "float32") -> Any:
    """A causal model in evaluation mode, whole and finite; raises InputError that names the path."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    model, found = pretrained(AutoModelForCausalLM, path, "causal model", dtype)
    if found["missing_keys"]:  # which transformers would fill with noise
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{path}: the checkpoint lacks {len(found['missing_keys'])} weights ({some}); get it whole.")
    model.eval()
    if is_deepspeed_zero3_enabled():
        return model  # it was loaded in parts
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight.sum(dtype=torch.float32)):  # a sum takes no memory, and NaN and infinity stay
            raise InputError(f"{path}: {name} holds values that are not finite; get the checkpoint again.")
    return model


def check_checkpoint(path: str | Path, template: bool = True) -> None:
    """Cheap check of a local checkpoint before any work: configuration, weights, chat template. No torch."""
    folder = Path(path)
    if not folder.is_dir():
        return  # a hub name: known only when it is loaded
    check_whole(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; give the folder of a Hugging Face checkpoint.")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors; convert the checkpoint (pickled weights are not loaded).")
    if not template:
        return
    settings = folder / "tokenizer_config.json"
    inline = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    if not inline and not (folder / "chat_template.jinja").is_file() and not (folder / "chat_template.json").is_file():
        raise InputError(
            f"{folder}: the checkpoint has no chat template; add chat_template.jinja beside its tokenizer."
        )


def check_system(path: str | Path, why: str) -> None:
    """Raise InputError where a checkpoint's chat template takes no system turn, which ``why`` needs."""
    if refused := refuses_system(load_tokenizer(path)):
        raise InputError(
            f"{path}: {refused} (a system turn, in which {why} states its principles); use another checkpoint."
        )


def check_prompts(path: str | Path, queries: Sequence[Query], new_tokens: int) -> None:
    """Raise InputError where no query's text alone leaves a local checkpoint room for ``new_tokens``. No torch.

    A lower bound, cheap enough to know before any work. Single queries that are too long are left out by the jobs,
    which know the rendered prompts (`sso.sampling.triples.fitting`).
    """
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file() or not (folder / "config.json").is_file():
        return
    from tokenizers import Tokenizer

    limit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings", 1 << 30)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    count = 0
    for query in queries:
        count = sum(len(tokenizer.encode(m.content, add_special_tokens=False).ids) for m in query.prompt)
        if count + new_tokens <= limit:
            return
    if queries:
        raise InputError(
            f"none of {len(queries)} queries fits: {queries[-1].id!r} has {count} tokens, which with {new_tokens} new "
            f"ones exceed the context of {limit} of {folder}; give shorter queries or lower max_new_tokens."
        )


def context_limit(model_config: Any) -> int:
    """Tokens that a model can attend to."""
    return int(getattr(model_config, "max_position_embeddings", 1 << 30))
