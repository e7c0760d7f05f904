"""Work of an attack: descents to run, and the answer from where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vleak.attacks.flags import descent_flags
from vleak.attacks.reconstruction import DefenseKnowledge, Reconstruction
from vleak.descent.loop import Descent, State
from vleak.errors import InputError
from vleak.federated import Channel

__all__ = ["Hooks", "Work", "knowledge_of_defense"]


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the caller while an attack runs.

    Attributes:
        progress: called now and then with the number of iterations done; or None.
        stop: asked now and then; True makes the attack return what it has; or None.
    """

    progress: Callable[[int], None] | None = None
    stop: Callable[[], bool] | None = None

    def stopped(self) -> bool:
        """Return whether the caller wants no more."""
        return self.stop is not None and self.stop()

    def report(self, done: int) -> None:
        """Tell the caller how many iterations are done."""
        if self.progress is not None:
            self.progress(done)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Descents to run, one a restart, and how to read an answer from where they end.

    Attributes:
        descents: at least one.
        iterations: of each.
        labels: (B,) int64, of the answer.
        decode: by descent, the map from its variable to clips; empty where the variable is the clips.
        channel: the channel that the attack used, or None.
        earlier: by descent, where the restart stood, in clips, when an earlier round ended; empty for none.
        state: anything that `Attack.finish` needs.
    """

    descents: Sequence[Descent]
    iterations: int
    labels: Tensor
    decode: Sequence[Callable[[Tensor], Tensor]] = ()
    channel: Channel | None = None
    earlier: Sequence[State] = ()
    state: object = None

    def check(self, attack: str) -> None:
        """Refuse work that cannot be run.

        Args:
            attack: name of the attack, for the message.

        Raises:
            InputError: no descent, something else than descents, or iterations that are no whole number
                from 0.
        """
        descents = list(self.descents)
        if not descents or not all(hasattr(d, "run") and hasattr(d, "state") for d in descents):
            kinds = ", ".join(sorted({type(descent).__name__ for descent in descents})) or "none"
            raise InputError(f"attack {attack!r} returned Work of {kinds}, expected at least one Descent")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise InputError(
                f"attack {attack!r} returned Work of {self.iterations!r} iterations, expected a whole number"
            )

    @property
    def done(self) -> int:
        """Iterations of the earlier rounds."""
        return sum(len(state.history) for state in self.earlier)

    def states(self) -> list[State]:
        """Return by restart where it stands after all rounds so far, the best in clips."""
        states = [descent.state for descent in self.descents]
        if self.decode:
            with torch.no_grad():
                states = [
                    replace(state, best=decode(state.best))
                    for state, decode in zip(states, self.decode, strict=True)
                ]
        if not self.earlier:
            return states
        return [_joined(first, second) for first, second in zip(self.earlier, states, strict=True)]

    def answer(self) -> Reconstruction:
        """Return the restart with the smallest objective; the truth is not asked."""
        states = self.states()
        chosen = min(states, key=lambda state: state.best_objective)
        return Reconstruction(
            clips=chosen.best.cpu(),
            labels=self.labels,
            defense_knowledge=knowledge_of_defense(self.channel),
            engine=self.descents[0].engine,
            iterations=sum(len(state.history) for state in states),
            restarts=sum(bool(state.history) for state in states),
            objective=chosen.best_objective if math.isfinite(chosen.best_objective) else math.nan,
            history=tuple(chosen.history),
            nan_at=chosen.nan_at,
            flags=descent_flags(chosen),
        )


def _joined(first: State, second: State) -> State:
    """Return where a restart stands whose second round has another problem; the first where that failed."""
    if first.nan_at is not None or not math.isfinite(second.best_objective):
        return first
    return replace(
        second,
        history=[*first.history, *second.history],
        nan_at=None if second.nan_at is None else len(first.history) + second.nan_at,
        begun=len(first.history),
    )


def knowledge_of_defense(channel: Channel | None) -> DefenseKnowledge:
    """Return how an attack that used this channel knew of the defense."""
    if channel is None:
        return "none"
    return "channel" if channel.source == "stated" else "simulated"
