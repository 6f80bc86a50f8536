"""What this machine can do, for experiments that name no hardware: one core's two rates, measured."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from sso.config import Hardware
from sso.worlds.settings import World


def this_machine(world: World | None) -> Hardware:
    """One core of this machine in float32, its rates taken as reached in full, so that what follows is a floor. The
    model counts bfloat16's 2 bytes a parameter, so half the bandwidth. With the ``world``'s mean lengths.
    """
    flops, read = _rates()
    own = {"tflops": flops / 1e12, "bandwidth_gbs": read / 2e9, "training_mfu": 1, "decoding_mbu": 1}
    return Hardware(name="one core of this machine", gpus=1, **own, **(world.TOKENS if world else {}))


@cache
def _rates() -> tuple[float, float]:
    """Operations and bytes that a core does in a second, measured in half a second."""
    import numpy as np

    def rate(work: Callable[[], Any], amount: float) -> float:
        work()
        start, count = time.process_time(), 0
        while time.process_time() - start < 0.2:
            work()
            count += 1
        return count * amount / (time.process_time() - start)

    rng = np.random.default_rng(0)
    a, large = rng.normal(size=(512, 512)).astype("float32"), rng.normal(size=(4096, 4096)).astype("float32")
    x = rng.normal(size=4096).astype("float32")
    return rate(lambda: a @ a, 2 * 512**3), rate(lambda: large @ x, 4 * 4096**2)
