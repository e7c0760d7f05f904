"""Facts of the honest gradient: of every clip by itself, and of the batch's Jacobian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleak.federated import LOSSES, Loss, mean_gradient
from vleak.guarding.jacobian import JacobianFacts, dominance, gradient_by_clips, jacobian_facts
from vleak.seeds import generator

LEAST_CLIPS = 8
"""Clips below which a unit is moved by one of them alone too often by chance to be looked at."""


@dataclass(frozen=True)
class SampleFacts:
    """What the gradients of single clips tell of a batch.

    Attributes:
        norms: by parameter name, (N,), norm of the gradient of every clip.
        active: by name of a weight of two axes or more, (N, rows) bool, whether a clip moves a row: whether
            its gradient there is not zero.
    """

    norms: dict[str, Tensor]
    active: dict[str, Tensor]


def sample_facts(model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> SampleFacts:
    """Return norms and moved units of the gradient of every clip, each as if it were alone.

    Args:
        model: maps clips to logits; in the mode it is in, and left as it is.
        loss: (logits, labels) -> scalar.
        clips: (N, C, T, H, W) in [0, 1].
        labels: (N,) int64.
    """
    norms: dict[str, list[Tensor]] = {}
    active: dict[str, list[Tensor]] = {}
    for index in range(len(clips)):
        row = slice(index, index + 1)
        for name, gradient in mean_gradient(model, loss, clips[row], labels[row]).items():
            norms.setdefault(name, []).append(gradient.double().norm().cpu())
            if gradient.ndim > 1:
                active.setdefault(name, []).append(gradient.flatten(1).any(1).cpu())
    return SampleFacts(
        {name: torch.stack(each) for name, each in norms.items()},
        {name: torch.stack(each) for name, each in active.items()},
    )


def clip_dominance(facts: SampleFacts) -> dict[str, float]:
    """Return the D-SNR of every weight of two axes or more: of linear layers and convolutions.

    The largest norm of one clip's gradient over the sum of the other clips' (Garov et al., ICLR 2024, arXiv
    2306.03013). It is infinite for one clip alone.
    """
    return {name: dominance(facts.norms[name].tolist()) for name in facts.active}


def lone_units(facts: SampleFacts) -> dict[str, float]:
    """Return by weight the share of its units that one clip alone moves, of those that any clip moves.

    The row of such a unit in the gradient of the batch is that clip's own: behind a linear layer on the clip
    it is the clip (Boenisch et al., EuroS&P 2023, arXiv 2112.02918).
    """
    shares = {}
    for name, active in facts.active.items():
        movers = active.sum(0)
        moved = int((movers > 0).sum())
        shares[name] = int((movers == 1).sum()) / moved if moved else 0.0
    return shares


@dataclass(frozen=True)
class HonestFacts:
    """What a client knows of a batch and a model, whatever its defense.

    Attributes:
        samples: of the private clips alone.
        units: by weight, see `lone_units`; with public clips behind the private ones. Empty of fewer than
            ``LEAST_CLIPS`` clips.
        jacobian: of the private clips.
    """

    samples: SampleFacts
    units: dict[str, float]
    jacobian: JacobianFacts

    @property
    def d_snr(self) -> dict[str, float]:
        """D-SNR over the clips by weight, see `clip_dominance`."""
        return clip_dominance(self.samples)

    @property
    def frame_d_snr(self) -> float:
        """D-SNR over the frames: how far the gradient moves with one, over the sum of the others."""
        return dominance([energy**0.5 for energy in self.jacobian.frames])


def honest_facts(
    model: nn.Module,
    loss: str,
    clips: Tensor,
    labels: Tensor,
    *,
    public_clips: Tensor | None = None,
    probes: int = 8,
    seed: int = 0,
) -> HonestFacts:
    """Compute the facts of a batch at the weights that were sent.

    Args:
        model: in the mode that the client trains in, without dropout; left as it is.
        loss: a key of `vleak.federated.LOSSES`.
        clips: (N, C, T, H, W) float32 in [0, 1].
        labels: (N,) int64.
        public_clips: (M, C, T, H, W), for what needs more clips than a few.
        probes: random vectors behind the figures of the Jacobian.
        seed: of these.
    """
    function = LOSSES[loss]
    every = sample_facts(model, function, *_with_public(clips, labels, public_clips))
    own = SampleFacts(
        *({n: rows[: len(clips)] for n, rows in f.items()} for f in (every.norms, every.active))
    )
    enough = len(next(iter(every.norms.values()))) >= LEAST_CLIPS
    send = gradient_by_clips(model, function, labels)
    facts = jacobian_facts(send, clips, generator(seed, "jacobian"), probes=probes)
    return HonestFacts(own, lone_units(every) if enough else {}, facts)


def _with_public(clips: Tensor, labels: Tensor, public: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the batch with public clips behind it, whose labels are unknown and go round."""
    if public is None or not len(public):
        return clips, labels
    further = public[: 2 * LEAST_CLIPS].to(clips)
    return torch.cat([clips, further]), torch.cat([labels, labels.repeat(len(further))[: len(further)]])
