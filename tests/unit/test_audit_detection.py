"""Detection scores of an audit, its shares of the Jacobian, and what counts as rebuilt."""

from __future__ import annotations

import math

import pytest
import torch
from audits import model, quick, sent
from torch import nn

from vleak.federated import LOSSES
from vleak.guarding import Thresholds, gradient_by_clips, jacobian_facts
from vleak.seeds import generator
from vleak.update_audit import AuditRecord
from vleak.update_audit.records import Confidence, DetectionScore, Measured
from vleak.update_audit.sensitivity import sensitivity
from vleak.update_audit.verdict import risk_of


@pytest.fixture(scope="module", name="record")
def _record() -> AuditRecord:
    net = model()
    return quick(net, sent(net).tensors).record


def by_name(record: AuditRecord) -> dict[str, DetectionScore]:
    return {score.name: score for score in record.detection}


def test_an_honest_model_raises_no_alarm_by_its_weights(record: AuditRecord) -> None:
    scores = by_name(record)
    assert {"parallel_rows", "passing_kernels", "class_trap", "class_bias", "feature_trap"} <= set(scores)
    assert not any(score.alarm for score in record.detection if score.of == "model")
    assert scores["class_trap"].threshold == Thresholds().class_trap
    assert not any("plant" in reason for reason in record.risk.reasons)


def test_scores_of_the_update_and_of_the_rebuilt_clips(record: AuditRecord) -> None:
    scores = by_name(record)
    net = model()
    energies = {name: float(t.square().sum()) for name, t in sent(net).tensors.items()}
    layer = max(energies, key=energies.__getitem__)
    assert scores["layer_share"].layer == layer
    assert scores["layer_share"].figure == pytest.approx(energies[layer] / sum(energies.values()), rel=1e-4)
    rebuilt = {score.name for score in record.detection if score.of == "rebuilt clips"}
    assert {"alignment", "jacobian_energy", "effective_rank", "frame_d_snr", "dominant_frame"} <= rebuilt
    assert "d_snr" not in rebuilt  # of one clip it is infinite, whatever the update


def test_a_class_trap_is_found_without_the_private_clip() -> None:
    net = model()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight[0] *= 40
    record = quick(net, sent(net).tensors).record
    first = record.detection[0]
    assert (first.name, first.of, first.alarm) == ("class_trap", "model", True)
    assert any("class_trap" in reason for reason in record.risk.reasons)


def test_without_an_attack_the_model_is_still_inspected() -> None:
    net = model()
    record = quick(net, sent(net).tensors, attacks=()).record
    assert {score.of for score in record.detection} == {"model", "update"}


def test_the_shares_are_those_of_the_jacobian() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, 2))
    clip, label = torch.rand(1, 1, 3, 2, 2, generator=generator("shares")), torch.tensor([1])
    send = gradient_by_clips(net, LOSSES["cross_entropy"], label)
    facts = jacobian_facts(send, clip, generator("probes"), probes=400)
    layers, frames = sensitivity(facts, dict(net.named_parameters()))
    dense = torch.autograd.functional.jacobian(lambda x: torch.cat([t.flatten() for t in send(x)]), clip)
    squares = dense.double().square().flatten(1)
    sizes = [p.numel() for p in net.parameters()]
    expected = [float(part.sum() / squares.sum()) for part in squares.split(sizes)]
    assert list(layers.values()) == pytest.approx(expected, abs=0.05)
    by_frame = squares.view(-1, 3, 4).sum((0, 2)) / squares.sum()
    assert frames == pytest.approx(by_frame.tolist(), abs=0.05)
    assert math.fsum(frames) == pytest.approx(1)


@pytest.mark.parametrize(("correlation", "level"), [(0.09, "low"), (0.6, "high")])
def test_a_truth_that_is_recognised_by_luck_is_no_high_risk(correlation: float, level: str) -> None:
    confidence = Confidence(
        agreement=0.1,
        explained=0.2,
        explained_by_public=0.3,
        explained_needed=None,
        frames_verified=0,
        frames=4,
    )
    score = Measured(
        psnr_db=10, psnr_gain_db=0, ssim=0.1, correlation=correlation, recognised=True, rank=1, linked=False,
        link_rank=2, candidates=12,
    )  # fmt: skip
    risk = risk_of((), confidence, (), (score,))
    assert risk.level == level
    assert ("the attacker himself cannot tell that he rebuilt them" in risk.reasons) == (level == "high")


@pytest.mark.slow
def test_what_noise_hides_was_not_rebuilt() -> None:
    net = model()
    strengths = ("dp:noise_multiplier=5", "dp:noise_multiplier=20")
    record = quick(net, sent(net).tensors, defenses=strengths, iterations=15).record
    _, *noisy = record.defenses
    assert [trial.rebuilt for trial in noisy] == [False, False]
