"""Progress of long work: a bar with rate and remaining time in a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_LINE = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"
_EVERY_S = 60


class Bar(tqdm):
    """A bar; where standard error is no terminal, a line on standard output a tenth of the work, and one a minute."""

    monitor_interval = 0  # no thread beside the work
    disable: bool

    def __init__(self, *args: Any, **kwargs: Any):
        self.plain, self.last = not sys.stderr.isatty(), (-1, -1)
        # tqdm itself leaves out what comes sooner than ten times a second.
        refresh = {"mininterval": 0, "miniters": 1} if self.plain else {"dynamic_ncols": True}
        super().__init__(*args, **{"smoothing": 0, "disable": False, **refresh, **kwargs})

    def display(self, *args: Any, **kwargs: Any) -> None:
        if not self.plain:
            super().display(*args, **kwargs)
            return
        if not self.n:
            return
        reached = 10 * self.n // max(self.total or 1, 1), int((self._time() - self.start_t) // _EVERY_S)
        if reached != self.last:
            self.last = reached
            print(self.format_meter(**{**self.format_dict, "bar_format": _LINE}), flush=True)

    def close(self) -> None:
        if not self.plain:
            super().close()
        elif not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)


def progress(what: str) -> Callable[..., None]:
    """A function that shows (done, total) of ``what``, and a note behind it where one is given."""
    bar, started = None, time.time()

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal bar
        if bar is None:
            bar = Bar(desc=what, total=total)
            bar.start_t = started  # the first part took time too
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def show_steps(trainer: Any, what: str) -> None:
    """Have a transformers.Trainer show its steps and its last loss, in place of a printed dictionary a step."""
    from transformers import PrinterCallback, TrainerCallback

    class Steps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.show, self.note = progress(what), ""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                self.note = f"loss {logs['loss']:.4g}"

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.show(state.global_step, state.max_steps, self.note)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
