"""Settings of who draws text: engines, endpoints, and the writers of principles."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sso.settings import VARIABLE, Settings


class Endpoint(Settings):
    """An OpenAI-compatible endpoint: a hosted model, or a local server such as vLLM's."""

    model: str
    """The name that the server knows the model by."""
    base_url: str | None = None
    """Address of the server; None: OpenAI's own. `${NAME}` in it is that environment variable, as for a password."""
    key_variable: str = Field("OPENAI_API_KEY", pattern=VARIABLE)
    """The environment variable that holds the key, which is never a setting. A server on this machine needs none."""
    concurrency: int = Field(8, ge=1)
    """Requests in flight at once."""
    timeout_s: float = Field(120, gt=0)
    """Seconds that one request may take."""
    retries: int = Field(6, ge=0)
    """Retries of one request, on 429, 5xx, timeouts, dropped connections and replies that are no JSON."""
    backoff_s: float = Field(0.5, ge=0)
    """Pause before the first retry; it doubles with each, and on 429 is 15 s at least. The server's Retry-After goes
    before it."""
    ask_again: bool = False
    """Ask again for what was refused before; else a refusal is remembered like a reply."""
    parameters: dict[str, Any] = {}
    """Laid over each request's own; null takes one away: {max_tokens: null, max_completion_tokens: 4096}."""
    max_requests: int | None = Field(None, ge=0)
    """Budget of the cache file: requests that were sent for this endpoint and model, retries included."""
    max_cost: float | None = Field(None, ge=0)
    """The same in money, by the tokens that the endpoint reports; what is in flight when it is spent still ends."""
    price_input: float = Field(0, ge=0)
    """Per million tokens, as is `price_output`."""
    price_output: float = Field(0, ge=0)
    """Of generated tokens."""

    @model_validator(mode="after")
    def _priced(self) -> "Endpoint":
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError("max_cost needs price_input and price_output, per million tokens")
        return self


class Vllm(Settings):
    """How vLLM holds a model."""

    tensor_parallel: int = Field(1, ge=1)
    """GPUs over which vLLM splits the model."""
    context: int | None = Field(None, ge=8)
    """Tokens of prompt and response that vLLM makes room for; None: all that the checkpoint can attend to."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""


class Decoding(Vllm):
    """Who draws text, and how (docs/engines.md)."""

    engine: Literal["transformers", "vllm", "endpoint"] = "transformers"
    """Who draws: transformers here, vLLM, or a server."""
    temperature: float = Field(0.7, ge=0)
    """0: greedy, always the likeliest token."""
    top_p: float = Field(0.8, gt=0, le=1)
    """Only the likeliest tokens that have this probability together are drawn from."""
    max_new_tokens: int = Field(2048, ge=1)
    """Tokens of a response; longer ones are cut."""
    batch_size: int = Field(8, ge=1)
    """Sequences that transformers decodes at once; vLLM fills its batches itself."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What is computed in."""
    devices: int = Field(1, ge=1)
    """Processes that share the prompts, each on `tensor_parallel` GPUs of its own; the draws stay the same."""
    endpoint: Endpoint | None = None
    """The served model of `engine: endpoint`."""

    @model_validator(mode="after")
    def _one_engine(self) -> "Decoding":
        if (self.engine == "endpoint") != (self.endpoint is not None):
            raise ValueError("`engine: endpoint` and the settings of an `endpoint` go together")
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError("`tensor_parallel` needs `engine: vllm`")
        if self.devices > 1 and self.engine == "endpoint":
            raise ValueError("an endpoint needs one process; its `concurrency` is what asks in parallel")
        return self


class Writer(Decoding):
    """Who writes the principles: the world's procedure, the policy itself, a checkpoint, or an endpoint."""

    kind: Literal["procedural", "policy", "checkpoint", "endpoint"] = "procedural"
    """Of these, by name."""
    path: str | None = None
    """The checkpoint that writes, for `kind: checkpoint`."""
    wrapper: Literal["micro", "paper", "paper_v1"] = "micro"
    """How a principle becomes a system message; `paper` is that of the arm's version, `paper_v1` that of v1 anyway."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a reply with a principle."""

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        served = isinstance(values, dict) and values.get("kind") == "endpoint"
        return {"engine": "endpoint", **values} if served else values

    @model_validator(mode="after")
    def _one_writer(self) -> "Writer":
        if (self.kind == "endpoint") != (self.engine == "endpoint"):
            raise ValueError("`kind: endpoint` is the writer that an `endpoint` serves, and the only one")
        return self


class Sampling(Decoding):
    """How y+, y- and yo are drawn, all three alike. Paper: temperature 0.7, top-p 0.8, 2,048 tokens."""
