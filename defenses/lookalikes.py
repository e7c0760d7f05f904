"""Look-alikes: a client that trains on clips made by a small generative model of public clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from vleak.defenses.ranges import check_number, check_whole
from vleak.errors import CapabilityError, unknown_name
from vleak.federated import Changes, Channel, Claim, Defense, DrawsAnew, IgnoresClips, Update

__all__ = ["Lookalikes"]

_FROM = ("label", "clip")


@dataclass(frozen=True)
class _Scenes:
    """Gaussian model of public clips: a mean a label, and common components.

    Attributes:
        means: (P,) by label, of its public clips. mean: (P,), of all, for a label without any.
        components: (R, P), orthonormal.
        deviations: (R,), along them.
    """

    means: dict[int, Tensor]
    mean: Tensor
    components: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, clips: Tensor, labels: Tensor, most: int) -> _Scenes:
        """Fit it to clips (M, ...) with labels (M,), at most so many components."""
        flat = clips.flatten(1).double().cpu()
        mean = flat.mean(0)
        means = {label: flat[labels.cpu() == label].mean(0) for label in set(labels.tolist())}
        within = flat - torch.stack([means[int(label)] for label in labels])
        _, values, components = torch.linalg.svd(within, full_matrices=False)
        kept = min(most, int((values > 1e-6 * values[:1]).sum()))
        deviations = values[:kept] / max(len(flat) - len(means), 1) ** 0.5
        return cls(means, mean, components[:kept], deviations)

    def centers(self, labels: Tensor) -> Tensor:
        """Return the means (N, P) of some labels."""
        return torch.stack([self.means.get(int(label), self.mean) for label in labels])


@dataclass(frozen=True, kw_only=True)
class Lookalikes(Defense):
    """Training on clips that a Gaussian model of public clips makes, in place of the client's own.

    Public clips have a mean for each label and principal components about it, along which a look-alike is
    drawn. With ``source`` "label" that is all: the message depends on the private clips by their labels and
    number alone, so that nothing of a clip but its label can leak, whatever the attacker holds. What it
    costs is utility, as nothing is learned that the public clips do not have: run it with ``--utility``. With
    "clip" the private clip chooses its weights: it is projected onto the components, and ``spread`` draws
    around that; up to `components` numbers of it leak, and nothing is proven. One Gaussian is the least of
    generative models; a better one makes better clips and proves the same.

    Attributes:
        source: what a look-alike is made from, "label" or "clip".
        components: at most, at least 1.
        spread: of the draw, in standard deviations of the public clips, from 0.
    """

    name: ClassVar[str] = "lookalikes"
    source: str = "label"
    components: int = 16
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        if self.source not in _FROM:
            raise unknown_name("source of lookalikes", str(self.source), _FROM)
        check_whole(self.name, "components", self.components, 1, 10**6)
        check_number(self.name, "spread", self.spread, 0.0, 100.0)

    @property
    def label(self) -> str:
        """What look-alikes are made from."""
        return f"alike by {self.source}"

    @classmethod
    def sweep(cls) -> Sequence[Self]:
        """Return look-alikes of a clip, and of its label."""
        return [cls(source="clip", spread=0.1), cls()]

    def channel(self, update: Update) -> Channel:
        """Return that every entry is exact, of the look-alikes."""
        return Channel(key=(self.name, self.source, self.components, self.spread))

    def claims(self) -> Sequence[Claim]:
        """Return that the message is another one each time, and made from labels it ignores the clips."""
        drawn = (DrawsAnew(),) if self.spread else ()
        return (Changes(), *drawn, *((IgnoresClips(),) if self.source == "label" else ()))

    def with_public(self, clips: Tensor, labels: Tensor) -> Defense:
        """Return the defense with a model of public clips.

        Raises:
            CapabilityError: fewer than two clips.
        """
        if len(clips) < 2:
            raise CapabilityError(
                f"lookalikes: {len(clips)} public clips are no model of any; give at least 2, such as by "
                "public_from"
            )
        learned = Lookalikes(source=self.source, components=self.components, spread=self.spread)
        object.__setattr__(learned, "_scenes", _Scenes.of(clips, labels, self.components))
        return learned

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a look-alike for each clip, with its label.

        Raises:
            CapabilityError: no public clips were given, or of another shape.
        """
        scenes = getattr(self, "_scenes", None)
        if not isinstance(scenes, _Scenes):
            raise CapabilityError(
                "lookalikes: no public clips to learn from; call with_public(clips, labels)"
            )
        if scenes.mean.numel() != clips[0].numel():
            raise CapabilityError(
                f"lookalikes: public clips have {scenes.mean.numel()} numbers, a clip "
                f"{clips[0].numel()}; give public clips of the same shape"
            )
        centers = scenes.centers(labels)
        weights = (
            self.spread
            * torch.randn((len(clips), len(scenes.deviations)), generator=generator, dtype=torch.float64)
            * scenes.deviations
        )
        if self.source == "clip":
            weights += (clips.flatten(1).double().cpu() - centers) @ scenes.components.T
        made = (centers + weights @ scenes.components).view(clips.shape)
        return (made.clamp(0, 1) if clips.dim() == 5 else made).to(clips), labels
