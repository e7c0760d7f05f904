"""Detection scores of an audit: those of a client's guard, without the private clips.

Checks of the model need its weights alone. What a guard asks of its own clips is asked of the rebuilt ones.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

from torch import Tensor, nn

from vleak.federated import trained_part, without_dropout
from vleak.guarding import Finding, HonestFacts, Thresholds, honest_facts, warning_scores
from vleak.guarding.inspection import clip_figures, findings, weight_figures
from vleak.update_audit.records import DetectionScore
from vleak.update_audit.setup import Setup

__all__ = ["detection_of", "facts_of", "trained_model"]

_WHY = {
    "layer_share": "share of the update's squared norm in one tensor, 0 to 1",
    "alignment": "squared cosine of the update and the gradient of the rebuilt clips, 0 to 1",
    "jacobian_energy": "squared relative change of the update where every pixel moves by its whole range",
    "effective_rank": "directions of the clips that carry the update's changes",
    "frame_d_snr": "how far the update moves with one frame, over the sum of the others",
    "d_snr": "norm of one clip's gradient over the sum of the others', in the layer where it is largest",
}


def trained_model(setup: Setup) -> nn.Module:
    """Return the part of the model that is trained, in the client's mode and without dropout; a copy."""
    model = copy.deepcopy(trained_part(without_dropout(setup.model)))
    return model.train(setup.update.facts.mode == "train")


def facts_of(setup: Setup, clips: Tensor, labels: Tensor) -> HonestFacts:
    """Return what the rebuilt clips (B, C, T, H, W) with labels (B,) tell, in the place of private ones."""
    model, loss = trained_model(setup), setup.update.facts.loss
    return honest_facts(model, loss, clips, labels, public_clips=setup.public, seed=setup.seed)


def detection_of(setup: Setup, clips: Tensor | None, facts: HonestFacts | None) -> tuple[DetectionScore, ...]:
    """Return all scores, alarms first.

    Args:
        setup: of the audit.
        clips: that were rebuilt; None where nothing was.
        facts: of them.
    """
    limits = Thresholds()
    found = [_check(finding, "model") for finding in findings(weight_figures(setup.model), limits)]
    if clips is not None and facts is not None:
        figures = clip_figures(trained_model(setup), clips, facts)
        found += [_check(finding, "rebuilt clips") for finding in findings(figures, limits)]
    found += _scores(setup, facts, limits)
    return tuple(sorted(found, key=lambda score: not score.alarm))


def _check(finding: Finding, of: Literal["model", "rebuilt clips"]) -> DetectionScore:
    return DetectionScore(
        name=finding.check, of=of, layer=finding.layer, figure=_finite(finding.figure),
        threshold=finding.threshold, alarm=finding.alarm, why=finding.why,
    )  # fmt: skip


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _scores(setup: Setup, facts: HonestFacts | None, limits: Thresholds) -> list[DetectionScore]:
    """Return the warning scores that are finite; of a partial update the share of a layer alone."""
    energies = {name: float(t.double().square().sum()) for name, t in setup.update.tensors.items()}
    layer = max(energies, key=energies.__getitem__)
    share = energies[layer] / max(math.fsum(energies.values()), 1e-300)
    found = [
        DetectionScore(name="layer_share", of="update", layer=layer, figure=share, why=_WHY["layer_share"])
    ]
    entries = sum(tensor.numel() for tensor in setup.update.tensors.values())
    if facts is None or entries != len(facts.jacobian.gradient):
        return found
    scores = warning_scores(setup.update, facts)
    numbers = {
        name: value for name, value in scores.numbers().items() if name in _WHY and math.isfinite(value)
    }
    for name in [name for name in _WHY if name in numbers and name != "layer_share"]:
        limit = getattr(limits, name, None)
        found.append(
            DetectionScore(
                name=name, of="rebuilt clips", layer=scores.d_snr_layer if name == "d_snr" else "",
                figure=numbers[name], threshold=limit, alarm=limit is not None and numbers[name] > limit,
                why=_WHY[name],
            )
        )  # fmt: skip
    return found
