"""Attack: the base of all attacks, and what runs several of them together.

An attack writes `prepare`, which says where to descend from, and, where it needs more than the smallest
objective, `finish`. Checks, labels, the model's mode, empty updates, the choice among restarts, flags and
time are the base's.
"""

from __future__ import annotations

import copy
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from vleak.attacks.expectation import prior_answer
from vleak.attacks.flags import NEAR_ZERO
from vleak.attacks.knowledge import Knowledge
from vleak.attacks.labels import infer_labels
from vleak.attacks.observation import Observation
from vleak.attacks.reconstruction import DefenseKnowledge, Reconstruction
from vleak.attacks.sign import sign_flags
from vleak.attacks.work import Hooks, Work, knowledge_of_defense
from vleak.descent.scheduler import Group, run_descents, run_groups
from vleak.errors import InputError
from vleak.federated import trained_part
from vleak.forks import one_process
from vleak.registry import Setting

__all__ = [
    "Attack",
    "Hooks",
    "Knowledge",
    "Observation",
    "Reconstruction",
    "Task",
    "Work",
    "reconstruct_all",
    "suited",
]


class Attack(ABC):
    """Base of all attacks: subclasses write `prepare`, perhaps `finish`, and keyword-only settings.

    Attributes:
        name: as on the command line; the name of the class where a subclass gives none.
        takes: what it can rebuild, of "frames" and "features".
        adaptive: whether the attacker knows the defense; False: he gets neither its channel nor its code.
        baseline: whether the attacker never looks at the update; what a baseline scores is no leak.
        several_rounds: whether `prepare` uses earlier rounds; False: it gets the last one alone.
        local_steps: whether `prepare` takes deltas; False: it gets the gradient that a delta stands for
            (`Observation.as_gradient`).
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"frames"})
    adaptive: ClassVar[bool] = True
    baseline: ClassVar[bool] = False
    local_steps: ClassVar[bool] = False
    several_rounds: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Give the class a name where it has none."""
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    @final
    def reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        *,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Reconstruction:
        """Rebuild the private clips from an observation.

        Args:
            observation: all that the attacker may use.
            generator: the only source of randomness, a CPU generator.
            progress: called now and then with the number of iterations done.
            stop: asked between iterations; True makes the attack return what it has.

        Raises:
            InputError: the parts of the observation do not belong together, or the attack returned something
                that is no answer.
        """
        run = _Run(Task(self, observation, generator, progress, stop))
        run.begin()
        while run.work is not None:
            with run.timed():
                run_descents(run.work.descents, run.work.iterations, progress=run.progress(), stop=stop)
            run.finish()
        return run.answer()

    @abstractmethod
    def prepare(
        self, observation: Observation, generator: torch.Generator, hooks: Hooks
    ) -> Work | Reconstruction:
        """Return the descents to run, or the answer where there is nothing to descend.

        Args:
            observation: checked; the model in the mode that the client used, labels inferred where they are
                not granted, the update not empty. For a baseline as it was given.
            generator: the only source of randomness, a CPU generator.
            hooks: for what takes long here.
        """

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return the answer after the descents have run, or the descents of a further round.

        Args:
            work: what `prepare` or the last `finish` returned; its descents hold where they stand.
            hooks: as of `prepare`.
        """
        return work.answer()

    def answer_to_empty(self, observation: Observation) -> Reconstruction | None:
        """Return the answer to an update of zeros, the best one without it; None leaves it to `prepare`."""
        return Reconstruction(
            clips=prior_answer(observation.knowledge).clone(),
            labels=observation.labels,
            defense_knowledge=_granted_knowledge(observation),
            flags=(NEAR_ZERO,),
        )

    def settings(self) -> dict[str, Setting]:
        """Return every setting by name: the keyword-only arguments of the class."""
        parameters = inspect.signature(type(self)).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __repr__(self) -> str:
        """Show the class with its settings."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({settings})"


def _granted_knowledge(observation: Observation) -> DefenseKnowledge:
    if observation.channel is not None:
        return knowledge_of_defense(observation.channel)
    return "none"  # nothing was simulated for an update that is empty


# ---------------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class Task:
    """One reconstruction to run, with the arguments of `Attack.reconstruct`."""

    attack: Attack
    observation: Observation
    generator: torch.Generator
    progress: Callable[[int], None] | None = None
    stop: Callable[[], bool] | None = None


def reconstruct_all(
    tasks: Sequence[Task], *, batched: bool | None = None
) -> list[Reconstruction | Exception]:
    """Run several reconstructions, the descents of all of them together, round by round.

    Each gives the numbers that it gives alone, and one that fails leaves the others alone.

    Args:
        tasks: the reconstructions.
        batched: as of `vleak.descent.scheduler.run_groups`.

    Returns:
        by task its answer, or what it raised.
    """
    runs = [_Run(task) for task in tasks]
    for run in runs:
        run.attempt(run.begin)
    while waiting := [run for run in runs if run.work is not None]:
        _run_round(waiting, batched)
    return [run.outcome() for run in runs]


def _run_round(runs: Sequence[_Run], batched: bool | None) -> None:
    """Run the descents of every run, then let each go on or end."""
    groups = [run.group() for run in runs]
    before, started = [run.iterations() for run in runs], time.perf_counter()
    run_groups(groups, batched=batched)
    seconds = time.perf_counter() - started
    counts = [run.iterations() - count for run, count in zip(runs, before, strict=True)]
    for run, group, count in zip(runs, groups, counts, strict=True):
        run.seconds += seconds * count / max(sum(counts), 1)
        run.attempt(lambda run=run, error=group.error: run.finish(error))  # type: ignore[misc]


@dataclass(eq=False)
class _Run:
    """One reconstruction under way.

    Attributes:
        task: its arguments.
        work: the descents of the round that comes next; None before the first and after the last.
        result: the checked answer of the attack, None until it is there.
        error: what it raised under `attempt`.
        seconds: time taken so far.
        flags: what the update alone raises.
    """

    task: Task
    work: Work | None = None
    result: Reconstruction | None = None
    error: Exception | None = None
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    hooks: Hooks = field(init=False)

    def __post_init__(self) -> None:
        self.hooks = Hooks(self.task.progress, self.task.stop)

    def begin(self) -> None:
        """Check the observation and prepare the first round."""
        with self.timed():
            self._take(self._prepare())

    def finish(self, error: BaseException | None = None) -> None:
        """Take the descents of this round as run, or as failed, and prepare the next round or the answer."""
        work, self.work = self.work, None
        if error is not None:
            raise error
        assert work is not None
        with self.timed():
            self._take(self.task.attack.finish(work, self.hooks))

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step and keep what it raises."""
        try:
            step()
        except Exception as error:  # noqa: BLE001  an attack from outside may raise anything
            self.error, self.work = error, None

    def answer(self) -> Reconstruction:
        """Return the answer with the time that it took."""
        assert self.result is not None
        return replace(self.result, seconds=self.seconds, flags=(*self.flags, *self.result.flags))

    def outcome(self) -> Reconstruction | Exception:
        """Return the answer, checked, or what the attack raised; an answer that is none raises too."""
        if self.error is None:
            try:
                return self.answer()
            except InputError as error:
                self.error = error
        return self.error

    def progress(self) -> Callable[[int], None] | None:
        """Return the caller's progress, counted from before the present round."""
        report, done = self.hooks.progress, 0 if self.work is None else self.work.done
        return report if report is None or not done else (lambda count: report(done + count))

    def group(self) -> Group:
        """Return the descents of the present round."""
        assert self.work is not None
        return Group(self.work.descents, self.work.iterations, self.progress(), self.task.stop)

    def iterations(self) -> int:
        """Return the iterations that the descents of the present round have run."""
        return 0 if self.work is None else sum(len(d.state.history) for d in self.work.descents)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a block as this run's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    @one_process()
    def _prepare(self) -> Work | Reconstruction:
        attack, observation, generator = self.task.attack, self.task.observation, self.task.generator
        observation.check()
        kind = "features" if observation.knowledge.of_features else "frames"
        if kind not in attack.takes:
            takes = " or ".join(sorted(attack.takes))
            raise InputError(f"attack {attack.name!r} takes {takes}, not {kind}; choose another")
        if attack.baseline:
            return attack.prepare(observation, generator, self.hooks)
        observation = _as_the_client(observation)
        self.flags = sign_flags(replace(observation, update=self.task.observation.update))
        observation = suited(attack, observation)
        answer = attack.answer_to_empty(observation) if observation.empty else None
        return attack.prepare(observation, generator, self.hooks) if answer is None else answer

    def _take(self, outcome: object) -> None:
        """Keep the next round, or the answer once it is checked."""
        name = self.task.attack.name
        if isinstance(outcome, Work):
            outcome.check(name)
            self.work = outcome
        elif isinstance(outcome, Reconstruction):
            self.result = outcome.checked(name, self.task.observation.knowledge)
        else:
            raise InputError(
                f"attack {name!r} returned {type(outcome).__name__}, expected a Reconstruction or Work"
            )


def suited(attack: Attack, observation: Observation) -> Observation:
    """Return as much of an observation as an attack can take: of one round, or as a gradient."""
    if not attack.several_rounds:
        observation = replace(observation, earlier=())
    return observation if attack.local_steps else observation.as_gradient()


def _as_the_client(observation: Observation) -> Observation:
    """Return the observation with the trained part of the model, in the client's mode, and with labels."""
    model = _in_mode(trained_part(observation.model), observation.update.facts.mode)
    earlier = tuple(
        replace(other, model=_in_mode(trained_part(other.model), other.update.facts.mode))
        for other in observation.earlier
    )
    observation = replace(observation, model=model, earlier=earlier)
    if observation.knowledge.labels is not None:
        return observation
    labels = infer_labels(observation.as_gradient())
    knowledge = replace(observation.knowledge, labels=labels, labels_inferred=True)
    earlier = tuple(replace(other, knowledge=knowledge) for other in earlier)
    return replace(observation, knowledge=knowledge, earlier=earlier)


def _in_mode(model: nn.Module, mode: str) -> nn.Module:
    """Return the model in a mode; a copy unless all of it is in eval mode already."""
    if mode != "train" and not any(module.training for module in model.modules()):
        return model
    # Also where the mode is its own: a forward pass in train mode moves the statistics of batch norm.
    model = copy.deepcopy(model).train(mode == "train")
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()  # the client's masks are unknown; on average they are this
    return model
