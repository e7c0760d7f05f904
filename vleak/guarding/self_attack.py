"""Short attack of a client on its own update: what an attacker who knows the defense gets in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.attacks import Attack, Knowledge, Matching, Observation
from vleak.attacks.expectation import prior_answer
from vleak.federated import Client, Update
from vleak.metrics import identification_rank, psnr, residual_correlation
from vleak.seeds import generator

SHORT = 60
"""Iterations of the attack where the caller names none; a tenth of a decibel to two short of 150."""


@dataclass(frozen=True)
class SelfAttack:
    """Result of a client's attack on its own update; of a batch, of the clip that is rebuilt best.

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
    attack: Attack | None = None,
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
        attack: which; None for `Matching` of 60 iterations.
        seed: of the attack.

    Raises:
        InputError: the parts do not belong together.
    """
    batch = update.facts.batch_size  # a defense may add clips, whose labels are then inferred
    knowledge = Knowledge(
        clip_shape=tuple(clips.shape[1:]), batch_size=batch, classes=classes,
        labels=labels if batch == len(labels) else None, public_clips=public_clips, simulate=client.update,
    )  # fmt: skip
    observation = Observation(client.model, update, knowledge, client.channel(update))
    attack = Matching(iterations=SHORT) if attack is None else attack
    answer = attack.reconstruct(observation, generator(seed, "attack on itself"))
    public = clips[:0] if public_clips is None else public_clips
    prior = prior_answer(knowledge)[0]
    judged = [_judge(answer.clips, clip, public, prior) for clip in clips]
    best = max(judged, key=lambda each: each.gain_db)
    return SelfAttack(
        psnr_db=best.psnr_db,
        gain_db=best.gain_db,
        correlation=max(each.correlation for each in judged),
        recognised=sum(each.recognised for each in judged) / len(judged),
        candidates=1 + len(public),
        knows_defense=answer.defense_knowledge,
        seconds=answer.seconds,
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
