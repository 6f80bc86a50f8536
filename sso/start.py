"""What a shell starts. A command is handed to the warm interpreter, where there is one, before anything large is
imported: in a run of hundreds of jobs that is minutes."""

import importlib
import os

from sso.jobs import lifeline, warm


def _start(program: str) -> int:
    if os.environ.get("SSO_WARM"):
        lifeline.follow()
        code = warm.forward(program)
        if code is not None:
            return code
    return importlib.import_module(warm.MODULES[program]).main()


def sso() -> int:
    """Entry point of `sso`."""
    return _start("sso")


def sso_eval() -> int:
    """Entry point of `sso-eval`."""
    return _start("sso-eval")


def sso_rewardbench() -> int:
    """Entry point of `sso-rewardbench`."""
    return _start("sso-rewardbench")
