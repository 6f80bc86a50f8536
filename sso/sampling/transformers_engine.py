"""Batched sampling with a KV cache on `transformers.generate`.

Each token is drawn by a number of its own, a hash of (row seed, step), so a row's draw does not depend on its batch.
Knows nothing of principles or pairs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from sso.chat import context_limit, encode_prompts, load_model, load_tokenizer, stop_ids
from sso.endpoint import Show
from sso.records import Message
from sso.sampling.engine import Generation, Keep


def uniform(seed: int, step: int) -> float:
    """A number in (0, 1), a pure function of seed and step: splitmix64 (Steele et al. 2014) at the step-th place."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & _64_BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return (((z ^ (z >> 31)) >> 11) + 0.5) / (1 << 53)


_64_BITS = (1 << 64) - 1


class OwnDraw(LogitsProcessor):
    """Turns greedy decoding into sampling, by the inverse of the distribution function at each row's own number."""

    def __init__(self, seeds: list[int], prompt_length: int):
        self.seeds, self.prompt_length = seeds, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        numbers = torch.tensor([uniform(seed, step) for seed in self.seeds], dtype=torch.float64)
        below = scores.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=torch.float64)
        # The last sum stands for 1; what rounds up to it is the last token that has a probability.
        at = (numbers.to(scores.device)[:, None] * below[:, -1:]).clamp(max=below[:, -1:].nextafter(below.new_zeros(1)))
        return scores.scatter(1, torch.searchsorted(below, at, right=True), torch.inf)


@contextmanager
def stated(model: Any, stop: Sequence[int], pad: int) -> Iterator[None]:
    """Within, `model.generate` inherits nothing of the checkpoint's generation_config.json (a repetition penalty, a
    top-k): what the call does not state is transformers' own default. A response ends at one of ``stop``."""
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=list(stop), pad_token_id=pad)
    try:
        yield
    finally:
        model.generation_config = own


class TransformersEngine:
    """Any causal checkpoint on the local device."""

    def __init__(self, path: str | Path, dtype: str = "float32", batch_size: int = 8):
        self.batch_size = batch_size
        self.tokenizer, self.model = load_tokenizer(path), load_model(path, dtype)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, batch_size: int) -> "TransformersEngine":
        """An engine around a model that is in memory already."""
        engine = cls.__new__(cls)
        engine.model, engine.tokenizer, engine.batch_size = model, tokenizer, batch_size
        return engine

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
        """See `sso.sampling.engine.Engine`. Temperature 0 is greedy. ``progress`` and ``keep`` are called per batch."""
        limit = context_limit(self.model.config)
        prompts, too_long = encode_prompts(self.tokenizer, conversations, max_new_tokens, limit)
        results = {i: Generation.none("too_long", why) for i, why in too_long.items()}
        if keep is not None:
            for i, made in results.items():
                keep(i, made)
        # Prompts of like length share a batch: less padding.
        order = sorted(prompts, key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = self._batch(
                [prompts[i] for i in rows], [seeds[i] for i in rows], temperature, top_p, max_new_tokens
            )
            results.update(zip(rows, texts, strict=True))
            if keep is not None:
                for i in rows:
                    keep(i, results[i])
            if progress is not None:
                progress(len(results), len(conversations))
        return [results[i] for i in range(len(conversations))]

    @torch.inference_mode()
    def _batch(
        self, prompts: list[list[int]], seeds: list[int], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[Generation]:
        device, width = self.model.device, max(map(len, prompts))
        pad, stop = self.tokenizer.pad_token_id, stop_ids(self.tokenizer, self.model.generation_config.eos_token_id)
        input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        warpers = LogitsProcessorList()
        if temperature > 0:
            warpers.append(TemperatureLogitsWarper(temperature))
            if top_p < 1:
                warpers.append(TopPLogitsWarper(top_p))
            warpers.append(OwnDraw(seeds, width))
        with stated(self.model, stop, pad):
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                logits_processor=warpers,
            )
        generations = []
        for row in output[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in stop), None)
            ids = row if end is None else row[:end]
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            generations.append(Generation(text, len(ids) + (end is not None), end is not None))
        return generations
