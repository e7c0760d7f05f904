"""Audit of DP-SGD by Opacus as it is deployed: normaliser, sampling and adjacency against the accountant.

The accountants of Opacus speak of Poisson sampling, of neighbours by adding or removing one sample, and of a
sum that is divided by a public constant. Each of these may fail without a word (issues 571, 813 and 819 of
Opacus; arXiv 2411.10614, 2605.15648).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vleak.errors import InputError, argument, unknown_name

__all__ = ["ADJACENCIES", "Finding", "OpacusCheck"]

Adjacency = Literal["add or remove", "zero out", "replace"]
ADJACENCIES: tuple[Adjacency, ...] = ("add or remove", "zero out", "replace")
"""How neighbouring data sets differ, as somebody states it for the epsilon that the accountant gives."""

_SIGMAS = 5.0
"""Standard deviations from which a count or a size is no chance: two in ten million."""
_FEW = 1e-6  # chance below which equal batch sizes are none


@dataclass(frozen=True)
class Finding:
    """What was found of one part.

    Attributes:
        part: "normaliser", "sampling", "adjacency", "rows", "clipping", "noise" or "accounting".
        outcome: "fits", "doubt", or "wrong" where the stated epsilon does not hold.
        text: what was seen, and what to do.
    """

    part: str
    outcome: Literal["fits", "doubt", "wrong"]
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.part}: {self.outcome}: {self.text}"


class OpacusCheck:
    """Callback on what `PrivacyEngine.make_private` returned; `findings` says in one line each what is wrong.

    It hangs behind the accountant's own hook on the optimizer, and changes nothing of the training.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: Any,
        loader: Any,
        *,
        adjacency: Adjacency = "add or remove",
        given: Any = None,
    ) -> None:
        """Attach to the optimizer.

        Args:
            engine: `opacus.PrivacyEngine`, with its accountant.
            optimizer: `opacus.optimizers.DPOptimizer`.
            loader: that the training goes through, as make_private returned it.
            adjacency: what the epsilon is stated for.
            given: loader that make_private was given, whose batches and sampler it replaces; None leaves out
                whether it kept what was asked for.

        Raises:
            InputError: the optimizer is none of Opacus, the loader has no length, or an unknown adjacency.
        """
        if adjacency not in ADJACENCIES:
            raise unknown_name("adjacency", str(adjacency), ADJACENCIES)
        if not hasattr(optimizer, "attach_step_hook") or not hasattr(engine, "accountant"):
            raise InputError(
                f"{argument('optimizer', type(optimizer).__name__)}: expected the engine and the "
                "optimizer of "
                "PrivacyEngine.make_private"
            )
        self.samples, self.batches = _sizes(loader)
        self.engine, self.optimizer, self.loader, self.adjacency = engine, optimizer, loader, adjacency
        self.given = given
        self._rows: list[int] = []
        self._excess, self._deviations = 0.0, list[float]()
        self._own: Callable[[Any], None] | None = optimizer.step_hook
        self._before = _steps(engine)
        optimizer.attach_step_hook(self._on_step)

    @property
    def steps(self) -> int:
        """Steps that were seen."""
        return len(self._rows)

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, each part once; more parts after training than before."""
        found = [self._normaliser(), self._sampling(), self._adjacency()]
        if self.steps:
            found += [self._rows_seen(), self._clipping(), self._noise(), self._accounting()]
        return tuple(found)

    # --- as it is set up ------------------------------------------------------------------------------------

    def _normaliser(self) -> Finding:
        if self.optimizer.loss_reduction != "mean":
            return Finding("normaliser", "fits", "the sum is sent, divided by nothing")
        used = self.optimizer.expected_batch_size
        expected = self.samples / self.batches
        if not used:
            return Finding("normaliser", "wrong", f"it divides by {used}; take fewer batches or more samples")
        told = (
            f"divides by {used:g}, where {self.samples} samples in {self.batches} batches give {expected:g}"
        )
        around = {math.floor((self.samples + step) / self.batches) for step in (-1, 0, 1)}
        if used != math.floor(expected):
            return Finding(
                "normaliser", "doubt", f"{told}; is that number public, and the same for neighbours?"
            )
        if self.adjacency == "add or remove" and len(around) > 1:
            return Finding(
                "normaliser", "wrong",
                f"{told}; with one sample more or less it is another of {sorted(around)}, which tells "
                "neighbours "
                "apart (Opacus issues 571 and 819); fix expected_batch_size to a public number",
            )  # fmt: skip
        if self.adjacency == "add or remove":
            return Finding(
                "normaliser", "doubt",
                f"{told}; it depends on the number of samples, though not between these neighbours "
                "(Opacus issue "
                "819); fix expected_batch_size to a public number",
            )  # fmt: skip
        return Finding("normaliser", "fits", f"{told}; neighbours have as many samples")

    def _sampling(self) -> Finding:
        sampler = getattr(self.loader, "batch_sampler", None)
        name = type(sampler).__name__
        inner = type(getattr(sampler, "sampler", None)).__name__
        if name in ("UniformWithReplacementSampler", "DistributedUniformWithReplacementSampler"):
            return self._poisson()
        if inner == "WeightedRandomSampler":
            return Finding(
                "sampling", "wrong",
                "samples are drawn with weights, and the epsilon is for equal chances; sample uniformly",
            )  # fmt: skip
        order = {"RandomSampler": "shuffled", "SequentialSampler": "in a fixed order"}.get(inner)
        if order is None:
            return Finding(
                "sampling", "doubt", f"by {name} over {inner}; the accountant takes Poisson sampling"
            )
        return Finding(
            "sampling", "wrong",
            f"batches are {order} and accounted as Poisson, which may understate epsilon several times "
            "(arXiv "
            "2411.10614); use poisson_sampling=True",
        )  # fmt: skip

    def _poisson(self) -> Finding:
        """Return whether the chance of a sample is that of the loader that was given."""
        told = "every sample is drawn by itself (Poisson), as the accountant takes it"
        sampler, size = getattr(self.given, "sampler", None), getattr(self.given, "batch_size", None)
        drawn = self.samples / self.batches
        if sampler is None or not size:
            return Finding("sampling", "fits", told)
        if drawn >= size + 1 and len(sampler) < self.samples:
            return Finding(
                "sampling", "wrong",
                f"batches of {size} were asked for, and a step has {drawn:g} samples on average: the "
                f"{len(sampler)} that {type(sampler).__name__} draws in a pass were taken for all "
                f"{self.samples}, and epsilon grows that much faster (Opacus issue 813); give a sampler of "
                "all of them",
            )  # fmt: skip
        if type(sampler).__name__ == "WeightedRandomSampler":
            return Finding(
                "sampling", "doubt", f"{told}; the weights that were asked for are dropped (Opacus issue 600)"
            )
        return Finding("sampling", "fits", told)

    def _adjacency(self) -> Finding:
        name = type(self.engine.accountant).__name__
        if self.adjacency == "replace":
            return Finding(
                "adjacency", "wrong",
                f"{name} is for one sample added or removed; for one replaced the sum moves by twice the "
                "clipping "
                "norm: state the other, or double the noise",
            )  # fmt: skip
        return Finding(
            "adjacency", "fits", f"{name} is for a change of one clipped gradient: {self.adjacency}"
        )

    # --- as it runs -----------------------------------------------------------------------------------------

    def _on_step(self, optimizer: Any) -> None:
        """Let the accountant count, then look at the step before it is taken."""
        if self._own is not None:
            self._own(optimizer)
        rows, norm, deviation = _looked_at(optimizer)
        self._rows.append(rows)
        limit = rows * float(_limit(optimizer))
        self._excess = max(self._excess, norm / limit if limit else (math.inf if norm else 0.0))
        if deviation is not None:
            self._deviations.append(deviation)

    def _rows_seen(self) -> Finding:
        rate, mean = 1 / self.batches, sum(self._rows) / self.steps
        expected = self.samples * rate
        spread = math.sqrt(expected * (1 - rate) / self.steps)
        told = f"{mean:.4g} rows a step, expected {expected:.4g}"
        if abs(mean - expected) > _SIGMAS * spread + 1:
            return Finding(
                "rows", "wrong",
                f"{told}; does the model fold frames into the batch, so that a clip is clipped frame by "
                "frame?",
            )  # fmt: skip
        if rate < 1 and self.steps > 1 and len(set(self._rows)) == 1 and self._chance() < _FEW:
            return Finding(
                "rows", "wrong", f"{told}, the same in all {self.steps} steps: no Poisson sampling has that"
            )
        return Finding("rows", "fits", told)

    def _chance(self) -> float:
        """Return a bound on the chance that all batch sizes of Poisson sampling are equal."""
        rate = 1 / self.batches
        most = min(1.0, 1 / math.sqrt(2 * math.pi * max(self.samples * rate * (1 - rate), 0.2)))
        return most ** (self.steps - 1)

    def _clipping(self) -> Finding:
        told = f"the clipped sum reaches {self._excess:.3g} of its bound, the clipping norm times the rows"
        return Finding("clipping", "fits" if self._excess <= 1.001 else "wrong", told)

    def _noise(self) -> Finding:
        if not self.optimizer.noise_multiplier:
            return Finding("noise", "wrong", "none is added, and without noise no epsilon holds")
        if not self._deviations:
            return Finding("noise", "doubt", "it cannot be told apart from the sum with this optimizer")
        worst = max(self._deviations, key=abs)
        told = f"its size is that stated, at most {abs(worst):.1f} standard errors off in {self.steps} steps"
        if abs(worst) <= _SIGMAS + math.sqrt(2 * math.log(self.steps)):
            return Finding("noise", "fits", told)
        return Finding("noise", "wrong", f"its size is not that stated: {worst:+.1f} standard errors off")

    def _accounting(self) -> Finding:
        counted = _steps(self.engine) - self._before
        if counted != self.steps:
            return Finding(
                "accounting", "wrong",
                f"{self.steps} steps were taken and {counted} counted; was the accountant's hook replaced?",
            )  # fmt: skip
        noise, rate, _ = self.engine.accountant.history[-1]
        same = noise == self.optimizer.noise_multiplier and math.isclose(rate, 1 / self.batches, rel_tol=1e-9)
        told = f"{counted} steps at noise multiplier {noise:g} and sample rate {rate:.4g}"
        return Finding(
            "accounting", "fits" if same else "doubt", told + ("" if same else ", not those of the loader")
        )


def _sizes(loader: Any) -> tuple[int, int]:
    """Return the number of samples and of batches in a pass."""
    try:
        samples, batches = len(loader.dataset), len(loader)
    except (AttributeError, TypeError) as error:
        raise InputError("loader: it has no length; give the one that make_private returned") from error
    if not samples or not batches:
        raise InputError(
            f"loader: it has {samples} samples in {batches} batches; expected at least one of each"
        )
    return samples, batches


def _steps(engine: Any) -> int:
    """Return how many steps the accountant has counted."""
    return sum(entry[2] for entry in engine.accountant.history)


def _limit(optimizer: Any) -> float:
    """Return the clipping norm of a whole gradient; of norms by layer that of all together."""
    norm = optimizer.max_grad_norm
    return math.sqrt(sum(n**2 for n in norm)) if isinstance(norm, list) else float(norm)


def _looked_at(optimizer: Any) -> tuple[int, float, float | None]:
    """Return rows, norm of the clipped sum, and standard errors by which the noise is off its stated size."""
    parameters = [p for p in optimizer.params if getattr(p, "summed_grad", None) is not None]
    rows = max((_rows(p) for p in parameters), default=0)
    norm = math.sqrt(sum(float(p.summed_grad.double().square().sum()) for p in parameters))
    factor = 1.0
    if optimizer.loss_reduction == "mean":
        factor = optimizer.expected_batch_size * optimizer.accumulated_iterations
    stated = optimizer.noise_multiplier * optimizer.max_grad_norm if _flat(optimizer) else 0.0
    if not stated or not parameters:
        return rows, norm, None
    noise = torch.cat([(p.grad.double() * factor - p.summed_grad.double()).flatten() for p in parameters])
    # The sum of n squares of standard normal numbers has mean n and variance 2 n.
    squares = float((noise / stated).square().sum())
    return rows, norm, (squares - len(noise)) / math.sqrt(2 * len(noise))


def _flat(optimizer: Any) -> bool:
    return isinstance(optimizer.max_grad_norm, int | float)


def _rows(parameter: Any) -> int:
    """Return the rows of the per-sample gradients of a step, all accumulated passes together."""
    held = parameter.grad_sample
    return sum(len(part) for part in held) if isinstance(held, list) else len(held)
