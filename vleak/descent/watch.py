"""A step that keeps its own books: what ends a descent is found inside, without a look from outside.

A CUDA graph is not left in the middle, and a batch does not end with one of its trials. So the step itself
notices NaN and a plateau, holds what it carries from then on, and writes its objective down; the caller
reads all of it after a stretch of iterations, as if each descent had ended where it should.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from vleak.descent.capture import Capture, Step, mutated, roots
from vleak.descent.runner import Outcome, Plateau

__all__ = ["FIXED", "LENGTH", "as_step", "changed_inputs", "first_books", "outcomes", "watched"]

#: Iterations whose objectives are kept: the books are to be read at least as often.
LENGTH = 64
#: What the books hold that no iteration changes.
FIXED = ("books:patience", "books:tolerance")

_Values = dict[str, Tensor]


def as_step(capture: Capture) -> Step:
    """Return a captured step as a function; values that it does not know are ignored."""
    return lambda values: dict(
        zip(capture.outputs, capture.graph(*(values[name] for name in capture.inputs)), strict=True)
    )


def changed_inputs(capture: Capture) -> tuple[str, ...]:
    """Return the names of the inputs that a captured step changes in place."""
    graph = capture.graph.graph
    owner = roots(graph)
    changed = {owner[each] for node in graph.nodes for each in mutated(node)}
    placeholders = zip(capture.inputs, graph.find_nodes(op="placeholder"), strict=True)
    return tuple(name for name, node in placeholders if node in changed)


def first_books(plateaus: Sequence[Plateau], device: torch.device, *, alone: bool = False) -> _Values:
    """Return the books of trials before their first iteration.

    Args:
        plateaus: when each trial has settled.
        device: where the step runs.
        alone: the one trial has no trial axis.

    Returns:
        "books:running", whether a trial has not ended; "books:active", whether the next iterations count for
        it, which the caller may change in place; "books:count", iterations that did; "books:history", the
        last `LENGTH` objectives in float64, newest last; and the plateau's.
    """
    patience = torch.tensor([each.patience for each in plateaus], device=device)
    tolerance = torch.tensor([each.tolerance for each in plateaus], dtype=torch.float64, device=device)
    if alone:
        patience, tolerance = patience[0], tolerance[0]
    running = torch.ones_like(patience, dtype=torch.bool)
    return {
        "books:running": running,
        "books:active": running.clone(),
        "books:count": torch.zeros_like(patience),
        "books:since": torch.zeros_like(patience),
        "books:level": torch.full_like(tolerance, math.inf),
        "books:history": tolerance.new_zeros(LENGTH, *tolerance.shape),
        "books:patience": patience,
        "books:tolerance": tolerance,
    }


def watched(step: Step, changed: Collection[str]) -> Step:
    """Return a step that keeps books, and holds a trial that ended.

    A trial whose objective is NaN keeps the state from before that iteration; one that settles, that from
    after it. Neither changes any more, whatever the step makes of it.

    Args:
        step: returns "objective", () or one a trial; with trials, all it carries has a first axis of them.
        changed: the values it changes in place; they become outputs, and stay as they are.

    Returns:
        a function of the step's values and of `first_books`, with the step's outputs and the new books.
    """

    def run(values: _Values) -> _Values:
        own = {name: values[name].clone() for name in changed}
        after = step({**values, **own})
        objective = after["objective"].double()
        counts = values["books:active"] & values["books:running"]
        moves = counts & ~objective.isnan()
        state = {name: value for name, value in {**own, **after}.items() if name in values}
        held = {name: torch.where(_along(moves, new), new, values[name]) for name, new in state.items()}
        return {**after, **held, **_books(values, objective, counts, moves)}

    return run


def _along(trials: Tensor, value: Tensor) -> Tensor:
    return trials.view(trials.shape + (1,) * (value.ndim - trials.ndim))


def _books(values: _Values, objective: Tensor, counts: Tensor, moves: Tensor) -> _Values:
    """Return the new books; the plateau's rule is the runner's."""
    level, since = values["books:level"], values["books:since"]
    margin = (values["books:tolerance"] * level.abs()).masked_fill(level.isinf(), 0.0)
    fell = objective < level - margin
    since = (since + 1).masked_fill(fell, 0)
    settled = (values["books:patience"] > 0) & (since >= values["books:patience"])
    return {
        "books:running": torch.where(counts, moves & ~settled, values["books:running"]),
        "books:count": values["books:count"] + counts,
        "books:since": torch.where(moves, since, values["books:since"]),
        "books:level": torch.where(moves & fell, objective, level),
        "books:history": torch.cat([values["books:history"][1:], objective[None]]),
    }


def outcomes(values: _Values, known: Sequence[int], iterations: int) -> list[Outcome]:
    """Read what the last iterations gave each trial.

    Args:
        values: the books after them.
        known: for each trial, iterations that had counted before.
        iterations: how many there were, at most `LENGTH`.
    """
    rows = values["books:history"][LENGTH - iterations :].reshape(iterations, len(known)).T.tolist()
    running, count = (values[f"books:{name}"].reshape(-1).tolist() for name in ("running", "count"))
    # What counted came first: a trial that has ended does not begin again.
    lengths = [now - before for now, before in zip(count, known, strict=True)]
    return [
        Outcome(row[:length], _reason(row[:length], runs))
        for row, length, runs in zip(rows, lengths, running, strict=True)
    ]


def _reason(history: list[float], runs: bool) -> Literal["done", "nan", "plateau"]:
    if runs or not history:
        return "done"
    return "nan" if math.isnan(history[-1]) else "plateau"
