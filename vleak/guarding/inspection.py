"""Inspection of a model that a server sent: all checks that can be run, each at the layer that is worst."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vleak.errors import InputError, require, unknown_name
from vleak.federated import LOSSES, trained_part, without_dropout
from vleak.guarding import weights
from vleak.guarding.findings import Finding
from vleak.guarding.samples import HonestFacts, honest_facts
from vleak.guarding.statistics import batch_norm_distances
from vleak.guarding.thresholds import Thresholds

_WHY = {
    "parallel_rows": "rows measure the same of a clip, so that their differences single clips out",
    "passing_kernels": "kernels pass pixels on unchanged",
    "class_trap": "one class's weights outweigh the others', so that its clips alone have a gradient",
    "class_bias": "the bias decides the class, so that some classes have no gradient",
    "feature_trap": "one feature decides a class",
    "round_change": "the weight moved further than training moves it in a round",
    "lone_units": "units answer to one clip alone, whose gradient stands by itself there",
    "dominant_clip": "one clip's gradient outweighs the others'",
    "dominant_frame": "one frame moves the update more than all others",
    "batch_norm": "the running statistics are not those of such clips",
}


def inspect_model(
    model: nn.Module,
    clips: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    public_clips: Tensor | None = None,
    earlier: nn.Module | Mapping[str, Tensor] | None = None,
    loss: str = "cross_entropy",
    thresholds: Mapping[str, float] | Thresholds | None = None,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Check a model for what servers plant to read clients' data, and return a finding for every check.

    Weights alone tell of planted linear layers and of traps in the last layer; with the client's clips, what
    they make the model do is looked at as well, and with the weights of the round before what changed. A
    model that passes is not proven honest: every check looks for one known way, and an attacker who knows
    the thresholds stays below them.

    Args:
        model: as the server sent it, in the mode that the client trains in; left as it is.
        clips: (N, C, T, H, W) float32 in [0, 1], those of the next update; None to look at weights alone.
        labels: (N,) int64 of the clips.
        public_clips: (M, C, T, H, W), further clips, for checks that need more than a few.
        earlier: the model, or its state dict, that the server sent in the round before.
        loss: a key of `vleak.federated.LOSSES`.
        thresholds: changed ones by name, or all of them.
        seed: of the random vectors in estimates.

    Returns:
        one finding a check that could be run, those that are alarms first.

    Raises:
        InputError: clips without labels, an unknown threshold, or weights that are not finite.
    """
    limits = Thresholds.of(thresholds)
    require("model", model, nn.Module, "a torch.nn.Module")
    if (broken := weights.broken_tensor(model)) is not None:
        raise InputError(f"model: {broken!r} holds NaN or infinity; ask the server for a finite model")
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    figures = weight_figures(model, earlier)
    if clips is not None:
        if labels is None or labels.shape != clips.shape[:1]:
            raise InputError(
                f"labels: expected one for each of {len(clips)} clips, in the order of the clips"
            )
        plain = trained_part(without_dropout(model))
        facts = honest_facts(plain, loss, clips, labels, public_clips=public_clips, seed=seed)
        figures |= clip_figures(model, clips, facts)
    return findings(figures, limits)


def weight_figures(
    model: nn.Module, earlier: nn.Module | Mapping[str, Tensor] | None = None
) -> dict[str, weights.Figures]:
    """Return by check the figures of all layers that weights alone give."""
    found = {
        "parallel_rows": weights.parallel_rows(model),
        "passing_kernels": weights.passing_kernels(model),
        "class_trap": weights.class_trap(model),
        "class_bias": weights.class_bias(model),
        "feature_trap": weights.feature_trap(model),
    }
    if earlier is not None:
        before = earlier.state_dict() if isinstance(earlier, nn.Module) else earlier
        found["round_change"] = weights.round_change(model, before)
    return found


def clip_figures(model: nn.Module, clips: Tensor, facts: HonestFacts) -> dict[str, weights.Figures]:
    """Return by check the figures that the private clips (N, C, T, H, W) and the facts of them give."""
    found: dict[str, weights.Figures] = {"batch_norm": batch_norm_distances(model, clips)}
    if len(clips) > 1:  # one clip alone is dominant, whatever the model
        found["dominant_clip"] = facts.d_snr
    if clips.shape[2] > 1:
        found["dominant_frame"] = {"": facts.frame_d_snr}
    if facts.units:
        linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        found["lone_units"] = {name: share for name, share in facts.units.items() if name in linear}
    return found


def findings(figures: Mapping[str, weights.Figures], limits: Thresholds) -> tuple[Finding, ...]:
    """Return a finding a check, at its worst layer, alarms first."""
    found = []
    for check, by_layer in figures.items():
        # NaN is worst: it compares with nothing.
        layer = max(by_layer, key=lambda name: (by_layer[name] != by_layer[name], by_layer[name]), default="")
        found.append(Finding(check, layer, by_layer.get(layer, 0.0), getattr(limits, check), _WHY[check]))
    return tuple(sorted(found, key=lambda finding: not finding.alarm))
