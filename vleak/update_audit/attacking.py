"""Attacks of an audit, in a budget: on the captured update, on dummies, and on dummies behind defenses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vleak.attacks import ATTACKS, Attack, Observation, Reconstruction
from vleak.attacks.expectation import prior_answer
from vleak.attacks.trials import aligned
from vleak.defenses import defense_text
from vleak.errors import InputError, VleakError, argument, first_line
from vleak.federated import Client, Defense, Update
from vleak.metrics import identification_rank, psnr, residual_correlation
from vleak.seeds import generator
from vleak.update_audit.consistency import Dummies, cosine
from vleak.update_audit.records import AttackRun, DefenseTrial, Rehearsal
from vleak.update_audit.setup import Setup
from vleak.update_audit.verdict import REBUILT

__all__ = [
    "CANDIDATES",
    "Answer",
    "Clock",
    "Progress",
    "agreement_of",
    "attack_captured",
    "attacks_of",
    "mean_psnr",
    "rehearse",
    "try_defense",
]

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, parts done, parts in all)."""

_LEAST_ITERATIONS, _LEAST_SECONDS = 10, 1.0
CANDIDATES = 12
"""Candidates among which a dummy, or a truth without candidates of its own, is to be recognised."""


@dataclass
class Clock:
    """Time and iterations that the attacks of an audit may take.

    Attributes:
        iterations: of one descent.
        seconds: of all attacks together.
        progress: told what is being done.
        skipped: what there was no time for.
        parts: that there are in all, for the progress.
    """

    iterations: int
    seconds: float
    progress: Progress | None = None
    skipped: list[str] = field(default_factory=list)
    parts: int = 0
    _started: float = field(default_factory=time.monotonic)
    _done: int = 0

    def __post_init__(self) -> None:
        """Check the budget.

        Raises:
            InputError: too little for any attack to begin.
        """
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        if not whole or self.iterations < _LEAST_ITERATIONS:
            raise InputError(
                f"{argument('iterations', self.iterations)}: expected a whole number from "
                f"{_LEAST_ITERATIONS}; an attack does not begin to move before"
            )
        if not _LEAST_SECONDS <= self.seconds < math.inf:
            raise InputError(
                f"{argument('seconds', self.seconds)}: expected a number from {_LEAST_SECONDS:g}; no attack "
                "ends before"
            )

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """Begin to count the time."""
        self._started = time.monotonic()

    def over(self) -> bool:
        """Return whether the time is up."""
        return self.spent >= self.seconds

    def begins(self, what: str, share: float = 1.0) -> bool:
        """Return whether a part may begin, and tell of it; one that may not is noted.

        Args:
            what: the part.
            share: of the time, up to which it may begin.
        """
        self._done += 1
        if self.spent >= self.seconds * share:
            self.skipped.append(what)
            return False
        if self.progress is not None:
            self.progress(what, self._done - 1, self.parts)
        return True


@dataclass(frozen=True)
class Answer:
    """Answer of one start of one attack, and what was recorded of it."""

    run: AttackRun
    clips: Tensor
    labels: Tensor
    evidence: bool


def attacks_of(names: Sequence[str | Attack], iterations: int) -> list[tuple[str, Attack]]:
    """Return attacks by name, with the iterations of the budget where their settings do not say.

    Raises:
        InputError: an unknown name or setting, or one that rebuilds no frames.
    """
    return [_attack(name, iterations) for name in names]


def _attack(given: str | Attack, iterations: int) -> tuple[str, Attack]:
    if isinstance(given, str):
        reference = ATTACKS.parse(given)
        known, chosen = reference.entry.settings, reference.settings
        budget = {"iterations": iterations, "budget": 2 * iterations}
        more = {name: value for name, value in budget.items() if name in known and name not in chosen}
        name, attack = reference.text, reference.build(**more)
    else:
        name, attack = given.name, given
    if not isinstance(attack, Attack) or "frames" not in attack.takes:
        raise InputError(f"attack {name!r} rebuilds no frames; choose another, such as matching")
    return name, attack


def attack_captured(
    setup: Setup, attacks: Sequence[tuple[str, Attack]], starts: int, clock: Clock
) -> tuple[list[AttackRun], list[Answer]]:
    """Return the record of every start on the captured update, and the answers that there are."""
    client = setup.client()
    observation = setup.observe(setup.update, client)
    runs, answers = list[AttackRun](), list[Answer]()
    for number, (name, attack) in enumerate(attacks):
        for start in range(starts if number == 0 else 1):
            # The first start is made whatever the clock says: without an answer there is no audit.
            if runs and not clock.begins(f"{name}, start {start}", 0.6):
                continue
            outcome = _one(setup, name, attack, observation, start, clock)
            runs.append(outcome.run if isinstance(outcome, Answer) else outcome)
            answers += [outcome] if isinstance(outcome, Answer) else []
    return runs, answers


def _one(
    setup: Setup, name: str, attack: Attack, observation: Observation, start: int, clock: Clock
) -> Answer | AttackRun:
    try:
        made = attack.reconstruct(observation, generator(setup.seed, "audit", name, start), stop=clock.over)
    except VleakError as error:
        return AttackRun(attack=name, start=start, failed=first_line(error))
    explained = cosine(setup.sent(made.clips, made.labels, "explained"), setup.update)
    run = AttackRun(
        attack=name,
        start=start,
        labels=tuple(made.labels.tolist()),
        explained=explained,
        iterations=made.iterations,
        seconds=made.seconds,
        objective=made.objective if math.isfinite(made.objective) else None,
        flags=made.flags,
    )
    return Answer(run, made.clips, made.labels, _has_evidence(made))


def _has_evidence(made: Reconstruction) -> bool:
    """Return whether an attack that rehearses itself found that it gains something."""
    return bool(made.evidence) and made.method != "baseline"


def agreement_of(clips: Sequence[Tensor], prior: Tensor) -> tuple[float | None, list[float] | None]:
    """Return the mean correlation of all pairs of answers beyond the prior, of whole clips and by frame.

    Args:
        clips: answers (B, C, T, H, W), matched to the first one.
        prior: (B, C, T, H, W), the answer without the update.

    Returns:
        values in [-1, 1]; None where there are fewer than two answers.
    """
    if len(clips) < 2:
        return None, None
    first = clips[0]
    placed = [first, *(aligned(other, first) for other in clips[1:])]
    pairs = [(a, b) for i, a in enumerate(placed) for b in placed[i + 1 :]]
    whole = _mean(residual_correlation(a, b, prior) for a, b in pairs)
    frames = [
        _mean(residual_correlation(a[:, :, t], b[:, :, t], prior[:, :, t]) for a, b in pairs)
        for t in range(first.shape[2])
    ]
    return whole, frames


def rehearse(
    setup: Setup, dummies: Dummies, attack: tuple[str, Attack], starts: int, index: int, clock: Clock
) -> Rehearsal | None:
    """Return what the first attack makes of a dummy behind the stated defense; None where it failed."""
    trial = _Trial.of(setup, dummies, index, setup.client())
    answers = []
    for start in range(starts):
        made = trial.attacked(attack[1], start, clock)
        if made is None:
            return None
        answers.append(made)
    agreement, _ = agreement_of([made.clips for made in answers], trial.prior)
    best = max(
        answers, key=lambda made: cosine(setup.sent(made.clips, made.labels, "explained"), trial.update)
    )
    judged = trial.judged(best.clips)
    return Rehearsal(
        agreement=agreement,
        explained=cosine(setup.sent(best.clips, best.labels, "explained"), trial.update),
        correlation=judged.correlation,
        gain_db=judged.gain_db,
        recognised=judged.recognised,
        candidates=judged.candidates,
        rebuilt=judged.rebuilt,
    )


def try_defense(
    setup: Setup,
    dummies: Dummies,
    attack: tuple[str, Attack],
    defense: Defense,
    clock: Clock,
    undefended: DefenseTrial | None = None,
) -> DefenseTrial:
    """Return what the first attack makes of the first dummy behind a defense that it knows.

    Args:
        setup, dummies, attack, clock: of the audit.
        defense: of the dummy's client.
        undefended: the same without a defense, to compare with.
    """
    name = defense_text(defense)
    try:
        client = setup.client(defense)
        trial = _Trial.of(setup, dummies, 0, client)
        made = trial.attacked(attack[1], 0, clock)
        privacy = client.privacy(len(dummies.labels))
    except VleakError as error:
        return DefenseTrial(defense=name, failed=first_line(error))
    if made is None:
        return DefenseTrial(defense=name, failed="the attack failed on it")
    judged = trial.judged(made.clips)
    honest = dummies.honest[0]
    epsilon = None if privacy is None or not math.isfinite(privacy.epsilon) else privacy.epsilon
    return DefenseTrial(
        defense=name, correlation=judged.correlation, gain_db=judged.gain_db, recognised=judged.recognised,
        rebuilt=judged.rebuilt, left=_left(judged.correlation, undefended),
        cosine=cosine(trial.update, honest), epsilon=epsilon,
    )  # fmt: skip


def _left(correlation: float, undefended: DefenseTrial | None) -> float | None:
    """Return a correlation as a share of that without a defense."""
    before = None if undefended is None else undefended.correlation
    return None if before is None or before <= 0 else correlation / before


@dataclass(frozen=True)
class _Judged:
    """Answer to a dummy, beside its truth; see `Rehearsal`."""

    correlation: float
    gain_db: float
    recognised: bool
    candidates: int

    @property
    def rebuilt(self) -> bool:
        """Whether it was recognised, and that not by luck."""
        return self.recognised and self.correlation >= REBUILT


@dataclass(frozen=True)
class _Trial:
    """One dummy as the attacker meets it."""

    setup: Setup
    truth: Tensor
    update: Update
    observation: Observation
    others: Tensor

    @classmethod
    def of(cls, setup: Setup, dummies: Dummies, index: int, client: Client) -> _Trial:
        size = len(dummies.labels)
        rows = (torch.arange(size) + index * size) % len(setup.public)
        numbers = generator(setup.seed, "audit", "rehearsal", index)
        update = setup.as_captured(client.update(dummies.clips[index], dummies.labels, numbers))
        observation = setup.observe(update, client, without=rows)
        rest = torch.ones(len(setup.public), dtype=torch.bool)
        rest[rows] = False
        return cls(setup, dummies.clips[index], update, observation, setup.public[rest][: CANDIDATES - 1])

    @property
    def prior(self) -> Tensor:
        return prior_answer(self.observation.knowledge)

    def attacked(self, attack: Attack, start: int, clock: Clock) -> Reconstruction | None:
        try:
            numbers = generator(self.setup.seed, "audit", "rehearsal", attack.name, start)
            return attack.reconstruct(self.observation, numbers, stop=clock.over)
        except VleakError:
            return None

    def judged(self, clips: Tensor) -> _Judged:
        """Judge an answer (B, C, T, H, W)."""
        clips = aligned(clips, self.truth)
        gain = mean_psnr(clips, self.truth) - mean_psnr(self.prior, self.truth)
        correlation = residual_correlation(clips, self.truth, self.prior)
        # Where the answer without the update is nearest to the truth already, nothing was recognised by it.
        recognised = self._recognises(clips) and not self._recognises(self.prior)
        return _Judged(correlation, gain, recognised, 1 + len(self.others))

    def _recognises(self, clips: Tensor) -> bool:
        """Return whether every clip is nearer to its truth than to all other candidates."""
        ranks = [
            identification_rank(clip, torch.cat([truth[None], self.others]), 0)
            for clip, truth in zip(clips, self.truth, strict=True)
        ]
        return all(rank == 1 for rank in ranks)


def mean_psnr(clips: Tensor, truths: Tensor) -> float:
    """Return the mean PSNR in dB of clips (B, C, T, H, W) to true ones."""
    return _mean(psnr(clip, truth) for clip, truth in zip(clips, truths, strict=True))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
