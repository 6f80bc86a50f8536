"""Text of models put into prompts for other models: it stays text.

A template is filled in one pass, so a placeholder inside an answer stays what it is. Where an inserted text spells
a control token or one of the template's own delimiters, just that spelling is made harmless and stays legible;
every other text goes in byte for byte, so that an honest prompt is the official one. Knows nothing of what a judge
makes of an answer that argues with it: no template can prevent that.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from sso.records import Message

_CONTROL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,80}[|\uff5c]>"  # ChatML, Llama 3, phi, DeepSeek (full-width bars)
    r"|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>"  # SentencePiece models, Gemma
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"  # Llama 2, Mistral
    r"|</?(?:think|tool_call|tool_response)>"  # Qwen 3, DeepSeek
)
_OPENERS, _CLOSERS = r"[\[<#|]+[^\w\n]{0,3}", r"(?:[^\w\n]{0,3}[\]>|:]+|[ \t]*$)"
_LONGEST_DELIMITER = 70


def plain(text: str) -> str:
    """Text in which nothing is a control token: `<|im_end|>` becomes `< |im_end| >`.

    For endpoints, whose server puts text and template together before it is tokenised.
    """
    while _CONTROL.search(text):  # one may stand within another: `<|[INST]|>`
        text = _CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:-1]} {match[0][-1]}", text)
    return text


def after_reasoning(reply: str) -> str:
    """What a model says after its reasoning (`<think>...</think>`); nothing where the reasoning has no end."""
    said = reply.rpartition("</think>")[2]
    return "" if said.lstrip().startswith("<think>") else said


@dataclass(frozen=True)
class Template:
    """A prompt of a system and a user message; ``text`` and ``system`` as in str.format."""

    name: str
    system: str
    text: str

    @cached_property
    def delimiters(self) -> re.Pattern[str]:
        """What looks like one of the template's own marks, in any case and spacing: `[the END of Reference answer]`."""
        marks = []
        for line in self.text.splitlines():
            words = re.findall(r"\w+", line)
            if words and "{" not in line and line[0] in "[<(#|" and len(line) <= _LONGEST_DELIMITER:
                marks.append(r"[\W_]+".join(map(re.escape, words)))
        return re.compile(rf"{_OPENERS}(?P<mark>{'|'.join(dict.fromkeys(marks))}){_CLOSERS}", re.I | re.M)

    def harmless(self, text: str) -> str:
        """``text`` without control tokens and without this template's delimiters, which become `(quoted: ...)`."""
        return plain(self.delimiters.sub(lambda match: f"(quoted: {match['mark']})", text))

    def fill(self, **fields: str) -> list[Message]:
        """The messages, with every field made harmless."""
        text = self.text.format(**{name: self.harmless(field) for name, field in fields.items()})
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, Message(role="user", content=text)]
