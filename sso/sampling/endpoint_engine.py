"""An OpenAI-compatible endpoint as the evaluated model: the same `generate` as the local engine.

Each conversation is one request, cached and retried like a judge's. The server samples, so a row's draw is only as
reproducible as the server keeps its `seed`; what was drawn once is read from the cache.
"""

from pathlib import Path

from sso.endpoint import Client, Progress, Refused, Show
from sso.records import Message
from sso.sampling.engine import Generation, Keep
from sso.sampling.settings import Endpoint
from sso.untrusted import plain

SEED_BITS = 31
"""Servers take seeds as 32-bit or as doubles; ours have 63 bits."""

CUT = ("length", "max_tokens", "content_filter")
"""Why a reply stopped that did not end by itself, as servers call it."""


class EndpointEngine:
    """See `sso.sampling.engine.Engine`."""

    def __init__(self, settings: Endpoint, cache: Path, progress: Progress | None = None):
        self.client = Client(settings, cache, progress)

    def generate(
        self,
        conversations: list[list[Message]],
        seeds: list[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        progress: Show | None = None,
        keep: Keep | None = None,
    ) -> list[Generation]:
        """See `sso.sampling.engine.Engine`. ``tokens`` is 0 where the endpoint reports no usage.

        A refused request is `Generation.none`. Control tokens spelled in a message are spaced out
        (`sso.untrusted.plain`): the server would obey them.
        """

        # Where no seed is sent, what tells two draws of one prompt apart in the cache is the draw's number.
        unseeded = "seed" in self.client.settings.parameters

        def one(row: tuple[int, list[Message], int]) -> Generation:
            number, conversation, seed = row
            try:
                completion = self.client.complete(
                    [{"role": m.role, "content": plain(m.content)} for m in conversation],
                    seed if unseeded else 0,
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_new_tokens,
                    seed=seed & ((1 << SEED_BITS) - 1),
                )
                made = Generation(completion.text, completion.completion_tokens or 0, completion.finish not in CUT)
            except Refused as error:
                made = Generation.none("refused", str(error))
            if keep is not None:
                keep(number, made)
            return made

        return self.client.map(one, list(zip(range(len(seeds)), conversations, seeds, strict=True)), progress)
