"""A warm interpreter: start-up is paid once a run, not once a job.

Importing torch and transformers costs eight seconds, more than most jobs of the micro-world work. A server that
has imported them forks a child for each command. `sso`, `sso-eval` and `sso-rewardbench` hand their command to
the server whose socket SSO_WARM names, and do the work themselves where there is none: results are the same.

The server lives as long as the process that started it; a child dies with the command that asked for it. It serves
its own kind alone: a command in another environment (vLLM's), or inside a cluster's job, has its own to use.
"""

import hashlib
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sso.jobs import lifeline

MODULES = {"sso": "sso.cli", "sso-eval": "eval.cli", "sso-rewardbench": "rewardbench.cli"}
PRELOAD = (
    "deepspeed",
    "transformers.trainer",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.llama.modeling_llama",
    "sso.train.preference",
    "sso.sampling.transformers_engine",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
)
_POLL = 0.05


def place() -> str:
    """A name for where a command runs: the Python environment, and the cluster's job around it."""
    where = [sys.prefix, os.environ.get("SLURM_JOB_ID", "")]
    return hashlib.sha256("\0".join(where).encode()).hexdigest()[:16]


def start() -> None:
    """Start a server for the commands of this process and its children."""
    path = str(Path(tempfile.mkdtemp(prefix="sso-warm-"), place()))  # the folder is this user's alone
    # DeepSpeed asks for GPUs when it is imported. Asked through CUDA, no fork could use one any more.
    asking = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    subprocess.Popen([sys.executable, "-m", "sso.jobs.warm", path], stdin=subprocess.DEVNULL, env=asking)
    os.environ["SSO_WARM"] = path


def forward(program: str) -> int | None:
    """Exit code of this process's command that a warm interpreter ran; None where no server of this place is there."""
    path = os.environ.get("SSO_WARM")
    if not path or Path(path).name != place():
        return None
    request = {
        "module": MODULES[program],
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k != "SSO_WARM"},
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            sys.stdout.flush()
            sys.stderr.flush()
            socket.send_fds(connection, [struct.pack("!I", len(body))], [1, 2])
            connection.sendall(body)
        except OSError:
            return None
        answer = connection.recv(4, socket.MSG_WAITALL)
    # A server that is gone without an answer took the child with it.
    return struct.unpack("!i", answer)[0] if len(answer) == 4 else 1


def _child(request: dict, outputs: Sequence[int]) -> int:
    """Run one command as if it had been started by itself."""
    lifeline.die_with_parent()
    for number, output in zip((1, 2), outputs, strict=True):
        os.dup2(output, number)
        os.close(output)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    try:
        return importlib.import_module(request["module"]).main(request["argv"])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A request and the descriptors of its outputs; ConnectionError where the asking command is gone half-way."""
    head, outputs, _, _ = socket.recv_fds(connection, 4, 2)
    body, chunk = b"", head
    while len(head) == 4 and chunk and len(body) < struct.unpack("!I", head)[0]:
        chunk = connection.recv(1 << 16)
        body += chunk
    if len(head) < 4 or not chunk:
        for output in outputs:
            os.close(output)
        raise ConnectionError("incomplete request")
    return json.loads(body), outputs


def serve(path: str, preload: Sequence[str] = PRELOAD) -> None:
    """Answer until the starting process is gone."""
    import gc
    import logging

    parent = os.getppid()
    # Ctrl-C goes to the whole group: the jobs end by it, the server when its parent has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)  # commands wait here while the modules load
    gc.disable()
    logging.disable(logging.WARNING)  # what imports say would stand in the workflow's own output
    for name in preload:
        with suppress(Exception):  # not installed, or broken here: a command that needs it tells so itself
            importlib.import_module(name)
    logging.disable(logging.NOTSET)
    gc.freeze()
    selector = selectors.DefaultSelector()
    children: dict[socket.socket, int] = {}
    selector.register(listener, selectors.EVENT_READ)
    try:
        while os.getppid() == parent:
            for key, _ in selector.select(_POLL):
                if key.fileobj is not listener:
                    # The asking command is gone: so is its child.
                    os.kill(key.data, signal.SIGKILL)
                    selector.unregister(key.fileobj)
                    continue
                connection, _ = listener.accept()
                try:
                    request, outputs = _receive(connection)
                except ConnectionError:
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    selector.close()
                    for other in children:
                        other.close()
                    # The connection stays open in the parent alone, so that only the asking command holds it.
                    connection.close()
                    os._exit(_child(request, outputs))
                for output in outputs:
                    os.close(output)
                children[connection] = pid
                selector.register(connection, selectors.EVENT_READ, pid)
            _reap(selector, children)
    finally:
        for pid in children.values():
            os.kill(pid, signal.SIGKILL)
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()


def _reap(selector: selectors.BaseSelector, children: dict[socket.socket, int]) -> None:
    """Tell finished children's exit codes to those who wait for them."""
    for connection, pid in list(children.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            continue
        del children[connection]
        if connection in selector.get_map():
            selector.unregister(connection)
            with suppress(OSError):
                connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))
        connection.close()


if __name__ == "__main__":
    # While the modules load, too; the loop of `serve` is for starters that are no workflow.
    lifeline.follow(lambda: shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True))
    serve(sys.argv[1])
