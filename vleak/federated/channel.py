"""Channel of a defense: what its update measures, for an attacker who knows the defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vleak.errors import InputError
from vleak.federated.update import Update

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Named tensors on the CPU in, others of the same names and shapes out."""


@dataclass(frozen=True, eq=False)
class Scales:
    """Numbers of the gradient that a message carries exact beside its entries, such as norms of buckets.

    Attributes:
        sent: (K,) float64, at least 0, as they arrived; NaN where the message does not tell one.
        of: returns these numbers, (K,) float64, of any gradient, named tensors.
    """

    sent: Tensor
    of: Callable[[dict[str, Tensor]], Tensor]

    def distance(self, gradient: dict[str, Tensor]) -> float:
        """Return how far those of a gradient are from those that arrived, in [0, 1]; NaN where none arrived.

        The mean of |a - b| / (a + b), in which a scale that was misread counts as one of many.
        """
        own = self.of(gradient)
        gaps = (self.sent - own).abs() / (self.sent + own).clamp(min=1e-300)
        return float(gaps[gaps.isfinite()].mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class Channel:
    """Measurement of the honest gradient that a defended update is, to somebody who knows the defense.

    Attributes:
        masks: by parameter name, bool of the parameter's shape, True where an entry carries a measurement;
            None for all entries.
        noise_energy: expected sum of squared errors over all entries that carry a measurement, at least 0.
        noise_deviation: standard deviation of independent Gaussian noise on the SUM over the batch, before
            the division by the public batch size; None where the noise is not Gaussian.
        clip_norm: largest norm of one clip's gradient before the sum, above 0; inf where nothing is clipped.
        layerwise: whether each of L tensors is clipped by itself, to ``clip_norm / sqrt(L)``.
        kept_fraction: part of the entries, those of largest magnitude, that is sent, in (0, 1].
        transform: what else becomes of the gradient of a batch without noise, such as its signs; None for
            nothing.
        bases: by parameter name, orthonormal columns (n, r): these tensors (n, ...), taken as matrices, are
            the projection of the gradient onto their span; None where all of it is sent.
        random_behind: name of a linear layer with a bias, behind which the client computes with numbers that
            it draws; `masks` leave out what it does not determine. None where nothing is drawn so.
        scales: what the message carries exact beside the entries, of the mean gradient of the batch; None for
            nothing.
        key: hashable; equal channels of one defense have equal keys, by which attacks cache what they learn.
        senders: of a mean over clients, by client the entries (bool, by parameter name) that it sent: the
            update is the mean of their gradients, each zero elsewhere, and an entry that one alone sent is
            its own. Empty where the server does not see who sent what.
        source: "stated" by the defense, or "simulated" by an attacker who ran the defense on public clips.
    """

    masks: dict[str, Tensor] | None = None
    noise_energy: float = 0.0
    noise_deviation: float | None = None
    clip_norm: float = math.inf
    layerwise: bool = False
    kept_fraction: float = 1.0
    transform: Transform | None = None
    bases: dict[str, Tensor] | None = None
    random_behind: str | None = None
    scales: Scales | None = None
    key: Hashable = ()
    senders: tuple[dict[str, Tensor], ...] = ()
    source: Literal["stated", "simulated"] = "stated"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: a number is out of its range, or a mask is not bool.
        """
        if not 0 <= self.noise_energy < math.inf:
            raise InputError(f"channel: noise_energy is {self.noise_energy}, expected a finite number >= 0")
        if self.noise_deviation is not None and not 0 <= self.noise_deviation < math.inf:
            raise InputError(
                f"channel: noise_deviation is {self.noise_deviation}, expected a finite number >= 0, or None"
            )
        if not self.clip_norm > 0:
            raise InputError(f"channel: clip_norm is {self.clip_norm}, expected a number above 0, or inf")
        if not 0 < self.kept_fraction <= 1:
            raise InputError(f"channel: kept_fraction is {self.kept_fraction}, expected a number in (0, 1]")
        if not isinstance(self.senders, tuple) or not all(isinstance(sent, dict) for sent in self.senders):
            raise InputError(
                f"channel: senders is {self.senders!r}, expected a tuple of masks by parameter name"
            )
        for masks in (self.masks or {}, *self.senders):
            for name, mask in masks.items():
                if mask.dtype != torch.bool:
                    raise InputError(f"channel: mask {name!r} is {mask.dtype}, expected torch.bool")

    @property
    def exact(self) -> bool:
        """Whether the update is the honest gradient itself."""
        altered = self.noise_energy > 0 or self.kept_fraction < 1 or not math.isinf(self.clip_norm)
        return self.masks is None and not altered

    def check(self, update: Update) -> None:
        """Check that masks, bases and scales belong to the tensors of an update.

        Raises:
            InputError: a mask is missing, one too many is there, or a shape differs; names the tensor.
        """
        for name, basis in (self.bases or {}).items():
            rows = update.tensors[name].shape[:1] if name in update.tensors else ()
            if basis.ndim != 2 or basis.shape[:1] != rows:
                raise InputError(
                    f"channel: basis {name!r} has shape {tuple(basis.shape)}, expected (rows of the update's "
                    "tensor, rank)"
                )
        if self.senders and update.facts.batch_size % len(self.senders):
            raise InputError(
                f"channel: senders are {len(self.senders)}, the batch has {update.facts.batch_size} clips; "
                "expected as many for each"
            )
        for masks in (*([] if self.masks is None else [self.masks]), *self.senders):
            _check_masks(masks, update)
        if self.scales is not None and self.scales.sent.shape != self.scales.of(update.tensors).shape:
            raise InputError(
                f"channel: scales have shape {tuple(self.scales.sent.shape)} as they arrived, and another of "
                "a gradient; expected as many"
            )

    def scaled(self, factor: float) -> Channel:
        """Return the channel of the update times a factor, as for the gradient that a delta stands for."""
        factor, deviation, transform = abs(factor), self.noise_deviation, self.transform
        scales = self.scales

        def scaled(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
            sent = (transform or dict)({name: tensor / factor for name, tensor in gradient.items()})
            return {name: tensor * factor for name, tensor in sent.items()}

        def scales_of(gradient: dict[str, Tensor]) -> Tensor:
            assert scales is not None
            return factor * scales.of({name: tensor / factor for name, tensor in gradient.items()})

        return replace(
            self,
            transform=None if transform is None else scaled,
            scales=None if scales is None else Scales(scales.sent * factor, scales_of),
            noise_energy=self.noise_energy * factor**2,
            noise_deviation=None if deviation is None else deviation * factor,
            clip_norm=self.clip_norm * factor,
        )

    def measured(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the update has of a gradient of one batch, but for clipping, masks and noise."""
        sent = gradient if self.transform is None else self.transform(gradient)
        return {**sent, **{n: onto_span(sent[n], basis) for n, basis in (self.bases or {}).items()}}

    def clipped(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return gradients of single clips, (n, B, *parameter shape) by name, as the defense clips them."""
        if math.isinf(self.clip_norm):
            return dict(samples)
        energies = {name: t.reshape(*t.shape[:2], -1).square().sum(2) for name, t in samples.items()}
        limit, total = self.clip_norm, sum(energies.values(), start=torch.zeros(()))
        if self.layerwise:
            limit /= math.sqrt(len(samples))
        result = {}
        for name, sample in samples.items():
            norms = (energies[name] if self.layerwise else total).sqrt()
            factor = (limit / norms.clamp(min=1e-30)).clamp(max=1.0)
            result[name] = sample * factor.view(*factor.shape, *[1] * (sample.ndim - 2))
        return result

    def expected(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the defense would send without its noise: clipped, averaged, the largest kept.

        What it projects onto `bases`, which are of one update, is whole here.

        Args:
            samples: (n, B, *parameter shape) by name, the gradients of the clips of n batches.

        Returns:
            (n, *parameter shape) by name, on the CPU.
        """
        mean = {name: _mean_of_clips(sample).cpu() for name, sample in self.clipped(samples).items()}
        kept = mean if self.kept_fraction == 1 else _largest(mean, self.kept_fraction)
        if self.transform is None:
            return kept
        rows = range(len(next(iter(kept.values()))))
        sent = [self.transform({name: tensor[row] for name, tensor in kept.items()}) for row in rows]
        return {name: torch.stack([row[name] for row in sent]) for name in kept}


def _mean_of_clips(samples: Tensor) -> Tensor:
    """Return the mean over the second axis; of one clip it is the clip, without a copy."""
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)


def _check_masks(masks: dict[str, Tensor], update: Update) -> None:
    """Refuse masks that are not one a tensor, of its shape."""
    for name in {**update.tensors, **masks}:
        shapes = [tuple(group[name].shape) if name in group else None for group in (masks, update.tensors)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"channel: mask {name!r} has shape {shapes[0]}, the update's tensor has {shapes[1]}; "
                "expected one mask a tensor, of its shape"
            )


def onto_span(tensor: Tensor, basis: Tensor) -> Tensor:
    """Return the projection of a tensor (n, ...), taken as a matrix, onto the span of columns (n, r)."""
    return (basis @ (basis.T @ tensor.flatten(1))).view_as(tensor)


def column_bases(update: Update, rank: int) -> dict[str, Tensor]:
    """Return orthonormal columns (n, r) that span those of every matrix of low rank in an update.

    Args:
        update: whose tensors of two axes or more are taken as matrices, (n, all other axes).
        rank: largest r; a matrix of as many rows or columns is passed over, as it may be whole.
    """
    bases = {}
    for name, tensor in update.tensors.items():
        if tensor.ndim > 1 and min(tensor.flatten(1).shape) > rank:
            left, values, _ = torch.linalg.svd(tensor.flatten(1).double(), full_matrices=False)
            kept = values[:rank] > 1e-6 * values[:1]
            bases[name] = left[:, :rank][:, kept].to(tensor.dtype)
    return bases


def surviving_entries(update: Update) -> dict[str, Tensor]:
    """Return masks of the entries that are not zero: the measurements of a defense that zeroes the others."""
    return nonzero_entries(update.tensors)


def nonzero_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return by name which entries of some tensors are not zero."""
    return {name: tensor != 0 for name, tensor in tensors.items()}


def _largest(gradients: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Keep the largest entries of every row over all tensors, ties with the smallest of them included."""
    magnitudes = torch.cat([t.reshape(len(t), -1).abs() for t in gradients.values()], 1)
    kept = max(1, round(fraction * magnitudes.shape[1]))
    first = magnitudes.shape[1] - kept
    # NumPy selects millions of entries several times faster than PyTorch.
    least = torch.from_numpy(np.partition(magnitudes.numpy(), first, 1)[:, first].copy())
    return {
        name: torch.where(t.abs() >= least.view(-1, *[1] * (t.ndim - 1)), t, 0.0)
        for name, t in gradients.items()
    }
