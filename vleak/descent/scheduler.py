"""Many descents side by side: clips, restarts and defense strengths that share a captured iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from vleak.descent.batch import Batch, Trial, TrialRunner, batch_key, make_batch, share_weights
from vleak.descent.loop import Descent
from vleak.descent.problem import State
from vleak.descent.runner import HeldInterrupt
from vleak.errors import InputError

__all__ = ["Group", "run_descents", "run_groups"]

#: Descents of one batch: each has targets of its own in memory, and activations.
_BATCH_SIZE = 8

_Result = TypeVar("_Result")


@dataclass(eq=False)
class Group:
    """Descents of one attack, run together; their states are read from them afterwards.

    Attributes:
        descents: the descents, prepared.
        iterations: of each.
        progress: called now and then with the number of iterations done in all of them.
        stop: called between iterations; True ends all of them, which may be taken up again.
        every: iterations of a descent between two such calls.
        error: what ended the group early; None where nothing failed.
    """

    descents: Sequence[Descent]
    iterations: int
    progress: Callable[[int], None] | None = None
    stop: Callable[[], bool] | None = None
    every: int = 10
    error: BaseException | None = None
    _lasts: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: negative iterations, or fewer than one between two calls.
        """
        if self.iterations < 0 or self.every < 1:
            raise InputError(
                f"run: expected iterations >= 0 and every >= 1, got {self.iterations} and {self.every}"
            )
        self._lasts = [len(descent.state.history) + self.iterations for descent in self.descents]

    def next_settings(self) -> dict[Descent, Tensor]:
        """Return the settings of the next iterations of every descent that goes on."""
        if self.error is not None or (self.stop is not None and self.stop()):
            return {}
        pairs = list(zip(self.descents, self._lasts, strict=True))
        rows = {d: d.next_settings(min(self.every, last - len(d.state.history))) for d, last in pairs}
        return {descent: settings for descent, settings in rows.items() if len(settings)}

    def report(self) -> None:
        """Report the iterations done."""
        if self.progress is not None:
            self.progress(sum(len(descent.state.history) for descent in self.descents))


def run_descents(
    descents: Sequence[Descent],
    iterations: int,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    every: int = 10,
    batched: bool | None = None,
) -> list[State]:
    """Run the descents of one attack; see `Group` and `run_groups`.

    Returns:
        their states, in order.

    Raises:
        InputError: negative iterations, or fewer than one between two calls.
        Exception: what a descent, `progress` or `stop` raised.
    """
    group = Group(descents, iterations, progress, stop, every)
    run_groups([group], batched=batched, workers=workers)
    if group.error is not None:
        raise group.error
    return [descent.state for descent in descents]


def run_groups(groups: Sequence[Group], *, batched: bool | None = None, workers: int | None = None) -> None:
    """Run descents that do not depend on each other; each gives the numbers that it gives alone.

    On a CPU they share the threads that PyTorch may use: a descent each, with one thread inside. On a CUDA
    device those of all groups that have not begun, have equal weights and differ only in numbers (start,
    labels, target, masks, prior, settings) run batched, up to eight in one program; the others take turns.

    Args:
        groups: what is raised in one of them ends that one only, and is kept in its `error`; what is no
            `Exception`, such as Ctrl-C, ends all of them and is raised.
        batched: None for batches on a CUDA device only: a CPU runs descents faster by themselves.
        workers: descents at a time where they are not batched; None for as many as PyTorch may use threads.
    """
    if batched is None:
        batched = any(descent.state.x.is_cuda for group in groups for descent in group.descents)
    if batched:
        _run_batched(groups)
    else:
        _run_alone(groups, torch.get_num_threads() if workers is None else workers)


# ---------------------------------------------------------------------------------------------------------
# One by one, in threads


def _run_alone(groups: Sequence[Group], workers: int) -> None:
    ended = threading.Event()
    calls = [_alone(group, index, ended) for group in groups for index in range(len(group.descents))]
    if workers == 1 or len(calls) < 2:
        for call in calls:
            call()
        return
    # One thread inside: a descent's own work is too small to share, and no sum depends on the number.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for future in [pool.submit(call) for call in calls]:
                future.result()
        except BaseException:
            ended.set()
            raise


_reporting = threading.Lock()


def _alone(group: Group, index: int, ended: threading.Event) -> Callable[[], None]:
    """Return a call that runs one descent of a group."""

    def stop() -> bool:
        return ended.is_set() or group.error is not None or (group.stop is not None and group.stop())

    def report(_: int) -> None:
        with _reporting:
            group.report()

    def run() -> None:
        if group.error is None:
            progress, descent = None if group.progress is None else report, group.descents[index]
            _guarded(
                group, lambda: descent.run(group.iterations, progress=progress, stop=stop, every=group.every)
            )

    return run


# ---------------------------------------------------------------------------------------------------------
# In batches


def _run_batched(groups: Sequence[Group]) -> None:
    while True:
        rows = {group: _guarded(group, group.next_settings) or {} for group in groups}
        rows = {group: settings for group, settings in rows.items() if settings}
        if not rows:
            return
        together = {d: settings for own in rows.values() for d, settings in own.items()}
        _form_batches(together)
        errors = _advance(together)
        for group, own in rows.items():
            group.error = next((errors[d] for d in own if d in errors), None)
            if group.error is None:
                _guarded(group, group.report)


def _guarded(group: Group, call: Callable[[], _Result]) -> _Result | None:
    """Call, and keep the first error with the group."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  kept in `Group.error`
        group.error = group.error or error
        return None


def _form_batches(descents: Iterable[Descent]) -> None:
    """Put descents that are about to begin, and are alike, into batches."""
    waiting = [
        d
        for d in descents
        if d.fresh and d.engine == "native" and not isinstance(d.runner, TrialRunner) and d.step.local is None
    ]
    trials = share_weights([Trial(d.step, d.runner.values) for d in waiting])
    alike: dict[Hashable, list[tuple[Descent, Trial]]] = {}
    for descent, trial in zip(waiting, trials, strict=True):
        alike.setdefault(batch_key(trial), []).append((descent, trial))
    for members in alike.values():
        for first in range(0, len(members), _BATCH_SIZE):
            _join(members[first : first + _BATCH_SIZE])


def _join(members: Sequence[tuple[Descent, Trial]]) -> None:
    if len(members) < 2:
        return
    try:
        batch = make_batch([trial for _, trial in members])
    except RuntimeError:  # the device's memory, say, which is enough for each alone
        batch = None
    if batch is not None:
        for (descent, _), runner in zip(members, batch.runners, strict=True):
            descent.runner = runner


def _advance(rows: dict[Descent, Tensor]) -> dict[Descent, Exception]:
    """Run the next iterations of every descent, a batch at once, the others in turn; return what failed."""
    errors: dict[Descent, Exception] = {}
    batches: dict[Batch, dict[int, Descent]] = {}
    for descent, settings in rows.items():
        if isinstance(descent.runner, TrialRunner):
            batches.setdefault(descent.runner.batch, {})[descent.runner.trial] = descent
        else:
            try:
                descent.advance(settings)
            except Exception as error:  # noqa: BLE001  kept in `Group.error`
                errors[descent] = error
    for batch, members in batches.items():
        shortest = min(len(rows[descent]) for descent in members.values())
        try:
            _advance_batch(batch, members, {trial: rows[d][:shortest] for trial, d in members.items()})
        except Exception as error:  # noqa: BLE001  kept in `Group.error`
            errors |= dict.fromkeys(members.values(), error)
    return errors


def _advance_batch(batch: Batch, members: dict[int, Descent], settings: dict[int, Tensor]) -> None:
    with HeldInterrupt() as interrupt:
        before = {trial: descent.runner.state() for trial, descent in members.items()}
        blocks = batch.run(settings, interrupt.requested)
        for trial, descent in members.items():
            descent.take(before[trial], settings[trial], blocks[trial])
    # Ctrl-C: the iterations that were done count, and are in the states by now.
    interrupt.deliver()
    for block in blocks.values():
        if block.raised is not None:
            raise block.raised
