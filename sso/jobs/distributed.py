"""Several devices: launching a process for each, and the engines that split the work, by config alone.

DeepSpeed and FSDP come through transformers.Trainer; here stand their settings and nothing of training.
"""

import faulthandler
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sso.errors import InputError
from sso.jobs import gpus
from sso.train.settings import Spread

LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process that it starts; some machines set the first for no reason."""
PATIENCE = timedelta(hours=6)
"""How long processes wait for one another. Libraries abort after 10 minutes, in which a main process that tokenizes or
downloads alone is often not done; when a process dies, torchrun ends the others at once."""
CORES = "SSO_CORES"
"""What `cores` was before torchrun, which tells each of its processes that it has one thread."""


def launched() -> bool:
    """Whether a launcher started this process.

    Raises:
        InputError: the environment tells of several processes, and not how to find them.
    """
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, but {missing[0]} is not set; start with torchrun, "
            "or unset WORLD_SIZE."
        )
    return not missing


def is_main() -> bool:
    """Whether this process writes files and records; the only one, unless a launcher started several."""
    return not launched() or os.environ["RANK"] == "0"


def world_size() -> int:
    """Processes that a launcher started, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def cores() -> int:
    """Cores of this job: as many as the threads that it is told to use, within those that it may run on."""
    here = len(os.sched_getaffinity(0))
    told = os.environ.get(CORES) or os.environ.get("OMP_NUM_THREADS", "")
    return min(int(told), here) if told.isdecimal() and int(told) else here


def unwrapped(model: Any) -> Any:
    """The model inside DDP's or DeepSpeed's; accelerate's own unwrapping imports DeepSpeed to know."""
    while hasattr(model, "module"):
        model = model.module
    return model


@contextmanager
def forward_of(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, a module's ``forward`` is this one; whatever wraps it, or the model, does its work."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own again


def launch(training: Spread, argv: Sequence[str], module: str = "sso.cli") -> None:
    """Go on as one process a device, started by torchrun; a plain lone one, or one that a launcher started, stays.

    ``module`` is the command line that ``argv`` belongs to.

    Raises:
        InputError: FSDP without GPUs, for which accelerate would run plain data parallelism without a word; DeepSpeed
            without the compiler that it needs.
    """
    if training.engine == "fsdp2":
        import torch

        if not torch.cuda.is_available():
            raise InputError("engine fsdp2: there is no GPU here; use zero3, or ddp.")
    if problem := no_compiler(training):
        raise InputError(problem)
    alone = training.devices * training.nodes == 1
    if launched() or (alone and training.engine == "ddp"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", module, *argv]
    if training.nodes > 1 and IN_STEP not in os.environ:
        os.environ[IN_STEP] = "1"
        step = ["srun", "--overlap", f"--nodes={training.nodes}", f"--ntasks={training.nodes}", "--ntasks-per-node=1"]
        _replace([*step, *command], f"nodes: {training.nodes}: there is no srun here; run in a SLURM allocation.")
    where = ["--standalone"] if training.nodes == 1 else _rendezvous(training.nodes)
    os.environ[CORES] = str(cores())
    run = ["-m", "torch.distributed.run", *where, "--nproc_per_node", str(training.devices)]
    _replace([sys.executable, *run, *command[1:]], f"{sys.executable} can't be started.")


def no_compiler(training: Spread) -> str | None:
    """What is missing, in a sentence, where DeepSpeed has to compile: to communicate on CPU, and to offload to it."""
    compiler = os.environ.get("CXX", "c++")
    if not training.engine.startswith("zero") or shutil.which(compiler):
        return None
    import torch

    if torch.cuda.is_available() and not training.engine.endswith("offload"):
        return None
    return f"engine {training.engine}: DeepSpeed has parts to compile, and there is no {compiler} here; install g++."


IN_STEP = "SSO_IN_STEP"
"""Set in the tasks that `launch` has started, one a machine."""


def _replace(command: Sequence[str], otherwise: str) -> None:
    """Become ``command``; InputError where there is no such program."""
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError as error:
        raise InputError(otherwise) from error


def _rendezvous(nodes: int) -> list[str]:
    """torchrun's arguments for this machine of a SLURM step: the first machine listens, on a port of the job's own."""
    import subprocess

    try:
        listed = os.environ["SLURM_STEP_NODELIST"]
        names = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True)
        head, rank = names.stdout.split()[0], os.environ["SLURM_NODEID"]
        port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    except (LookupError, ValueError, OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"nodes: {nodes}: this process is in no SLURM step of several machines ({error}); start it in a SLURM job."
        ) from error
    return ["--nnodes", str(nodes), "--node_rank", rank, "--master_addr", head, "--master_port", str(port)]


def start(training: Spread) -> None:
    """Join the processes, each with its device. Call before any model is loaded.

    Raises:
        InputError: the job has GPUs that torch does not find, or DeepSpeed is not installed.
    """
    gpus.check()
    if not launched():
        for name in LAUNCHED:
            os.environ.pop(name, None)  # what is left of them misleads torch and accelerate
        return
    import torch

    faulthandler.enable()  # of an abort in a library's thread the launcher tells nothing but its number
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not training.engine.startswith("zero"):
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        return
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    from accelerate import PartialState

    if is_main():
        tell_locks()
    # Left to itself accelerate takes processes without GPUs for lone ones.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend=backend, timeout=PATIENCE)
    except ImportError as error:
        raise InputError(f"engine {training.engine}: install deepspeed (pip install -e '.[train]').") from error
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]


def tell_locks() -> None:
    """Warn of locks of torch's compilations: one that a killed process left makes DeepSpeed wait without a word."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in sorted(root.glob("**/lock")):
        print(f"warning: {lock}: waiting for a compilation; delete it where none runs.", file=sys.stderr, flush=True)


def from_main(value: Any) -> Any:
    """The main process's value, on all of them."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]


def stop() -> None:
    """Leave the group of processes, if there is one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def engine_arguments(training: Spread) -> dict[str, Any]:
    """What TrainingArguments need for the training's engine. The batch is planned by GlobalBatchTrainer itself;
    the size per device is what DeepSpeed's bookkeeping wants to know."""
    import torch

    common = {
        "ddp_find_unused_parameters": False,
        "per_device_train_batch_size": max(1, training.batch_size // world_size()),
        "activation_checkpointing": training.gradient_checkpointing,
        # Without it Trainer takes processes without GPUs for strangers; with it DeepSpeed is left out silently.
        "use_cpu": training.engine == "ddp" and not torch.cuda.is_available(),
    }
    if training.engine == "fsdp2":
        own = {"version": 2, "activation_checkpointing": training.gradient_checkpointing}
        return {**common, "activation_checkpointing": False, "fsdp": True, "fsdp_config": own}
    if training.engine.startswith("zero"):
        own = {"use_configured_state": True}  # the state that `start` made
        return {**common, "deepspeed": deepspeed_config(training.engine), "accelerator_config": own}
    return common


def keep_outputs(accelerator: Any) -> None:
    """Let FSDP2 hand a model's outputs on as they are; accelerate would have it round them to bfloat16, and what a
    model puts out here are log-probabilities and rewards."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)  # none where another engine runs, which is told later
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def deepspeed_config(engine: str) -> dict[str, Any]:
    """ZeRO-2 or ZeRO-3, with or without optimizer (and weights) in CPU memory; `auto` is filled in by Trainer."""
    stage, offload = int(engine[4]), engine.endswith("offload")
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
    }
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
        # DeepSpeed's own optimizer, made for CPU memory.
        auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        config["optimizer"] = {"type": "AdamW", "params": auto}
    return config
