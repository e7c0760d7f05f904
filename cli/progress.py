"""Progress of a long call of the library, shown as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vleak.cli import output, stopping, streams

__all__ = ["shown_progress"]


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what takes (what, done, total) and moves a bar; what plug-ins print goes to stderr meanwhile.

    Raises:
        KeyboardInterrupt: a signal arrived; every call looks.
    """
    stopping.check()
    with streams.plugins_on_stderr(), output.progress_bar() as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            stopping.check()
            bar.update(task, description=what, completed=done, total=total or None)

        yield show
