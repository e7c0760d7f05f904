"""Pruned updates: some entries leave the client as they are, the others as zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.codecs import decode, encode_entries, encode_sparse
from vleak.errors import InputError, unknown_name
from vleak.federated import (
    CarriesError,
    Channel,
    Claim,
    Defense,
    KeepsAbove,
    KeepsBetween,
    KeepsEntries,
    Message,
    Update,
    surviving_entries,
)
from vleak.registry import Setting


@dataclass(frozen=True, kw_only=True)
class Prune(Defense):
    """Send some entries of the whole update, the largest by default, and nothing of the others.

    Of n entries exactly ``max(1, round((1 - fraction) n))`` go out. The largest, with error feedback: the
    sparsification of Deep Gradient Compression (Lin et al., ICLR 2018, arXiv 1712.01887), whose momentum
    `Dgc` has; random ones: Stich et al., NeurIPS 2018, arXiv 1809.07599; all above a threshold: Sahu et al.,
    NeurIPS 2021, arXiv 2108.00951.

    Attributes:
        fraction: part of the entries that is dropped, in [0, 1); not of "threshold".
        which: "largest" magnitudes are kept, "random" entries, drawn anew for every message, or all of at
            least the "threshold".
        threshold: magnitude above 0, of "threshold" only; where none reaches it the largest entry is sent.
        error_feedback: whether what one round drops is added to the next one.
    """

    name: ClassVar[str] = "prune"
    fraction: float = 0.9
    which: str = "largest"
    threshold: float = 0.01
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        if not 0 <= self.fraction < 1:
            raise InputError(
                f"prune: fraction is {self.fraction}, expected 0 <= fraction < 1, such as 0.9 for 90 %"
            )
        if self.which not in ("largest", "random", "threshold"):
            raise unknown_name("which of prune", self.which, ("largest", "random", "threshold"))
        if not 0 < self.threshold < math.inf:
            raise InputError(f"prune: threshold is {self.threshold}, expected a finite number above 0")

    @property
    def label(self) -> str:
        """What is dropped, such as "prune 99.9 %" or "random 90 %"."""
        if self.which == "threshold":
            return f"prune <{self.threshold:g}"
        return f"{'random' if self.which == 'random' else 'prune'} {100 * self.fraction:g} %"

    def settings(self) -> dict[str, Setting]:
        """Return what is in use."""
        own = super().settings()
        if self.which == "threshold":
            del own["fraction"]
            return own
        del own["threshold"]
        return own if self.which == "random" else {k: own[k] for k in ("fraction", "error_feedback")}

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return the fractions 0.7, 0.9, 0.99 and 0.999 of the largest entries."""
        return [cls(fraction=fraction) for fraction in (0.7, 0.9, 0.99, 0.999)]

    def channel(self, update: Update) -> Channel:
        """Return that the entries which arrived are exact, and how they were chosen."""
        above = self.which == "threshold"
        return Channel(
            masks=surviving_entries(update),
            kept_fraction=1 - self.fraction if self.which == "largest" else 1.0,
            transform=self._above if above else None,
            key=(self.name, self.which, self.threshold if above else self.fraction),
        )

    def claims(self) -> Sequence[Claim]:
        """Return how many entries are sent, and which."""
        carried = (CarriesError(),) if self.error_feedback else ()
        if self.which == "threshold":
            return (KeepsAbove(threshold=self.threshold), *carried)
        fraction = 1 - self.fraction
        if self.which == "random":
            return (KeepsEntries(fraction=fraction, which="random"), *carried)
        return (KeepsEntries(fraction=fraction), *carried)

    def keeps_error(self) -> bool:
        """Return whether dropped entries are carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send values and positions of the entries kept; the rest arrives as 0."""
        sizes = [tensor.numel() for tensor in gradient.values()]
        keep = max(1, round((1 - self.fraction) * sum(sizes)))
        if self.which == "largest":
            content = encode_sparse(gradient, keep)
        elif self.which == "random":
            kept = torch.randperm(sum(sizes), generator=generator)[:keep].sort().values
            content = encode_entries(gradient, kept.numpy())
        else:
            content = encode_above(gradient, self.threshold)
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content), positions=True)

    def _above(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(t.abs() >= self.threshold, t, 0.0) for name, t in gradient.items()}


def encode_above(gradient: dict[str, Tensor], threshold: float) -> bytes:
    """Encode the entries of at least a magnitude; where there is none, the largest one.

    Raises:
        InputError: a tensor is not finite.
    """
    count = sum(int((tensor.abs() >= threshold).sum()) for tensor in gradient.values())
    return encode_sparse(gradient, max(count, 1))


@dataclass(frozen=True, kw_only=True)
class PruneDual(Defense):
    """Drop the largest and the smallest entries of every tensor, and send those between them.

    Dual gradient pruning (Xue et al., AAAI 2024, arXiv 2401.16687), with its error feedback as a setting: the
    largest entries tell most of the clip, the smallest cost most bytes. Of a tensor of n entries the
    ``int(largest n)`` of largest and the ``int(smallest n)`` of smallest magnitude are dropped. That both
    ends go is the paper's; how much by default, and the order among ties, are choices here. What was too
    large once grows with error feedback and may never be sent, so that nothing is claimed of its sums.

    Attributes:
        largest: part of a tensor's entries that is dropped from above, in [0, 1).
        smallest: part that is dropped from below, in [0, 1); both together below 1.
        error_feedback: whether what one round drops is added to the next one.
    """

    name: ClassVar[str] = "prune_dual"
    largest: float = 0.05
    smallest: float = 0.75
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Check the parts."""
        for setting in ("largest", "smallest"):
            if not 0 <= getattr(self, setting) < 1:
                raise InputError(
                    f"prune_dual: {setting} is {getattr(self, setting)}, expected a number in [0, 1)"
                )
        if self.largest + self.smallest >= 1:
            raise InputError(
                f"prune_dual: largest {self.largest} and smallest {self.smallest} leave nothing to send; "
                "expected a sum below 1"
            )

    @property
    def label(self) -> str:
        """Percentages dropped, such as "dual 5 + 75 %"."""
        return f"dual {100 * self.largest:g} + {100 * self.smallest:g} %"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return 1, 5 and 20 percent of the largest entries, with 75 of the smallest."""
        return [cls(largest=largest) for largest in (0.01, 0.05, 0.2)]

    def channel(self, update: Update) -> Channel:
        """Return that the entries which arrived are exact, and how they were chosen."""
        return Channel(
            masks=surviving_entries(update),
            transform=self._between,
            key=(self.name, self.largest, self.smallest),
        )

    def claims(self) -> Sequence[Claim]:
        """Return which entries are sent."""
        return (KeepsBetween(largest=self.largest, smallest=self.smallest),)

    def keeps_error(self) -> bool:
        """Return whether dropped entries are carried on."""
        return self.error_feedback

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        """Send values and positions of the entries kept; the rest arrives as 0."""
        kept = torch.cat([self._kept(tensor) for tensor in gradient.values()])
        content = encode_entries(gradient, kept.nonzero().flatten().numpy())
        shapes = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
        return Message(decode(content, shapes), len(content), positions=True)

    def _between(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(self._kept(t).view_as(t), t, 0.0) for name, t in gradient.items()}

    def _kept(self, tensor: Tensor) -> Tensor:
        """Return which entries (n,) of a tensor are sent; of equal magnitudes the earlier is the smaller."""
        order = tensor.detach().to("cpu").flatten().abs().argsort(stable=True)
        count = len(order)
        kept = torch.zeros(count, dtype=torch.bool)
        kept[order[int(self.smallest * count) : count - int(self.largest * count)]] = True
        return kept
