"""What a run shows while it works: a bar on a terminal, elsewhere a line every half a minute."""

import shutil
import sys
import threading
import time

from tqdm import tqdm

FORMAT = "{n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"


class Bar:
    """A bar that fits the terminal, also when that changes: a longer line would wrap."""

    def __init__(self, total: int, start: int):
        self._bar = tqdm(total=total, initial=start, bar_format=FORMAT, ncols=_width(), file=sys.stdout)

    def update(self, step: int, meta_loss: float, inner_steps_per_second: float) -> None:
        """Shows the progress after outer step ``step``."""
        self._bar.ncols = _width()
        self._bar.set_postfix_str(f"meta-loss {meta_loss:.4f}, {inner_steps_per_second:,.0f} inner steps/s", False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A line after the first dispatch and after the last, and whenever nothing was said for ``every`` seconds.

    They come from a thread as well, because compiling or a dispatch may take longer than that.
    """

    def __init__(self, total: int, start: int, every: float = 30.0):
        self._total, self._start, self._every = total, start, every
        self._began = self._said = time.monotonic()
        self._text, self._is_first = "still compiling", True
        self._closed = threading.Event()
        threading.Thread(target=self._repeat, daemon=True).start()

    def update(self, step: int, meta_loss: float, inner_steps_per_second: float) -> None:
        """Shows the progress after outer step ``step``."""
        now = time.monotonic()
        left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
        self._text = (
            f"outer step {step} of {self._total}  meta-loss {meta_loss:.4f}  "
            f"{inner_steps_per_second:,.0f} inner steps/s  {left / 60:.1f} min left"
        )
        if self._is_first or step == self._total or now - self._said >= self._every:
            self._say()
        self._is_first = False

    def close(self) -> None:
        self._closed.set()

    def _repeat(self) -> None:
        while not self._closed.wait(max(self._said + self._every - time.monotonic(), 0.01)):
            if time.monotonic() - self._said >= self._every:
                try:
                    self._say()
                except Exception:  # the run itself notices that its output is broken, and says so
                    return

    def _say(self) -> None:
        self._said = time.monotonic()
        print(self._text, flush=True)


def begin(total: int, start: int) -> Bar | Lines:
    """The progress of a run of ``total`` outer steps that begins after ``start``; it is being compiled.

    On a terminal the bar stands from the beginning.
    """
    tqdm.write("compiling ...")
    return Bar(total, start) if sys.stdout.isatty() else Lines(total, start)


def _width() -> int:
    return shutil.get_terminal_size().columns - 1
