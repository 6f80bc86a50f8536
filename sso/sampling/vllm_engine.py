"""Sampling with vLLM in this process: paged attention, continuous batches, shared prefixes, tensor parallelism.

Prompts are encoded and tokens decoded by the checkpoint's own tokenizer, so that user text stays text and a draw
reads as in every other engine. Knows nothing of principles or pairs; docs/engines.md tells what prefixes share.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sso.chat import encode_prompts, load_tokenizer, stop_ids
from sso.endpoint import Show
from sso.errors import InputError
from sso.records import Message
from sso.sampling.engine import Generation, Keep
from sso.sampling.settings import Vllm


class VLLMEngine:
    """Any causal checkpoint that vLLM serves. ``prompt_tokens`` counts what was prefilled, ``cached_tokens`` what of
    it was taken from prefixes met before."""

    def __init__(self, path: str | Path, dtype: str = "bfloat16", settings: Vllm | None = None):
        tokenizer = load_tokenizer(path)
        with importing(path):
            from vllm import LLM

            llm = LLM(**llm_arguments(path, dtype, settings or Vllm()), skip_tokenizer_init=True)
        self._use(llm, tokenizer)

    @classmethod
    def of(cls, llm: Any, tokenizer: Any) -> "VLLMEngine":
        """An engine around a `vllm.LLM` that is in memory already."""
        engine = cls.__new__(cls)
        engine._use(llm, tokenizer)
        return engine

    def _use(self, llm: Any, tokenizer: Any) -> None:
        self.llm, self.tokenizer = llm, tokenizer
        self.prompt_tokens = self.cached_tokens = 0

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
        """See `sso.sampling.engine.Engine`. Temperature 0 is greedy.

        A row's noise is its seed's alone; its logits differ between batches in the last digits, as everywhere on a
        GPU, so a draw that hangs on them may too (VLLM_BATCH_INVARIANT=1 prevents that where vLLM supports it).
        """
        from vllm import SamplingParams

        engine, config = self.llm.llm_engine, self.llm.llm_engine.model_config
        prompts, too_long = encode_prompts(self.tokenizer, conversations, max_new_tokens, config.max_model_len)
        results = {i: Generation.none("too_long", why) for i, why in too_long.items()}
        if keep is not None:
            for i, made in results.items():
                keep(i, made)
        stop = vllm_stop_ids(self.llm, self.tokenizer)
        # Prompts with a common beginning follow each other: it is computed once and still there for the next.
        for i in sorted(prompts, key=prompts.__getitem__):
            parameters = SamplingParams(
                temperature=temperature,
                top_p=top_p if temperature > 0 else 1.0,
                max_tokens=max_new_tokens,
                seed=seeds[i] if temperature > 0 else None,
                stop_token_ids=stop,
                logprobs=0,
                detokenize=False,
            )
            engine.add_request(str(i), {"prompt_token_ids": prompts[i]}, parameters)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    i = int(output.request_id)
                    results[i] = self._read(output, stop)
                    if keep is not None:
                        keep(i, results[i])
                    if progress is not None:
                        progress(len(results), len(conversations))
        print(f"vllm: {self.cached_tokens} of {self.prompt_tokens} prompt tokens came from shared prefixes", flush=True)
        return [results[i] for i in range(len(conversations))]

    def _read(self, output: Any, stop: list[int]) -> Generation:
        drawn = output.outputs[0]
        ids = list(drawn.token_ids)
        ended = bool(ids) and ids[-1] in stop
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        logprob = sum(at[token].logprob for token, at in zip(ids, drawn.logprobs, strict=True))
        return Generation(text, len(ids), drawn.finish_reason == "stop", logprob)


def vllm_stop_ids(llm: Any, tokenizer: Any) -> list[int]:
    """What ends a response of a `vllm.LLM`: the turn's end, and what the checkpoint lists."""
    config = llm.llm_engine.model_config
    return stop_ids(tokenizer, config.try_get_generation_config().get("eos_token_id", config.hf_config.eos_token_id))


@contextmanager
def importing(path: str | Path) -> Iterator[None]:
    """Where vLLM is imported and loads a checkpoint: what goes wrong there becomes one sentence."""
    # No usage reports to the outside.
    os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    # FlashInfer's sampler is compiled by nvcc at start-up, which ends vLLM where there is none (vLLM issue 49497). It
    # would have nothing to do: requests with seeds, as ours are, and greedy ones never come to it.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"engine vllm: vLLM is not installed here ({error}); docs/engines.md has its environment."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: vLLM can't load it ({' '.join(str(error).split())[:300]}).") from error


def llm_arguments(path: str | Path, dtype: str, settings: Vllm) -> dict[str, Any]:
    """Arguments of `vllm.LLM`: safetensors only, no code of the checkpoint's."""
    from vllm.platforms import current_platform

    own: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory}
    if current_platform.is_cpu():
        # A seeded request that is prefilled in pieces crashes vLLM's CPU build: its generators have no offset.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        own = {"enforce_eager": True, "enable_chunked_prefill": False}
    return {
        "model": str(path),
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": dtype,
        "tensor_parallel_size": settings.tensor_parallel,
        "max_model_len": settings.context,
        "enable_prefix_caching": True,
        **own,
    }
