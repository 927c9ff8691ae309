"""A progress bar while something is measured: on stderr, only on a terminal, and only where rich is installed.

It has no thread that redraws it, as that would take its time from what is timed: it moves when somebody calls.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[..., None]


def silent(what: str, steps: float = 1) -> None:
    """A bar that nobody sees."""


@contextlib.contextmanager
def bar(total: float) -> Iterator[Advance]:
    """advance(what, steps=1): `steps` more of `total` are done, and `what` comes next. It is gone at the end."""
    if not sys.stderr.isatty():
        yield silent
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield silent
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn()
    # Lines printed to the same terminal go above the bar; those printed to a file must stay in it.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True,
                  redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=total)

        def advance(what: str, steps: float = 1) -> None:
            progress.update(task, advance=steps, description=what, refresh=True)

        yield advance
