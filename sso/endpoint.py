"""Client of an OpenAI-compatible endpoint: concurrent, cached, retried, within a budget.

Serves judges and evaluated models alike; knows nothing of prompts or verdicts. The key is read from the
environment, handed to the openai package and masked wherever the other side could echo it.
"""

import json
import logging
import os
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

from sso.errors import InputError, without_passwords
from sso.records import digest
from sso.replies import Replies
from sso.sampling.settings import Endpoint
from sso.settings import merge

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

Show = Callable[[int, int], None]
"""Shows (done, total)."""
Progress = Callable[[], Show]
"""Makes one, e.g. ``lambda: sso.jobs.progress.progress("judged")``."""

REFUSAL = "refused"
"""Where a remembered refusal has its reason; replies have no such key."""
QUOTA = ("insufficient_quota", "billing_hard_limit", "credit balance")
"""What an error says that is the account's and not the request's, whatever its status."""
OPENAI = "https://api.openai.com/v1"
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that need no key."""
LONGEST_PAUSE_S = 60
LIMITED_PAUSE_S = 15
"""Shortest pause on 429 (too many requests) without Retry-After: six of them outlive a limit that is a minute's."""
ASKING_S = 20
"""What a server may take to answer about its models."""
SECRET_LENGTH = 8
"""Keys shorter than this ("none", "EMPTY") are placeholders; masking them would garble honest text."""


class Refused(InputError):
    """The endpoint answers, but not this request: too long a prompt (HTTP 400, 413, 422), or filtered content."""


class _NoReply(Exception):
    """One attempt failed in a way that may pass; ``pause_s`` is the server's Retry-After, without which the pause is at
    least ``least_s``."""

    def __init__(self, reason: str, pause_s: float | None = None, least_s: float = 0):
        super().__init__(reason)
        self.pause_s, self.least_s = pause_s, least_s


@dataclass(frozen=True)
class Completion:
    """One reply: its text, why it ended, its tokens' logprobs (as the API has them) and the reported token counts."""

    text: str
    finish: str | None
    logprobs: list[dict[str, Any]] | None
    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def filtered(self) -> bool:
        """Whether a filter left nothing of the reply, which is no empty reply of the model's."""
        return self.finish == "content_filter" and not self.text.strip()


class _Refusal(NamedTuple):
    """A request that the endpoint refused, as the cache keeps it: ``prompt`` is a digest, ``parameters`` are JSON."""

    key: str
    parameters: str
    prompt: str
    draw: int
    why: str


class Server:
    """An endpoint's server, and the key for it."""

    def __init__(self, settings: Endpoint):
        """Raises InputError where the server needs a key and there is none."""
        self.settings = settings
        self.address = _filled(settings.base_url or OPENAI)
        self.url = without_passwords(self.address)
        self.key = os.environ.get(settings.key_variable, "")
        if not self.key and urlsplit(self.url).hostname not in LOCAL:
            raise InputError(f"{self.url}: the key is read from {settings.key_variable}, which is not set; set it.")

    @cached_property
    def _openai(self) -> Any:
        from openai import OpenAI

        for name in ("httpx", "httpx2"):  # a line a request at INFO
            logging.getLogger(name).setLevel(logging.WARNING)
        return OpenAI(
            api_key=self.key or "none",
            base_url=self.address,  # spelled out: the package would read OPENAI_BASE_URL too
            timeout=self.settings.timeout_s,
            max_retries=0,  # ours count for the budget, and take broken JSON for an outage too
        )

    def find_model(self) -> None:
        """Ask whether the model is there, which costs nothing.

        Raises InputError: no such model, the key is refused, or there is no server, or one that does not answer this.
        """
        import openai

        models = self._openai.with_options(timeout=ASKING_S).models.with_raw_response
        try:
            try:
                models.retrieve(self.settings.model)
            except openai.NotFoundError as error:
                # Some servers, vLLM's for one, only list what they have.
                if self.settings.model not in _names(models.list().text):
                    raise self._of_status(error) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 402, 403, 404):
                raise self._of_status(error) from None
            raise InputError(
                f"{self.url}: does not say whether it has {self.settings.model!r} (HTTP {error.status_code}: "
                f"{self._said(error)}); ask again later, or check `base_url`."
            ) from None
        except openai.APIConnectionError as error:
            why = type(error.__cause__ or error).__name__
            raise InputError(
                f"{self.url}: no server answers there ({why}); start it, check `base_url`, or the network."
            ) from None

    def _of_status(self, error: Any) -> Exception:
        """What an HTTP error means: to be tried again, this request's own fault, or the end of the run."""
        status, said = error.status_code, self._said(error)
        if status == 403 and "moderation" in said.lower():  # OpenRouter's filter
            return Refused(f"{self.url}: refuses a request (HTTP {status}: {said}).")
        if status in (401, 403):
            why = f"HTTP {status}" + (f": {said}" if status == 403 else "")  # a key may be good for other models
            return InputError(f"{self.url}: refuses the key in {self.settings.key_variable} ({why}); set another.")
        if status == 404:
            return InputError(
                f"{self.url}: no model {self.settings.model!r} there (HTTP 404: {said}); check `model` and `base_url`."
            )
        if status == 402 or any(sign in said.lower() for sign in QUOTA):
            return InputError(
                f"{self.url}: the account's quota is spent ({said}); raise it and run the same command again."
            )
        if status in (408, 409, 425, 429) or status >= 500:
            pause = _seconds(error.response.headers.get("retry-after"))
            return _NoReply(f"HTTP {status}", pause, LIMITED_PAUSE_S if status == 429 else 0)
        if status in (400, 413, 422, 451):
            return Refused(f"{self.url}: refuses a request (HTTP {status}: {said}).")
        return InputError(f"{self.url}: takes no chat completions there (HTTP {status}: {said}); check `base_url`.")

    def _said(self, error: Any) -> str:
        return self._masked(" ".join(str(error.message).split())[:300])

    def _masked(self, text: str) -> str:
        """Text of the other side without the key, as it stands and as JSON escapes it."""
        if len(self.key) >= SECRET_LENGTH:
            for form in (self.key, json.dumps(self.key)[1:-1], self.key.replace("/", "\\/")):
                text = text.replace(form, "***")
        return text


class Client(Server):
    """Chat completions of one model; every method may be called from many threads."""

    def __init__(self, settings: Endpoint, cache: Path, progress: Progress | None = None):
        """``cache``: SQLite file of the replies; ``progress`` makes what shows the progress of one `map`."""
        super().__init__(settings)
        self.progress = progress
        self.replies = Replies(cache, self.url, settings.model)
        self.sent = self.cached = self.refused = 0
        self._answers, self._refusals = False, list[_Refusal]()
        self._lock, self._stop = threading.Lock(), threading.Event()

    def complete(self, messages: list[dict[str, str]], draw: int = 0, **parameters: Any) -> Completion:
        """The model's reply to ``messages``, from the cache where it was asked for before.

        Args:
            messages: role and content of each turn.
            draw: number of the draw: the same request asked again has another.
            parameters: of the API (temperature, max_tokens, seed ...).

        Raises:
            Refused: this request is not acceptable to the endpoint, now or when it was asked before.
            InputError: the budget is spent, the key or the model is refused, or no attempt got a reply.
        """
        parameters = merge(parameters, self.settings.parameters)
        prompt = digest(messages)
        key = digest([self.url, self.settings.model, parameters, prompt, draw])
        about = json.dumps(parameters, sort_keys=True, ensure_ascii=False)
        kept = self.replies.get(key)
        if kept is not None and self.settings.ask_again and (REFUSAL in kept or Completion(**kept).filtered):
            kept = None
        if kept is not None:
            with self._lock:
                self.cached += 1
            if REFUSAL in kept:
                return self._refuse(kept[REFUSAL])
            completion = Completion(**kept)
        else:
            try:
                completion = self._ask(messages, parameters)
            except Refused as error:
                self._remember(_Refusal(key, about, prompt, draw, str(error)))
                self._refuse(str(error))
            self.replies.put(key, about, prompt, draw, asdict(completion))
        self._remember()
        if completion.filtered:
            self._refuse(f"{self.url}: filters its reply to a request (finish_reason content_filter).")
        return completion

    def _refuse(self, why: str) -> NoReturn:
        with self._lock:
            self.refused += 1
        raise Refused(why)

    def _remember(self, refusal: _Refusal | None = None) -> None:
        """Keep a refusal like a reply, once the endpoint has answered anything: one that refuses all is asked anew."""
        with self._lock:
            self._answers |= refusal is None
            self._refusals += [refusal] if refusal else []
            waiting, self._refusals = (self._refusals, []) if self._answers else ([], self._refusals)
        for kept in waiting:
            reply = {REFUSAL: kept.why, "prompt_tokens": 0, "completion_tokens": 0}
            self.replies.put(kept.key, kept.parameters, kept.prompt, kept.draw, reply)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], show: Show | None = None) -> list[Result]:
        """``function`` of every item, ``concurrency`` at a time, in order; the first error stops the rest.

        What is in flight at an error still ends and is kept. ``show`` goes before the client's own ``progress``.
        """
        show = show or (self.progress() if self.progress else lambda done, total: None)
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    show(done, len(futures))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                self._stop.clear()
                raise
        return [future.result() for future in futures]

    def notes(self) -> dict[str, int | float]:
        """Requests sent, replies found on disk and requests refused, now or before, in this run; what the cache file
        has cost where prices are set."""
        notes: dict[str, int | float] = {"asked": self.sent, "cached": self.cached}
        notes |= {"refused": self.refused} if self.refused else {}
        priced = self.settings.price_input or self.settings.price_output
        return notes | ({"cost": round(self._cost(), 4)} if priced else {})

    def _cost(self) -> float:
        spent = self.replies.spent()
        prices = self.settings.price_input, self.settings.price_output
        return (spent.prompt_tokens * prices[0] + spent.completion_tokens * prices[1]) / 1e6

    def _book(self) -> None:
        """Count a request, or raise where the budget is spent."""
        limit, cap = self.settings.max_requests, self.settings.max_cost
        if cap is not None and (cost := self._cost()) >= cap:
            raise InputError(self._spent(f"{cost:.4f} of {cap:g}", "max_cost"))
        if not self.replies.book_request(limit):
            raise InputError(self._spent(f"{limit} of {limit} requests", "max_requests"))
        with self._lock:
            self.sent += 1

    def _spent(self, what: str, key: str) -> str:
        return (
            f"{self.settings.model}: the budget is spent ({what}); every reply is kept in {self.replies.path}: "
            f"raise `{key}` and run the same command to go on."
        )

    def _ask(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Completion:
        for attempt in range(self.settings.retries + 1):
            self._book()
            try:
                return self._once(messages, parameters)
            except _NoReply as error:
                reason, pause, least = str(error), error.pause_s, error.least_s
            if pause is None:
                # Jitter keeps clients that failed together from coming back together.
                doubled = self.settings.backoff_s * 2**attempt * random.uniform(0.5, 1)
                pause = max(doubled, least * random.uniform(1, 1.5))
            if attempt < self.settings.retries and self._stop.wait(min(pause, LONGEST_PAUSE_S)):
                break
        tries = f"{attempt + 1} {'tries' if attempt else 'try'}"
        raise InputError(
            f"{self.url}: no reply after {tries} ({reason}); every reply so far is kept in {self.replies.path}: run "
            "the same command to go on."
        )

    def _once(self, messages: list[dict[str, str]], parameters: dict[str, Any]) -> Completion:
        import openai

        try:
            raw = self._openai.chat.completions.with_raw_response.create(
                model=self.settings.model, messages=messages, extra_body=parameters
            )
            text = raw.text
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APIConnectionError as error:
            raise _NoReply(type(error.__cause__ or error).__name__) from None
        completion = _read(self._masked(text))
        if completion is None:
            raise _NoReply("the reply is no chat completion in JSON")
        if self.settings.max_cost is not None and completion.prompt_tokens is None:
            raise InputError(f"{self.url}: reports no token usage, so `max_cost` cannot be kept; use `max_requests`.")
        return completion


def _filled(address: str) -> str:
    """An address with what `${NAME}` in it names out of the environment, as a password that no command line shows."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise InputError(f"base_url: the environment variable {found[1]}, which it names, is not set; set it.")
        return os.environ[found[1]]

    return re.sub(r"\$\{(\w+)\}", value, address)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header or ""))
    except ValueError:  # absent, or a date
        return None


def _names(text: str) -> list[str]:
    """The names in a server's list of models; none where the text is no such list."""
    try:
        return [model["id"] for model in json.loads(text)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


_HALF = re.compile("[\ud800-\udfff]")


def _read(text: str) -> Completion | None:
    """The first choice of a chat completion; None where the text is none. Half a UTF-16 character, which no file takes,
    becomes U+FFFD."""
    try:
        reply = json.loads(text)
        if _HALF.search(whole := json.dumps(reply, ensure_ascii=False)):
            reply = json.loads(_HALF.sub("\ufffd", whole))
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        content = _of(str, choice["message"].get("content")) or ""
        refusal = not content and bool(_of(str, choice["message"].get("refusal")))
        return Completion(
            text=content,
            finish="content_filter" if refusal else _of(str, choice.get("finish_reason")),
            logprobs=_of(list, (choice.get("logprobs") or {}).get("content")),
            prompt_tokens=_of(int, usage.get("prompt_tokens")),
            completion_tokens=_of(int, usage.get("completion_tokens")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _of(kind: type[Value], value: Any) -> Value | None:
    """A value of a kind, or null; TypeError where it is anything else."""
    if value is not None and not isinstance(value, kind):
        raise TypeError
    return value
