"""Groups of cells: from the message of the client to the judgement, descents of a group together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vleak.attacks import Observation, Reconstruction, Task, reconstruct_all
from vleak.errors import VleakError, first_line, interrupts, utf8_text
from vleak.evaluation.plan import PlannedCell
from vleak.federated import Update
from vleak.pipelines import Answer, Case, Judgement, Pipeline, Stop
from vleak.pipelines.scoring import finite
from vleak.results.records import Cell

__all__ = ["Result", "StoppedError", "run_group"]

Input = TypeVar("Input")
Output = TypeVar("Output")


class StoppedError(VleakError):
    """The run was stopped from outside; what is finished is stored."""


class Spread(Protocol):
    """Calls a function on every item, in order of the items: ``map``, or that of a pool of threads."""

    def __call__(self, call: Callable[[Input], Output], items: Iterable[Input], /) -> Iterator[Output]:
        """Call it on every item."""


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        cell: its record, without the files of its pictures.
        picture: (C, T, H, W) in [0, 1], the rebuilt clip; None where there are no frames, or the cell failed.
        enhanced: (C, T, 2H, 2W) in [0, 1], where that was asked for.
    """

    cell: Cell
    picture: Tensor | None = None
    enhanced: Tensor | None = None


@dataclass
class _Attempt:
    """A cell on its way: what it has so far, and why it failed."""

    pipeline: Pipeline
    case: Case
    record: Cell
    generator: torch.Generator
    update: Update | None = None
    observation: Observation | None = None
    reconstruction: Reconstruction | None = None
    failure: str | None = None

    @contextmanager
    def recorded(self, who: str) -> Iterator[None]:
        """Keep what goes wrong in the block; an error that is not of vleak names who raised it."""
        try:
            yield
        except StoppedError:
            raise
        except VleakError as error:
            self.failure = utf8_text(str(error))
        except BaseException as error:  # a plug-in may raise anything; other cells go on
            if interrupts(error):
                raise
            line = first_line(error)
            self.failure = f"{who} raised {type(error).__name__}: {line}"

    def task(self, stop: Stop) -> Task:
        """Attack of the cell, ready to run: a copy, so that no cell sees what another one left in it."""
        assert self.observation is not None
        return Task(copy.deepcopy(self.case.attack), self.observation, self.generator, stop=stop)

    def result(self, judgement: Judgement | None = None, answer: Answer | None = None) -> Result:
        """Finished cell."""
        if judgement is None or answer is None:
            return Result(self.record.model_copy(update={"status": f"failed: {self.failure}"}))
        changes = {
            "attack": _attack_record(self.record, answer),
            "scores": judgement.scores,
            "enhanced": judgement.enhancement,
            "update": judgement.update,
            "flags": answer.flags,
            "status": "ok",
        }
        return Result(self.record.model_copy(update=changes), judgement.picture, judgement.enhanced)


def run_group(
    cells: Sequence[PlannedCell], stop: Stop, *, batched: bool = False, spread: Spread = map
) -> list[Result]:
    """Run some cells; each gives the numbers that it gives alone.

    Args:
        cells: in the order of the results.
        stop: asked between iterations.
        batched: whether descents of different cells share a batch.
        spread: calls what needs no batch for every cell.

    Raises:
        StoppedError: ``stop`` said so; an answer that was cut short is worth nothing.
    """
    attempts = list(spread(_begin, cells))
    _reconstruct([attempt for attempt in attempts if attempt.failure is None], stop, batched=batched)
    if stop():
        raise StoppedError("stopped within a cell")
    answers = [_answer(attempt, stop) for attempt in attempts]
    if stop():
        raise StoppedError("stopped within a cell")
    return list(spread(lambda pair: _judge(*pair), list(zip(attempts, answers, strict=True))))


def _begin(cell: PlannedCell) -> _Attempt:
    """Let the client send its message, and collect what the attacker may use."""
    pipeline, case = cell.pipeline, cell.case
    attempt = _Attempt(pipeline, case, pipeline.blank(case), pipeline.attack_generator(case))
    with attempt.recorded(f"defense {case.defense.name!r}"):
        attempt.record = pipeline.stated(attempt.record, case)
    if attempt.failure is not None:
        return attempt
    with attempt.recorded(f"client with defense {case.defense.name!r}"):
        client = pipeline.client(case.defense)
        attempt.update = pipeline.update(case, client)
        attempt.observation = pipeline.observe(case, attempt.update, client)
    return attempt


def _reconstruct(attempts: Sequence[_Attempt], stop: Stop, *, batched: bool) -> None:
    """Run the attacks, their descents together."""
    tasks = {}
    for index, attempt in enumerate(attempts):
        with attempt.recorded(f"attack {attempt.case.attack_name!r}"):
            tasks[index] = attempt.task(stop)
    outcomes: Sequence[Reconstruction | BaseException]
    try:
        outcomes = reconstruct_all(list(tasks.values()), batched=batched)
    except BaseException as error:  # SystemExit, say, which ends all that run together
        if interrupts(error):
            raise
        outcomes = [error] * len(tasks)
    for attempt, outcome in zip((attempts[index] for index in tasks), outcomes, strict=True):
        with attempt.recorded(f"attack {attempt.case.attack_name!r}"):
            if isinstance(outcome, BaseException):
                raise outcome
            attempt.reconstruction = outcome


def _answer(attempt: _Attempt, stop: Stop) -> Answer | None:
    if attempt.reconstruction is None:
        return None
    with attempt.recorded("feature inversion"):
        return attempt.pipeline.answer(attempt.case, attempt.reconstruction, attempt.generator, stop)
    return None


def _judge(attempt: _Attempt, answer: Answer | None) -> Result:
    if answer is None or attempt.update is None or attempt.observation is None:
        return attempt.result()
    judgement = None
    with attempt.recorded("judging"):
        judgement = attempt.pipeline.judge(attempt.case, attempt.update, attempt.observation, answer)
    return attempt.result(judgement, answer)


def _attack_record(record: Cell, answer: Answer) -> object:
    reconstruction = answer.reconstruction
    return record.attack.model_copy(
        update={
            "adaptive": reconstruction.adaptive,
            "defense_knowledge": reconstruction.defense_knowledge,
            "iterations": reconstruction.iterations,
            "restarts": reconstruction.restarts,
            "seconds": round(answer.seconds, 3),
            "engine": reconstruction.engine,
            "objective": finite(reconstruction.objective),
            "nan_at": reconstruction.nan_at,
        }
    )
