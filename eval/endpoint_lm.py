"""An OpenAI-compatible endpoint as lm-eval sees a model: greedy replies to chats, by the suite's own client.

So the cache, the limits, the budget and the masked key are those of every other request. Chat endpoints give no
log-likelihoods: tasks that need them are refused before this (`sources.find`).
"""

import json
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from sso.endpoint import Client, Refused
from sso.untrusted import plain

STOPS = 4
"""What the API takes at most; a reply is cut at all of them here."""


class EndpointLM(LM):
    """A prompt is the JSON of its messages."""

    tokenizer = None
    """Lengths are the server's to know."""

    def __init__(self, client: Client):
        super().__init__()
        self.client = client
        self.refused: dict[str, set[int]] = {}
        """By task, the documents whose requests were refused; their replies count as empty."""

    @property
    def tokenizer_name(self) -> str:
        return self.client.settings.model

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps([{"role": m["role"], "content": plain(m["content"])} for m in chat_history])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See `lm_eval.api.model.LM`."""

        def one(request: Instance) -> str | Refused:
            prompt, asked = request.args
            stops = [asked["until"]] if isinstance(asked.get("until"), str) else asked.get("until") or []
            parameters: dict[str, Any] = {
                "max_tokens": asked["max_gen_toks"],
                "temperature": asked.get("temperature", 0),
            }
            if stops:
                parameters["stop"] = stops[:STOPS]
            try:
                text = self.client.complete(json.loads(prompt), **parameters).text
            except Refused as error:
                self.refused.setdefault(str(request.task_name), set()).add(int(request.doc_id or 0))
                return error
            return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]

        replies = self.client.map(one, requests)
        refusals = [reply for reply in replies if isinstance(reply, Refused)]
        if refusals and len(refusals) == len(replies):
            raise refusals[0]
        return ["" if isinstance(reply, Refused) else reply for reply in replies]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError("chat endpoints give no log-likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("chat endpoints give no log-likelihoods")
