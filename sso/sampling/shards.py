"""Draws that are on disk the moment they are made, by one process or by several that share the work.

A draw is known by its conversation and seed, so a run that was killed makes only what is missing, whatever the
number of processes before and now. The files lie beside the output until that is whole. Knows nothing of what the
draws are for.
"""

import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from sso.chat import check_conversations, load_tokenizer
from sso.endpoint import Show
from sso.errors import InputError
from sso.records import Message, Record, digest, file_digest
from sso.sampling.engine import Engine, Generation, Keep, make_engine
from sso.sampling.settings import Decoding
from sso.train import checkpoints

RecordT = TypeVar("RecordT", bound=Record)
POLL_S = 0.5
Check = Callable[[Sequence[list[Message]]], None]


class Kept:
    """An engine whose draws are kept in ``folder``; ``make`` loads it when the first draw is missing.

    ``check`` is asked before that: it raises for conversations that can't be drawn for.
    """

    def __init__(self, make: Callable[[], Engine], folder: Path, name: str = "0", check: Check | None = None):
        self.make, self.folder, self.name, self.check = make, folder, name, check
        self.engine: Engine | None = None
        self._lock = threading.Lock()

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
        """See `sso.sampling.engine.Engine`."""
        keys = [digest([conversation, seed]) for conversation, seed in zip(conversations, seeds, strict=True)]
        known = _read(self.folder)
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            if self.check is not None and self.engine is None:
                self.check(conversations)
            if len(missing) < len(keys):
                print(f"{len(keys) - len(missing)} of {len(keys)} draws are taken over", flush=True)
            self.engine = self.engine or self.make()
            with (self.folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as file:
                file.write("\n")  # what a kill cut off stays a line of its own

                def keep_line(i: int, made: Generation) -> None:
                    if made.missing == "refused":
                        return  # remembered with the endpoint's replies, and `ask_again` asks there
                    line = json.dumps({"key": keys[missing[i]], **asdict(made)}, ensure_ascii=False)
                    with self._lock:
                        file.write(line + "\n")
                        file.flush()

                made = self.engine.generate(
                    [conversations[i] for i in missing],
                    [seeds[i] for i in missing],
                    temperature,
                    top_p,
                    max_new_tokens,
                    progress,
                    keep_line,
                )
            known.update(zip((keys[i] for i in missing), made, strict=True))
        if keep is not None:
            for i, key in enumerate(keys):
                keep(i, known[key])
        return [known[key] for key in keys]


def _read(folder: Path) -> dict[str, Generation]:
    """All whole draws of a folder, by key; a line that a kill cut off is passed over."""
    known = {}
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    key = row.pop("key")
                    known[key] = Generation(**row)
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue
    return known


def own(records: Sequence[RecordT], shard: str | None) -> list[RecordT]:
    """The records of shard `k/n`: every n-th; all where there is none."""
    if shard is None:
        return list(records)
    number, count = map(int, shard.split("/"))
    return list(records[number::count])


@contextmanager
def kept(args: Namespace, expected: int, what: str) -> Iterator[Kept]:
    """The engine of a command's settings, whose draws outlive a kill; they are removed when the work inside is done.

    With several devices, or vLLM, the same command first runs once a shard, in processes of its own: each draws for
    every n-th record, and what it holds of a GPU is free when it ends.

    Args:
        args: `settings`, `model`, `out`, `argv`, and `shard`: `k/n` in such a process, else None.
        expected: how many draws progress counts to.
        what: what they are called there.

    Raises:
        InputError: a process failed; what was drawn is kept.
    """
    settings, model, out = args.settings, args.model, args.out
    folder = out.with_name(f".{out.name}.parts")

    def make() -> Engine:
        from sso.jobs.command import end_start_up

        engine = make_engine(settings, model, out.with_name(f"{out.stem}_replies.db"))
        end_start_up()
        return engine

    def check(conversations: Sequence[list[Message]]) -> None:
        if model is not None and settings.endpoint is None:
            check_conversations(load_tokenizer(model), conversations)

    if args.shard:
        _die_with_parent()
        yield Kept(make, folder, args.shard.partition("/")[0], check)
        return
    key = settings.model_dump(include={"engine", "temperature", "top_p", "max_new_tokens", "dtype", "endpoint"})
    weights = file_digest(model) if model and Path(model).is_dir() else str(model)
    with checkpoints.kept(folder):
        checkpoints.resume_from(folder, {**key, "model": weights})
        if settings.devices > 1 or settings.engine == "vllm":
            _run(settings, folder, args.argv, expected, what)
        yield Kept(make, folder, "rest", check)


def _die_with_parent() -> None:
    """End this process when its parent is gone, however that ended: the pipe at standard input tells."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device for device in listed.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _run(settings: Decoding, folder: Path, argv: Sequence[str], expected: int, what: str) -> None:
    """Run the shards to their end, with one line of progress for all of them."""
    from sso.jobs.progress import progress

    gpus, each, count = _visible_gpus(), settings.tensor_parallel, settings.devices
    if gpus and len(gpus) < count * each:
        raise InputError(f"devices: {count} x {each} GPUs are asked for, but {len(gpus)} are visible; lower `devices`.")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            share = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number * each : (number + 1) * each])} if gpus else {}
            environment = {name: value for name, value in os.environ.items() if name != "SSO_WARM"}
            command = [sys.executable, "-m", "sso.cli", *argv, "--shard", f"{number}/{count}"]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env={**environment, **share}))
        code = _watch(processes, folder, progress(what), expected)
    finally:
        for process in processes:
            process.communicate()  # closes its input, which ends it, and waits
    if code:
        raise InputError(
            f"{what}: one of {count} processes failed (exit code {code}; its message stands above); what was drawn is "
            "kept: run the same command to go on."
        )


def _watch(processes: Sequence[subprocess.Popen[bytes]], folder: Path, show: Show, expected: int) -> int:
    """Count the draws on disk until all processes ended (0) or one failed (its exit code)."""
    seen: dict[Path, int] = {}
    done = 0
    while True:
        codes = [process.poll() for process in processes]
        for file in folder.glob("*.jsonl"):
            with file.open("rb") as lines:
                lines.seek(seen.get(file, 0))
                new = lines.read()
            seen[file] = seen.get(file, 0) + len(new)
            done += new.count(b'{"key"')
        show(min(done, expected), expected)
        if any(codes) or None not in codes:
            return next(filter(None, codes), 0)
        time.sleep(POLL_S)
