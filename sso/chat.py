"""From messages to token ids: the one place where text meets a chat template.

User text never becomes control tokens: where a message contains the text of one, it is encoded as plain text.
The unprompted context x has no system turn; what a template makes of that (Qwen2's inserts a default text) is
recorded by `describe`. Knows nothing of principles or models.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sso.errors import InputError
from sso.records import Message, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _template(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], open_turn: bool = True) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))


def _plain(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of text in which nothing is a control token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    every = [*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values())]
    return tuple(dict.fromkeys(t for t in every if t))


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Ids of a conversation with the generation prompt.

    Ordinary text is encoded in one piece, as every other tool does; only where a message spells a control token
    the contents are encoded apart from the template's own text.
    """
    plain = [m.model_dump() for m in messages]
    if not any(token in m["content"] for m in plain for token in _control_tokens(tokenizer)):
        return tokenizer(_template(tokenizer, plain), add_special_tokens=False).input_ids
    nonce = uuid4().hex
    marks = [f"{nonce}{i}{nonce}" for i in range(len(plain))]
    rest = _template(tokenizer, [{**m, "content": mark} for m, mark in zip(plain, marks, strict=True)])
    ids: list[int] = []
    for message, mark in zip(plain, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise InputError(f"the chat template leaves out a {message['role']} message; use another template.")
        ids += tokenizer(before, add_special_tokens=False).input_ids + _plain(tokenizer, message["content"])
    return ids + tokenizer(rest, add_special_tokens=False).input_ids


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], new_tokens: int, limit: int
) -> tuple[dict[int, list[int]], dict[int, str]]:
    """By row, `encode_prompt` of those that leave room for ``new_tokens``, and a sentence on each other one."""
    prompts: dict[int, list[int]] = {}
    too_long: dict[int, str] = {}
    for row, conversation in enumerate(conversations):
        prompt = encode_prompt(tokenizer, conversation)
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
    after = tokenizer(text.partition(mark)[2], add_special_tokens=False).input_ids
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
    ids = _plain(tokenizer, text)
    return [*ids, end_of_turn(tokenizer)] if ended or not ids else ids


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
    """What the template makes of a query without and with a system message, for provenance."""
    query = [{"role": "user", "content": "QUERY"}]
    return {
        "x": _template(tokenizer, query),
        "x_with_principle": _template(tokenizer, [{"role": "system", "content": "PRINCIPLE"}, *query]),
        "end_of_turn": tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)),
    }


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer, padding left; raises InputError where there is none or it has no chat template."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        # AutoTokenizer rebuilds every qwen2 folder's tokenizer as Qwen's own BPE; one that says it is a plain
        # tokenizers file, like the micro-world's, is loaded as it was saved.
        declared = get_tokenizer_config(path).get("tokenizer_class")
        plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
        kind = PreTrainedTokenizerFast if plain else AutoTokenizer
        tokenizer = kind.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no tokenizer can be loaded ({' '.join(str(error).split())[:160]}).") from error
    if tokenizer.chat_template is None:
        raise InputError(f"{path}: the checkpoint has no chat template; add chat_template.jinja beside its tokenizer.")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pretrained(kind: Any, path: str | Path, what: str, dtype: str = "float32", **settings: Any) -> tuple[Any, Any]:
    """A model by one of transformers' auto classes and what was found in its files, safetensors only, no code.

    Raises:
        InputError: no ``what`` can be loaded from there; names the path and the reason.
    """
    import torch
    from safetensors import SafetensorError

    safe = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        return kind.from_pretrained(path, dtype=getattr(torch, dtype), **safe, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: no {what} can be loaded ({' '.join(str(error).split())[:160]}).") from error


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
        return model  # it was loaded in parts, each where it belongs
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight.sum(dtype=torch.float32)):  # a sum takes no memory, and NaN and infinity stay
            raise InputError(f"{path}: {name} holds values that are not finite; get the checkpoint again.")
    return model


def check_checkpoint(path: str | Path, template: bool = True) -> None:
    """Cheap check of a local checkpoint before any work: configuration, weights, chat template. No torch."""
    folder = Path(path)
    if not folder.is_dir():
        return  # a hub name: known only when it is loaded
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
