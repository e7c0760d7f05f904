"""Short attack of a client on its own update: what an attacker who knows the defense gets in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.attacks import Attack, Knowledge, Matching, Observation
from vleak.attacks.expectation import prior_answer
from vleak.federated import Client, Update
from vleak.metrics import identification_rank, psnr, residual_correlation
from vleak.seeds import generator

SHORT = 60
"""Iterations of each descent where the caller names no attack."""
SHORT_ATTACKS: tuple[Attack, ...] = (
    Matching(iterations=SHORT),
    Matching(iterations=SHORT, regulariser="spectrum"),
)
"""Attacks of a client on itself: the second gets more out of noise, the first out of what is exact."""


@dataclass(frozen=True)
class SelfAttack:
    """Result of a client's attacks on its own update: of all attacks and clips, what was rebuilt best.

    Attributes:
        psnr_db: of the answer that is nearest to the clip.
        gain_db: ``psnr_db`` over the better one of a grey clip and the mean public clip.
        correlation: residual correlation of the answer and the clip, -1 to 1.
        recognised: share of the batch whose answer is nearer to its own clip than to every decoy, 0 to 1.
        candidates: clips that were told apart, the own one among them; 1 where there is no decoy.
        knows_defense: how the attacker knew the defense: by its "channel", "simulated" by running it, or not,
            "none".
        seconds: of wall time.
    """

    psnr_db: float
    gain_db: float
    correlation: float
    recognised: float
    candidates: int
    knows_defense: str
    seconds: float


def attack_itself(
    client: Client,
    update: Update,
    clips: Tensor,
    labels: Tensor,
    *,
    classes: int,
    public_clips: Tensor | None = None,
    attacks: Sequence[Attack] = SHORT_ATTACKS,
    seed: int = 0,
) -> SelfAttack:
    """Attack an update before it is sent, and compare the answer with the clips.

    The attacker gets an `Observation` as the server has it, the defense's channel and the labels, and chooses
    without the truth; only the comparison sees it.

    Args:
        client: that made the update, or would have.
        update: of the clips.
        clips: (B, C, T, H, W) in [0, 1], the private clips.
        labels: (B,) int64.
        classes: of the model.
        public_clips: (M, C, T, H, W), of the same kind of scene; the attacker holds them, and they are the
            decoys.
        attacks: which; the best answer of all counts, since a client who looks at its own clip may choose.
        seed: of the attacks.

    Raises:
        InputError: the parts do not belong together.
    """
    batch = update.facts.batch_size  # a defense may add clips, whose labels are then inferred
    knowledge = Knowledge(
        clip_shape=tuple(clips.shape[1:]), batch_size=batch, classes=classes,
        labels=labels if batch == len(labels) else None, public_clips=public_clips, simulate=client.update,
    )  # fmt: skip
    observation = Observation(client.model, update, knowledge, client.channel(update))
    answers = [attack.reconstruct(observation, generator(seed, "attack on itself")) for attack in attacks]
    public = clips[:0] if public_clips is None else public_clips
    prior = prior_answer(knowledge)[0]
    judged = [[_judge(answer.clips, clip, public, prior) for answer in answers] for clip in clips]
    every = [each for row in judged for each in row]
    best = max(every, key=lambda each: each.gain_db)
    return SelfAttack(
        psnr_db=best.psnr_db,
        gain_db=best.gain_db,
        correlation=max(each.correlation for each in every),
        recognised=sum(any(each.recognised for each in row) for row in judged) / len(judged),
        candidates=1 + len(public),
        knows_defense=answers[0].defense_knowledge,
        seconds=sum(answer.seconds for answer in answers),
    )


@dataclass(frozen=True)
class _Judged:
    psnr_db: float
    gain_db: float
    correlation: float
    recognised: bool


def _judge(answers: Tensor, clip: Tensor, decoys: Tensor, prior: Tensor) -> _Judged:
    """Return how near the best one of the answers is to a clip: in a batch their order says nothing."""
    levels = [psnr(answer, clip) for answer in answers]
    best = answers[max(range(len(levels)), key=levels.__getitem__)]
    grey = torch.full_like(clip, 0.5)
    candidates = torch.cat([clip[None], decoys])
    return _Judged(
        psnr_db=max(levels),
        gain_db=max(levels) - max(psnr(prior, clip), psnr(grey, clip)),
        correlation=residual_correlation(best, clip, prior),
        recognised=len(decoys) > 0 and identification_rank(best, candidates, 0) == 1,
    )
