"""A tokenizer and tiny Qwen2 and Llama models for the micro-world, in transformers' own classes.

The vocabulary is the lexicon's words plus bytes, so any Unicode text can be encoded; the chat template is a
compact ChatML with an optional system turn.
"""

import re
from typing import TYPE_CHECKING

from sso.settings import Backbone
from sso.worlds.micro import lexicon as lex

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TURNS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
MARKS = [".", ",", "?", "!", "}"]
NUMBERS = range(40)


def words() -> list[str]:
    """Every word of the language, in a fixed order."""
    texts = [
        *(
            s
            for group in (lex.STARTS, lex.ENDS, lex.RISKS, lex.WARM, lex.NOTES, lex.FILLERS, lex.INSULTS)
            for s in group
        ),
        *(s for group in (lex.UNSAFE, lex.REFUSALS, lex.NONSENSE, lex.EMPTY, lex.VAGUE) for s in group),
        *lex.STATEMENTS.values(),
        *lex.OPENINGS,
        *lex.QUESTIONS.values(),
        *lex.HOPS.values(),
        *lex.FOLLOW_UPS.values(),
        *(word for pair in lex.ADJECTIVES.values() for word in pair),
        *(word for group in (lex.CITIES, lex.JOBS, lex.LIKES, lex.ITEMS, lex.GAINS, lex.LOSSES) for word in group),
        "Be has more and How many Solve times plus minus over x y z n k is",
        "Tell facts about Start with End Tell me about or And",
        *lex.names(300),
    ]
    found = (w for t in texts for w in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", t)))
    return list(dict.fromkeys([*found, "####", "\\boxed{"]))


def tokenizer(max_length: int) -> "PreTrainedTokenizerFast":
    """Whole words where the language has them, bytes elsewhere."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "▁"
    pieces = [("<|unk|>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(space, -5.0), *((mark, -1.0) for mark in MARKS)]
    pieces += [(space + word, -1.0) for word in words()] + [(f"{space}{n}", -1.0) for n in NUMBERS]
    # Without the space mark: the number inside \boxed{}.
    pieces += [(str(n), -1.0) for n in range(20)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always", split=True)
    core.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*TURNS.values(), END, PAD)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build(backbone: Backbone, seed: int) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """A model with fresh weights from ``seed``, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, set_seed

    assert backbone.architecture is not None, "a checkpoint is not built"
    vocabulary = tokenizer(backbone.max_length)
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[backbone.architecture]
    set_seed(seed)
    config = config_class(
        vocab_size=len(vocabulary),
        hidden_size=backbone.hidden_size,
        intermediate_size=backbone.hidden_size * 2,
        num_hidden_layers=backbone.layers,
        num_attention_heads=backbone.heads,
        num_key_value_heads=backbone.kv_heads,
        max_position_embeddings=backbone.max_length,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
        bos_token_id=None,
    )
    return model_class(config), vocabulary
