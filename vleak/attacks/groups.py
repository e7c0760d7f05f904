"""Groups of descents, one a reconstruction, run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vleak.descent.loop import Descent
from vleak.descent.scheduler import run_descents


@dataclass(eq=False)
class Group:
    """Descents of one reconstruction: `run_descents` with its arguments, and what it raised."""

    descents: Sequence[Descent]
    iterations: int
    progress: Callable[[int], None] | None = None
    stop: Callable[[], bool] | None = None
    every: int = 10
    error: BaseException | None = None


def run_groups(groups: Sequence[Group], *, batched: bool | None = None) -> None:
    """Run every group; what fails in one is kept with it."""
    for group in groups:
        try:
            run_descents(
                group.descents,
                group.iterations,
                progress=group.progress,
                stop=group.stop,
                every=group.every,
                batched=batched,
            )
        except Exception as error:  # noqa: BLE001  raised again by whoever asked for the group
            group.error = error
