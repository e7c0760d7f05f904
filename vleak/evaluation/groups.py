"""Groups of cells: from the message of the client to the judgement, descents of a group together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vleak.attacks import Observation, Reconstruction, Task, reconstruct_all
from vleak.errors import VleakError, argument, first_line, interrupts, out_of_memory, utf8_text
from vleak.evaluation.plan import PlannedCell
from vleak.evaluation.unaware import non_adaptive_record, unaware
from vleak.federated import Update
from vleak.forks import one_process
from vleak.pipelines import Answer, Case, Judgement, Pipeline, Stop
from vleak.pipelines.rounds import Round
from vleak.pipelines.scoring import finite
from vleak.results.records import Cell, NonAdaptiveRecord

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
    """Cells of one client on their way: what they have so far, and why they failed.

    ``unaware`` is the same attack by who does not know the defense, where that was asked for.
    """

    pipeline: Pipeline
    cases: tuple[Case, ...]
    records: list[Cell]
    generator: torch.Generator
    update: Update | None = None
    observation: Observation | None = None
    reconstruction: Reconstruction | None = None
    answers: list[Answer] = field(default_factory=list)
    failure: str | None = None
    unaware: _Attempt | None = None

    @property
    def case(self) -> Case:
        """First of its cases; they differ in the clip alone."""
        return self.cases[0]

    @contextmanager
    def recorded(self, who: str) -> Iterator[None]:
        """Keep what goes wrong in the block; an error that is not of vleak names who raised it."""
        try:
            yield
        except StoppedError:
            raise
        except BaseException as error:  # a plug-in may raise anything; other cells go on
            if interrupts(error):
                raise
            self.failure = self._told(who, error)

    def _told(self, who: str, error: BaseException) -> str:
        if out_of_memory(error):
            return f"{who} ran out of memory; {self._smaller()}"
        if isinstance(error, VleakError):
            return utf8_text(str(error))
        return f"{who} raised {type(error).__name__}: {first_line(error)}"

    def _smaller(self) -> str:
        """Say which settings would make the cell fit."""
        case, (_, *shape) = self.case, self.pipeline.samples.private.shape
        fewer = {
            argument("batch", f"{len(case.batch) // 2}"): len(case.batch) > 1,
            f"{argument('frames', max(shape[1] // 2, 2))} or {argument('size', max(shape[2] // 2, 8))}": (
                len(shape) == 4
            ),
            "fewer segments or a smaller extractor": len(shape) < 4,
            argument("restarts", 1): case.attack_settings.get("restarts", 1) != 1,
            argument("workers", 1): True,
        }
        return "lower to " + ", ".join(setting for setting, fits in fewer.items() if fits)

    def task(self, stop: Stop) -> Task:
        """Attack of the client, ready to run: a copy, so that no cell sees what another one left in it."""
        assert self.observation is not None
        return Task(copy.deepcopy(self.case.attack), self.observation, self.generator, stop=stop)

    @one_process()
    def results(self) -> list[Result]:
        """Finished cells, one a clip of the client."""
        if self.failure is not None or self.update is None or self.observation is None:
            return [self._failed(record) for record in self.records]
        results = [self._judged(*cell) for cell in zip(self.cases, self.records, self.answers, strict=True)]
        if self.unaware is None:
            return results
        return [
            replace(result, cell=result.cell.model_copy(update={"non_adaptive": record}))
            for result, record in zip(results, self.unaware.non_adaptive(), strict=True)
        ]

    def non_adaptive(self) -> list[NonAdaptiveRecord]:
        """Records of the attacker who does not know the defense, one a clip of the client."""
        if self.failure is not None:
            return [NonAdaptiveRecord(status=f"failed: {self.failure}")] * len(self.cases)
        return [self._non_adaptive(*each) for each in zip(self.cases, self.answers, strict=True)]

    def _non_adaptive(self, case: Case, answer: Answer) -> NonAdaptiveRecord:
        self.failure = None
        with self.recorded("judging"):
            return non_adaptive_record(self.pipeline, case, answer)
        return NonAdaptiveRecord(status=f"failed: {self.failure}")

    def _failed(self, record: Cell) -> Result:
        return Result(record.model_copy(update={"status": f"failed: {self.failure}"}))

    def _judged(self, case: Case, record: Cell, answer: Answer) -> Result:
        judgement: Judgement | None = None
        self.failure = None
        with self.recorded("judging"):
            assert self.update is not None
            assert self.observation is not None
            judgement = self.pipeline.judge(case, self.update, self.observation, answer)
        if judgement is None:
            return self._failed(record)
        changes = {
            "attack": _attack_record(record, answer),
            "scores": judgement.scores,
            "enhanced": judgement.enhancement,
            "update": judgement.update,
            "ceilings": judgement.ceilings,
            "flags": answer.flags,
            "status": "ok",
        }
        return Result(record.model_copy(update=changes), judgement.picture, judgement.enhanced)


@one_process()
def run_group(
    clients: Sequence[Sequence[PlannedCell]], stop: Stop, *, batched: bool = False, spread: Spread = map
) -> list[Result]:
    """Run the cells of some clients; each gives the numbers that it gives alone.

    Args:
        clients: for each the cells of its clips, which one attack answers; in the order of the results.
        stop: asked between iterations.
        batched: whether descents of different clients share a batch.
        spread: calls what needs no batch for every client.

    Raises:
        StoppedError: ``stop`` said so; an answer that was cut short is worth nothing.
    """
    attempts = list(spread(_begin, clients))
    _reconstruct([attempt for attempt in attempts if attempt.failure is None], stop, batched=batched)
    beside = [a.unaware for a in attempts if a.unaware is not None and a.failure is None]
    _reconstruct([attempt for attempt in beside if attempt.failure is None], stop, batched=batched)
    if stop():
        raise StoppedError("stopped within a cell")
    for attempt in (*attempts, *beside):
        _answer(attempt, stop)
    if stop():
        raise StoppedError("stopped within a cell")
    return [result for results in spread(_Attempt.results, attempts) for result in results]


@one_process()
def _begin(cells: Sequence[PlannedCell]) -> _Attempt:
    """Let the client send its message, and collect what the attacker may use."""
    pipeline, cases = cells[0].pipeline, tuple(cell.case for cell in cells)
    case, blanks = cases[0], [pipeline.blank(case) for case in cases]
    attempt = _Attempt(pipeline, cases, blanks, pipeline.attack_generator(case))
    with attempt.recorded(f"defense {case.defense.name!r}"):
        attempt.records = [pipeline.stated(blank, own) for blank, own in zip(blanks, cases, strict=True)]
    if attempt.failure is not None:
        return attempt
    with attempt.recorded(f"client with defense {case.defense.name!r}"):
        rounds = pipeline.rounds(case)
        attempt.update = rounds[-1].update
        attempt.observation = pipeline.observe(case, rounds)
        if case.non_adaptive:
            attempt.unaware = _unaware(attempt, rounds)
    return attempt


def _unaware(attempt: _Attempt, rounds: Sequence[Round]) -> _Attempt:
    """Return the attack of who takes the messages of a client for undefended ones."""
    pipeline, cases = attempt.pipeline, tuple(map(unaware, attempt.cases))
    other = _Attempt(pipeline, cases, [], pipeline.attack_generator(cases[0]))
    with other.recorded("attacker without knowledge of the defense"):
        other.observation = pipeline.observe(cases[0], rounds)
    return other


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


def _answer(attempt: _Attempt, stop: Stop) -> None:
    """Match the parts of the answer to the clips, and lead features back to frames."""
    if attempt.failure is not None or attempt.reconstruction is None:
        return
    with attempt.recorded("feature inversion"):
        parts = attempt.pipeline.parts(attempt.cases, attempt.reconstruction)
        attempt.answers = [
            attempt.pipeline.answer(case, part, attempt.generator, stop)
            for case, part in zip(attempt.cases, parts, strict=True)
        ]


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
            "method": reconstruction.method or None,
            "evidence": dict(reconstruction.evidence),
        }
    )
