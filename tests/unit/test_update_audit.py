"""Audit of captured updates: what is read, what fits, what is found, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audits import LOCAL, SHAPE, clips, compared, model, outcome, quick, sent, with_norm
from safetensors.torch import save_file
from torch import Tensor, nn

import vleak
from vleak.defenses import parse_defenses
from vleak.errors import InputError
from vleak.federated import LocalTraining
from vleak.report import write_audit
from vleak.seeds import generator
from vleak.update_audit import RISK_SCALE, audit, read_given
from vleak.update_audit.schema import FILE, audit_schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="net")
def _net() -> nn.Module:
    return model()


# --- what is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "local", [None, pytest.param(LOCAL, marks=pytest.mark.slow)], ids=["gradient", "5 local steps"]
)
def test_an_undefended_clip_is_found_among_twelve(net: nn.Module, local: LocalTraining | None) -> None:
    made = audit(
        net, sent(net, local=local).tensors, input_shape=SHAPE, local=local, attacks=("matching",),
        defenses=("dp:noise_multiplier=0.5",), iterations=40,
        truth=clips().clips[0], candidates=clips().clips,
    )  # fmt: skip
    record, (score,) = made.record, made.record.measured
    assert score.recognised
    assert score.linked
    assert score.candidates == 12
    assert {check.outcome for check in record.consistency} == {"fits"}
    assert made.risk == "high"
    assert record.risk.reasons[-1] == "the attacker himself can tell that he rebuilt them"
    assert record.confidence.frames_verified == 4
    undefended, noisy = record.defenses
    assert undefended.defense == "none"
    assert noisy.left is not None
    assert noisy.left < 0.5
    assert abs(sum(layer.sensitivity for layer in record.layers) - 1) < 1e-6
    assert abs(sum(frame.sensitivity for frame in record.frames) - 1) < 1e-6


def test_noise_in_place_of_an_update_is_no_risk(net: nn.Module) -> None:
    """What tells nothing of a clip is neither vouched for nor called a high risk."""
    true = sent(net).tensors
    numbers = generator("noise of a test")
    noise = {
        name: torch.randn(tensor.shape, generator=numbers) * tensor.norm() / tensor.numel() ** 0.5
        for name, tensor in true.items()
    }
    made = quick(net, noise, iterations=40, starts=2, truth=clips().clips[0], candidates=clips().clips)
    assert made.record.confidence.frames_verified == 0
    assert made.risk != "high"


@pytest.mark.slow
def test_noise_of_a_stated_defense_is_low(net: nn.Module) -> None:
    """Two starts agree on the same noise, and a dummy may be recognised by luck: neither is evidence."""
    (strength,) = parse_defenses("dp:noise_multiplier=0.5")
    for clip in range(3):
        made = quick(
            net, sent(net, clip, defense=strength).tensors, defense=strength, iterations=40, starts=2
        )
        assert made.risk == "low"
        assert made.record.confidence.frames_verified == 0


def test_the_truth_changes_no_answer(net: nn.Module) -> None:
    tensors = sent(net).tensors
    plain, told = quick(net, tensors), quick(net, tensors, truth=clips().clips[0])
    assert plain.clips is not None
    assert told.clips is not None
    assert torch.equal(plain.clips, told.clips)
    assert plain.record.measured == ()


def test_a_frozen_layer_and_a_batch_are_audited() -> None:
    net = model()
    next(net.parameters()).requires_grad_(False)
    client = vleak.Client(net)
    update = client.update(clips().clips[:2], clips().labels[:2], generator(0))
    made = quick(net, update.tensors, batch_size=2, truth=clips().clips[:2])
    assert len(made.record.measured) == 2
    assert made.clips is not None
    assert made.clips.shape == (2, *SHAPE)


# --- consistency --------------------------------------------------------------------------------------------


def scaled(factor: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: factor * tensor for name, tensor in tensors.items()}


def pruned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor * (tensor.abs() >= tensor.abs().flatten().quantile(0.9))
        for name, tensor in tensors.items()
    }


def quantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (tensor / tensor.abs().max() * 127).round() for name, tensor in tensors.items()}


def without_a_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = next(iter(tensors))
    return {**tensors, first: torch.zeros_like(tensors[first])}


@pytest.mark.parametrize(
    ("change", "check", "outcomes", "words"),
    [
        (scaled(-1.0), "sign", {"wrong"}, "negated gradient or a delta"),
        (scaled(2.0**16), "norm", {"wrong"}, "mixed precision"),
        (scaled(20.0), "norm", {"doubt"}, "a sum over clips"),
        (scaled(0.0), "zeros", {"wrong"}, "every entry is 0"),
        (without_a_layer, "zeros", {"doubt"}, "frozen in the client"),
        (pruned, "defense", {"note"}, "pruned or masked"),
        (quantised, "defense", {"note"}, "quantised"),
    ],
    ids=["negated", "unscaled", "summed", "zero", "layer", "pruned", "quantised"],
)
def test_what_does_not_fit_is_said(
    net: nn.Module, change: Callable[..., Any], check: str, outcomes: set[str], words: str
) -> None:
    made = compared(net, change(sent(net).tensors))
    found = [each for each in made.record.consistency if each.name == check]
    assert {each.outcome for each in found} == outcomes
    assert any(words in each.detail for each in found)
    if "wrong" in outcomes:
        assert made.risk == "undetermined"


@pytest.mark.parametrize(
    "defense", [pytest.param("prune:fraction=0.99", marks=pytest.mark.slow), "dp:noise_multiplier=1"]
)
def test_a_stated_defense_fits(net: nn.Module, defense: str) -> None:
    (strength,) = parse_defenses(defense)
    made = compared(net, sent(net, defense=strength).tensors, defense=defense)
    doubted = {check.name for check in made.record.consistency if check.outcome != "fits"}
    assert doubted <= {"labels"}  # which noise may hide
    assert made.record.defense == strength.label
    untold = compared(net, sent(net, defense=strength).tensors)
    told = {check.name for check in untold.record.consistency if check.outcome != "fits"}
    assert told - {"labels"}


def test_weights_of_another_round_stand_out(net: nn.Module) -> None:
    trained = model(1)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(clips().clips), clips().labels).backward()
        optimizer.step()
    made = compared(net, sent(trained).tensors)
    assert {outcome(made, "norm"), outcome(made, "layers"), outcome(made, "sign")} & {"doubt", "wrong"}


def test_another_number_of_steps_is_doubted(net: nn.Module) -> None:
    twenty = sent(net, local=LocalTraining(steps=20, learning_rate=0.05))
    made = compared(net, twenty.tensors, local=LocalTraining(steps=1, learning_rate=0.05))
    assert outcome(made, "local steps") == "doubt"


def test_a_gradient_taken_for_a_delta_has_the_wrong_sign(net: nn.Module) -> None:
    made = compared(net, sent(net).tensors, local=LocalTraining(learning_rate=1.0))
    assert outcome(made, "sign") == "wrong"


def trained_weights(net: nn.Module, *, mode: bool) -> dict[str, Tensor]:
    """State of a copy of a model after one step of SGD, in a mode."""
    import copy

    trained = copy.deepcopy(net).train(mode)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
    nn.functional.cross_entropy(trained(clips().clips[:1]), clips().labels[:1]).backward()
    optimizer.step()
    return trained.state_dict()


@pytest.mark.parametrize(
    ("trained", "stated", "expected"),
    [(True, "eval", "wrong"), (True, "train", "fits"), (False, "train", "doubt"), (False, "eval", "fits")],
)
def test_buffers_tell_the_mode(trained: bool, stated: Any, expected: str) -> None:
    net = with_norm()
    made = compared(
        net, trained_weights(net, mode=trained), kind="weights", mode=stated,
        local=LocalTraining(learning_rate=0.05),
    )  # fmt: skip
    assert outcome(made, "buffers") == expected


def test_the_profile_over_layers_tells_the_mode() -> None:
    """Batch norm in train mode has no gradient for the bias before it."""
    net = with_norm()
    made = compared(net, sent(net, mode="train").tensors, mode="eval")
    assert outcome(made, "mode") == "doubt"
    assert outcome(compared(net, sent(net).tensors, mode="eval"), "mode") == "fits"


def test_a_bias_before_batch_norm_is_no_lost_tensor() -> None:
    """Batch norm takes its gradient away but for rounding, of which differences of weights keep nothing."""
    net = with_norm()
    update = sent(net, mode="train")
    assert bool(update.tensors["conv.bias"].any())
    tensors = {**update.tensors, "conv.bias": torch.zeros_like(update.tensors["conv.bias"])}
    assert outcome(compared(net, tensors, mode="train"), "zeros") == "fits"
    assert outcome(compared(net, tensors, mode="eval"), "zeros") == "doubt"


def test_what_was_dropped_is_said_once() -> None:
    net = with_norm()
    made = compared(
        net, trained_weights(net, mode=True), kind="weights", mode="train",
        local=LocalTraining(learning_rate=0.05),
    )  # fmt: skip
    (note,) = made.record.update.notes
    assert note.startswith("3 tensors that are no parameters")


def test_without_an_attack_nothing_is_called_unfit(net: nn.Module) -> None:
    made = compared(net, sent(net).tensors)
    assert made.risk == "undetermined"
    assert made.record.risk.reasons == ("no attack was asked for",)


# --- files --------------------------------------------------------------------------------------------------


def test_every_form_gives_one_update(net: nn.Module, tmp_path: Path) -> None:
    update = sent(net, local=LOCAL)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = {name: tensor + update.tensors[name] for name, tensor in before.items()}
    save_file(update.tensors, tmp_path / "delta.safetensors")
    torch.save(after, tmp_path / "after.pt")
    torch.save({"data_kind": "WEIGHT_DIFF", "data": dict(update.tensors), "meta": {}}, tmp_path / "dxo.pt")
    np.savez(tmp_path / "flower.npz", *[tensor.numpy() for tensor in after.values()])
    update.save(tmp_path / "own.safetensors")
    dxo = {"kind": "WEIGHTS", "data": after, "meta": {"NUM_STEPS_CURRENT_ROUND": 5}}
    facts = vleak.PublicFacts("fedavg", local=LOCAL)
    forms: list[tuple[Any, dict[str, Any]]] = [
        (update, {}),
        (update.tensors, {}),
        (list(update.tensors.values()), {}),
        ([tensor.numpy() for tensor in after.values()], {"kind": "weights"}),
        (after, {"before": before}),
        (tmp_path / "delta.safetensors", {}),
        (tmp_path / "own.safetensors", {}),
        (tmp_path / "after.pt", {"kind": "weights"}),
        (tmp_path / "flower.npz", {"before": net}),
        (tmp_path / "dxo.pt", {}),
        (dxo, {}),
        ({"DXO": dxo}, {}),
    ]
    for source, how in forms:
        given = read_given(source, net, facts, **how)
        assert given.update.facts == facts, source
        for name, tensor in update.tensors.items():
            assert torch.allclose(given.update.tensors[name], tensor, atol=1e-6), (source, name)


def test_steps_of_a_payload_are_taken(net: nn.Module) -> None:
    dxo = {"data_kind": "WEIGHT_DIFF", "data": sent(net, local=LOCAL).tensors,
           "meta": {"NUM_STEPS_CURRENT_ROUND": 5}}  # fmt: skip
    one = vleak.PublicFacts("fedavg", local=LocalTraining(learning_rate=0.05))
    given = read_given(dxo, net, one)
    assert given.update.facts.local == LOCAL
    three = vleak.PublicFacts("fedavg", local=LocalTraining(steps=3, learning_rate=0.05))
    with pytest.raises(InputError, match="the payload says 5"):
        read_given(dxo, net, three)


# --- what is refused ----------------------------------------------------------------------------------------


class _Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def test_no_pickle_is_executed(net: nn.Module, tmp_path: Path) -> None:
    planted = tmp_path / "executed"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(_Planted(planted)))
    torch.save({"x": _Planted(planted)}, tmp_path / "b.pt")
    np.savez(tmp_path / "c.npz", np.array([_Planted(planted)], dtype=object))
    for name in ("a.pkl", "b.pt", "c.npz"):
        with pytest.raises(InputError, match=r"not opened|pickle"):
            quick(net, tmp_path / name)
    assert not planted.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "other.weight": torch.zeros(2)}, "has 'other.weight', which the model has not"),
        (lambda t: {name: x[..., :1] for name, x in t.items()}, r"has shape .*, the model's has"),
        (lambda t: dict(list(t.items())[1:]), "lacks 'features.0.weight'"),
        (lambda t: {name: x * float("nan") for name, x in t.items()}, "NaN or infinity"),
        (lambda t: {}, "holds no tensors"),
        (lambda t: dict(model().state_dict()), "these are weights, not an update"),
        (lambda t: {"data_kind": "METRICS", "data": {"loss": 1.0}, "meta": {}}, "expected WEIGHTS"),
        (lambda t: 3, "expected tensors or arrays by name"),
    ],
    ids=["name", "shape", "missing", "nan", "empty", "weights", "metrics", "number"],
)
def test_another_update_is_refused(net: nn.Module, change: Callable[..., Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        quick(net, change(sent(net).tensors))


def test_frozen_parameters_of_a_state_are_dropped() -> None:
    net, moved = model(), model()
    next(net.parameters()).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["head.bias"] += 0.1
    facts = vleak.PublicFacts("fedavg", local=LOCAL)
    update = read_given(state, net, facts, kind="weights").update
    assert "features.0.weight" not in update.tensors
    assert "1 frozen parameters dropped" in update.notes
    with torch.no_grad():
        next(moved.parameters()).add_(0.1)
    with pytest.raises(InputError, match="is frozen in the model"):
        read_given(dict(moved.state_dict()), net, facts, kind="weights")


def test_other_weights_before_are_named(net: nn.Module) -> None:
    facts = vleak.PublicFacts("fedavg", local=LOCAL)
    with pytest.raises(InputError, match="the weights before: what was given has 'other', which the model"):
        read_given(dict(net.state_dict()), net, facts, before={"other": torch.zeros(2)})


def test_a_difference_in_place_of_weights_is_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match="they look like an update"):
        quick(net, sent(net, local=LOCAL).tensors, kind="weights", local=LOCAL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": 9}, "iterations=9: expected a whole number from 10"),
        ({"seconds": 0.5}, "seconds=0.5: expected a number from 1"),
        ({"starts": 0}, "starts=0"),
        ({"input_shape": (3, 4, 16)}, "expected four whole numbers"),
        ({"input_shape": (3, 4, 17, 16)}, "choose `frames` and `size`"),
        ({"kind": "delta"}, "give `local_rate`"),
        ({"kind": "gradents"}, "did you mean gradient"),
        ({"attacks": ("mathcing",)}, "did you mean matching"),
        ({"defense": "dp"}, "strengths, expected the one that the client uses"),
        ({"truth": torch.rand(3, 4, 8, 8)}, "truth: expected clips of shape"),
        ({"truth": 255 * torch.ones(SHAPE)}, "scale 8-bit pixels"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1"),
        ({"public": torch.rand(2, *SHAPE)}, "gives 2 public clips, expected at least 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(net: nn.Module, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        quick(net, sent(net).tensors, **changes)


# --- the record ---------------------------------------------------------------------------------------------


def test_the_schema_is_that_of_the_types() -> None:
    assert json.loads((ROOT / FILE).read_text(encoding="utf-8")) == audit_schema()


def test_the_scale_names_every_level() -> None:
    levels = audit_schema()["$defs"]["Risk"]["properties"]["level"]["enum"]
    assert set(levels) == set(RISK_SCALE)


def test_the_page_escapes_and_hides_the_truth(tmp_path: Path) -> None:
    net = with_norm()
    net.add_module("<script>alert(1)</script>", nn.Linear(1, 1))
    made = quick(net, sent(net).tensors, truth=clips().clips[0], defenses=("prune:fraction=0.9",))
    page = write_audit(made, tmp_path / "audit.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;" in page
    assert "data:image" not in page  # what was rebuilt is as private as the clip
    shown = write_audit(made, tmp_path / "audit.html", pictures=True).read_text(encoding="utf-8")
    assert shown.count('class="film"') == 2  # what was rebuilt, and the answer without the update
    assert f"{made.risk}</span></h1>" in page
    assert json.loads(made.to_json()) == made.record.content()
