"""Evidence out of the answers: the confidence of the attacker, where it leaks, and scores of the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.attacks import link_rank, link_scores
from vleak.attacks.trials import aligned
from vleak.federated import Update
from vleak.guarding import JacobianFacts
from vleak.metrics import identification_rank, psnr, residual_correlation, ssim
from vleak.update_audit.attacking import CANDIDATES, Answer, agreement_of
from vleak.update_audit.consistency import Dummies, cosine
from vleak.update_audit.detection import trained_model
from vleak.update_audit.records import Confidence, FrameLeak, LayerLeak, Measured, Rehearsal
from vleak.update_audit.sensitivity import sensitivity
from vleak.update_audit.setup import Setup
from vleak.update_audit.verdict import AGREES

__all__ = ["best_of", "confidence_of", "frames_of", "layers_of", "measured_of"]


def best_of(answers: Sequence[Answer]) -> Answer | None:
    """Return the answer that is shown; the truth is not asked.

    That of an attack that rehearsed itself and gained something; else the one that explains the update best.
    """
    rehearsed = [answer for answer in answers if answer.evidence]
    return max(rehearsed or answers, key=lambda answer: answer.run.explained or 0.0, default=None)


def confidence_of(
    setup: Setup,
    answers: Sequence[Answer],
    rehearsals: Sequence[Rehearsal],
    dummies: Dummies,
    prior: Tensor,
) -> tuple[Confidence, list[float] | None]:
    """Return how sure the attacker is, and by frame how far the answers agree; None of fewer than two.

    Args:
        setup, dummies: of the audit.
        answers: on the captured update.
        rehearsals: on dummies.
        prior: (B, C, T, H, W), the answer without the update.
    """
    first = answers[0].run.attack if answers else ""
    same = [answer for answer in answers if answer.run.attack == first]
    agreement, frames = agreement_of([answer.clips for answer in same], prior)
    public = max(cosine(update, setup.update) for update in dummies.honest)
    known = [rehearsal.explained for rehearsal in rehearsals if rehearsal.rebuilt]
    # What is left unexplained differs several times from clip to clip; a public clip leaves far more.
    needed = (min(known) + public) / 2 if known else None
    # Of the attack that was rehearsed, so that like is compared with like.
    explained = max((answer.run.explained or 0.0 for answer in same), default=None)
    sure = explained is not None and needed is not None and explained >= needed
    verified = sum(value >= AGREES for value in frames or []) if sure else 0
    confidence = Confidence(
        agreement=agreement,
        explained=explained,
        explained_by_public=public,
        explained_needed=needed,
        frames_verified=verified,
        frames=setup.shape[1],
    )
    return confidence, frames


def frames_of(
    confidence: Confidence, agreements: list[float] | None, shares: Sequence[float]
) -> tuple[FrameLeak, ...]:
    """Return every frame with its agreement and its share of the sensitivity."""
    sure = confidence.frames_verified > 0
    found = []
    for frame, share in enumerate(shares):
        value = None if agreements is None else agreements[frame]
        verified = sure and value is not None and value >= AGREES
        found.append(FrameLeak(frame=frame, agreement=value, sensitivity=share, verified=verified))
    return tuple(found)


def layers_of(setup: Setup, best: Answer, facts: JacobianFacts) -> tuple[tuple[LayerLeak, ...], list[float]]:
    """Return the layers, those that tell most first, and the share of every frame.

    Args:
        setup: of the audit.
        best: the answer that is shown.
        facts: of the gradient by its clips.
    """
    by_layer, by_frame = sensitivity(facts, dict(trained_model(setup).named_parameters()))
    caused = setup.sent(best.clips, best.labels, "explained").tensors
    total = sum(float(t.double().square().sum()) for t in setup.update.tensors.values()) or 1.0
    layers = []
    for name, own in setup.update.tensors.items():
        layers.append(
            LayerLeak(
                name=name,
                entries=own.numel(),
                sensitivity=by_layer[name],
                energy=float(own.double().square().sum()) / total,
                explained=_cosine(own, caused[name]),
            )
        )
    return tuple(sorted(layers, key=lambda layer: -layer.sensitivity)), by_frame


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double(), b.flatten().double()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def measured_of(
    setup: Setup, best: Answer, truths: Tensor, others: Tensor | None, prior: Tensor
) -> tuple[Measured, ...]:
    """Return the scores of every true clip.

    Args:
        setup: of the audit. best: the answer that is shown.
        truths: (B, C, T, H, W), clips behind the update.
        others: (N, C, T, H, W), candidates, the truths among them or not; None for public clips.
        prior: (B, C, T, H, W), the answer without the update.
    """
    rivals = setup.public[: CANDIDATES - 1] if others is None else others
    clips = aligned(best.clips, truths)
    return tuple(
        _measured(setup, clip, truth, _without(rivals, truths), guess)
        for clip, truth, guess in zip(clips, truths, prior, strict=True)
    )


def _without(rivals: Tensor, truths: Tensor) -> Tensor:
    """Return the rivals that are none of the true clips."""
    gaps = torch.cdist(rivals.flatten(1), truths.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return rivals[gaps.amin(1) > 1e-4 * rivals[0].numel() ** 0.5]


def _measured(setup: Setup, clip: Tensor, truth: Tensor, rivals: Tensor, prior: Tensor) -> Measured:
    candidates = torch.cat([truth[None], rivals])
    rank = identification_rank(clip, candidates, 0)
    linked = link_rank(
        link_scores(setup.observe(setup.update, setup.client()), [_hypotheses(setup, c) for c in candidates]),
        0,
    )
    level = psnr(clip, truth)
    return Measured(
        psnr_db=level,
        psnr_gain_db=level - psnr(prior, truth),
        ssim=ssim(clip, truth),
        correlation=residual_correlation(clip, truth, prior),
        recognised=rank == 1 and len(candidates) > 1,
        rank=rank,
        linked=linked == 1 and len(candidates) > 1,
        link_rank=linked,
        candidates=len(candidates),
    )


_MOST_LABELS = 16


def _hypotheses(setup: Setup, clip: Tensor) -> list[Update]:
    """Return the undefended updates of one clip under every label; of many classes, under the first ones."""
    labels = range(min(setup.classes, _MOST_LABELS))
    return [setup.sent(clip[None], torch.tensor([label]), "candidate") for label in labels]
