"""Further ceilings of cells: what the bits of a message and its noise leave to an attacker."""

from __future__ import annotations

import math
from functools import cached_property

from torch import Tensor, nn

from vleak.certificates import (
    cramer_rao_floor,
    fano_bound,
    gaussian_bits,
    jacobian_energy,
    no_prior_floor,
    psnr_ceiling,
)
from vleak.errors import CapabilityError
from vleak.federated import Channel, Privacy, Update
from vleak.pipelines.case import Case
from vleak.pipelines.conditions import Samples
from vleak.results.records import CeilingRecord
from vleak.seeds import generator

__all__ = ["Ceilings"]


class Ceilings:
    """Ceilings of the cells of one pipeline; what they share is computed once."""

    def __init__(self, model: nn.Module, loss: str, samples: Samples, seed: int) -> None:
        """Take the model, its loss and its samples, which are frames where they have five axes."""
        self._model, self._loss, self._samples, self._seed = model, loss, samples, seed
        self._frames = samples.private.dim() == 5
        self._energies: dict[tuple[int, float, bool], float | None] = {}

    def of(
        self,
        case: Case,
        update: Update,
        channel: Channel | None,
        privacy: Privacy | None,
        candidates: int,
    ) -> CeilingRecord:
        """Return the ceilings of a cell.

        Args:
            case: the cell.
            update: that was sent.
            channel: that the defense states for it.
            privacy: its certificate.
            candidates: clips that the update alone can exclude.
        """
        bits = 8.0 * update.wire_bytes * case.client.rounds
        noise = None if privacy is None or len(case.batch) > 1 else privacy.noise_multiplier
        floor = None
        if noise:
            entries = sum(tensor.numel() for tensor in update.tensors.values())
            bits = min(bits, gaussian_bits(noise, entries))
            norm = float(self._samples.private[case.clip].norm())
            floor = no_prior_floor(noise, norm) if self._frames and norm else None
        information = None
        if noise and channel is not None and self._one_gradient(case):
            information = self._information(case, channel)
        return CeilingRecord(
            bits=bits,
            # Of a batch the bound would speak of one clip, not of the best matching of all answers.
            fano=fano_bound(candidates if len(case.batch) == 1 else 1, bits),
            no_prior_psnr_db=None if floor is None else psnr_ceiling(floor),
            information=information,
            unbiased_psnr_db=None if information is None else psnr_ceiling(cramer_rao_floor(information)),
            prior_variance=None if information is None else self._variance,
        )

    def _one_gradient(self, case: Case) -> bool:
        """Whether the client sends one gradient of one clip, which alone has the Jacobian of `of`."""
        client = case.client
        return self._frames and client.rounds == 1 and client.local is None and client.mode == "eval"

    def _information(self, case: Case, channel: Channel) -> float | None:
        if not channel.noise_deviation or not math.isfinite(channel.clip_norm):
            return None
        key = (case.clip, channel.clip_norm, channel.layerwise)
        if key not in self._energies:
            self._energies[key] = self._energy(case.clip, channel)
        energy = self._energies[key]
        if energy is None:
            return None
        return energy / channel.noise_deviation**2 / self._samples.private[case.clip].numel()

    def _energy(self, clip: int, channel: Channel) -> float | None:
        """Return the sum of squares of the Jacobian; None where the model has no second derivative."""
        one = slice(clip, clip + 1)
        clips, labels = self._samples.private[one], self._samples.labels[one]
        numbers = generator(self._seed, "ceilings", clip)
        try:
            energy = jacobian_energy(self._model, self._loss, clips, labels, channel, numbers)
        except CapabilityError:
            return None  # the record has none, and the page a dash
        return energy if math.isfinite(energy) else None

    @cached_property
    def _variance(self) -> float | None:
        public: Tensor = self._samples.public
        if len(public) < 2:
            return None
        variance = float((public - public.mean(0)).square().mean()) * len(public) / (len(public) - 1)
        return variance or None
