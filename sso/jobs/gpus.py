"""Which GPUs a job may use on one machine: a lock file each, held by the kernel as long as a process of the job lives.

A crash, even SIGKILL of all, frees them; a child that still runs keeps them. Where CUDA_VISIBLE_DEVICES is set, in a
shell or by a cluster's allocation, jobs share what it shows.
"""

import fcntl
import os
import tempfile
import time
from pathlib import Path

from sso.errors import InputError

WANTED = "SSO_GPUS"
"""The environment variable that says how many the workflow wants for a job."""
HAS = "SSO_HAS_GPUS"
"""Set in the processes of a job that has GPUs, be it by a claim of its own or by a cluster."""
DEVICES = Path("/dev")


def folder() -> Path:
    """Where the locks lie: one place a user and machine, whatever the working directory; or one a cluster's job, in
    which GPUs may be numbered anew."""
    name = "-".join(filter(None, ["sso-gpus", str(os.getuid()), os.environ.get("SLURM_JOB_ID")]))
    return Path(os.environ.get("SSO_GPU_LOCKS") or Path(tempfile.gettempdir()) / name)


def known() -> dict[str, str]:
    """This machine's GPUs, or those that SSO_GPU_IDS (`0,1,2`), else CUDA_VISIBLE_DEVICES leaves to this workflow, by
    CUDA's number or a name of the user's; each with the name of its lock.

    CUDA counts from 0 what a container was given, while the device files keep the host's numbers: these name the
    locks, so that containers with a common folder of locks, and the host, mean the same GPU.
    """
    files = (path.name.removeprefix("nvidia") for path in DEVICES.glob("nvidia[0-9]*"))
    numbers = sorted(int(number) for number in files if number.isdecimal())
    given = os.environ.get("SSO_GPU_IDS") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return {str(at): str(number) for at, number in enumerate(numbers)}
    names = [name.strip() for name in given.split(",") if name.strip()]
    return {name: str(numbers[int(name)]) if name.isdecimal() and int(name) < len(numbers) else name for name in names}


def claim(count: int, wait_s: float = 600, poll_s: float = 0.5) -> list[str]:
    """Lock ``count`` GPUs for this process and what it starts; waits while others hold them.

    Raises:
        InputError: this machine has fewer, or they are not free within ``wait_s`` seconds.
    """
    names, held = known(), {}
    if len(names) < count:
        raise InputError(f"this job wants {count} GPUs, but {len(names)} are here; lower `devices` in the config.")
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    while True:
        for name in names:
            handle = os.open(place / f"{names[name]}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            held[name] = handle
            if len(held) == count:
                for one in held.values():
                    os.set_inheritable(one, True)  # torchrun and its processes keep them too
                return list(held)
        # All or none: two jobs that each hold half would wait for ever.
        for handle in held.values():
            os.close(handle)
        held.clear()
        if time.monotonic() > deadline:
            raise InputError(
                f"no {count} free GPUs in {wait_s:.0f} s: other jobs hold the locks in {place}; "
                "run Snakemake with `--resources gpu=N`, N what this machine has."
            )
        time.sleep(poll_s * (1 + os.getpid() % 7 / 7))


def claim_for_job() -> None:
    """Claim what the workflow wants for this job, once, and show it those GPUs alone.

    A cluster's job that sees no more than that has them to itself; one that sees more (an interactive allocation with
    the workflow inside) is shared.
    """
    count = int(os.environ.pop(WANTED, None) or 0)
    shared = "SLURM_JOB_ID" not in os.environ or len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) > count
    if count and shared:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claim(count))
    if count:
        os.environ[HAS] = "1"


def check() -> None:
    """End a job that has GPUs which torch does not find: it would go on with its 8B model on the CPU, without a word.

    Raises:
        InputError: torch finds fewer than are visible to this process; not where SSO_GPU_REHEARSAL asks for the CPU.
    """
    if not os.environ.get(HAS) or "SSO_GPU_REHEARSAL" in os.environ:
        return
    import torch

    shown, found = os.environ.get("CUDA_VISIBLE_DEVICES", "any"), torch.cuda.device_count()
    if found < len(shown.split(",")):
        raise InputError(
            f"this job has GPUs (CUDA_VISIBLE_DEVICES: {shown}), but torch finds {found} of them; install a torch "
            "that fits the driver, or name in SSO_GPU_IDS those that are usable."
        )
