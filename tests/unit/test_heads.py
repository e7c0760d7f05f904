"""Heads on features: what they compute, their losses, what their gradients hold, how they are attacked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Knowledge, Observation, infer_labels
from vleak.defenses import Compress, DpSgd, Prune
from vleak.defenses.dp_checks import per_clip_norms
from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.errors import CapabilityError, InputError
from vleak.federated import LOSSES, UNITS, Client, Defense, PublicFacts, mean_gradient, per_clip_gradients
from vleak.federated.losses import REGULARISATION, bce, ranking
from vleak.models import HEADS, BagPair, build_head, check_head, check_second_derivative
from vleak.native import loader, operators
from vleak.seeds import generator

SEGMENTS, FEATURES, CLASSES = 5, 12, 4
SMALL = {"sultani": "sultani"} | {name: f"{name}:width=8" for name in ("mlp", "attention", "lstm")}
heads = pytest.mark.parametrize("name", HEADS)
LOSSES_OF = list(LOSSES)
losses = pytest.mark.parametrize("loss", LOSSES_OF)


def build(name: str, outputs: int | None = None, seed: int = 0, segments: int = SEGMENTS) -> nn.Module:
    return build_head(SMALL.get(name, name), segments=segments, features=FEATURES, outputs=outputs, seed=seed)


def for_loss(name: str, loss: str) -> nn.Module:
    """Return a head as the loss takes it, with weights large enough that nothing hides below rounding."""
    head = build(name, CLASSES if loss == "cross_entropy" else None)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2)
    return BagPair(head) if loss == "ranking" else head


def draw(loss: str, samples: int = 1, *seed: object) -> tuple[Tensor, Tensor]:
    numbers = generator("features", loss, samples, *seed)
    pair = (2,) if loss == "ranking" else ()
    features = torch.randn(samples, *pair, SEGMENTS, FEATURES, generator=numbers)
    return features, torch.randint(2, (samples,), generator=numbers)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def refusal(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


# ---- what they compute


@heads
@pytest.mark.parametrize("segments", [1, 5, 32])
def test_shapes_for_every_number_of_segments(name: str, segments: int) -> None:
    features = torch.randn(3, segments, FEATURES, generator=generator("shapes", segments))
    assert build(name, 7, segments=segments)(features).shape == (3, 7)
    scores = build(name, segments=segments)(features)
    assert scores.shape == (3, 1 if name == "attention" else segments, 1)
    assert ((scores > 0) & (scores < 1)).all()
    pairs = BagPair(build(name, segments=segments))(features[:2][None])
    torch.testing.assert_close(pairs[0], scores[:2])


def test_linear_by_hand() -> None:
    features, _ = draw("bce", 2)
    head, classes = build("linear"), build("linear", CLASSES)
    weight, bias = (p.detach() for p in head.parameters())
    torch.testing.assert_close(head(features), (features @ weight.T + bias).sigmoid())
    weight, bias = (p.detach() for p in classes.parameters())
    torch.testing.assert_close(classes(features), features.mean(1) @ weight.T + bias)


def test_sultani_has_no_activation_behind_its_second_layer() -> None:
    features, _ = draw("bce", 2)
    head = build("sultani")
    a, b, c, d, e, f = (p.detach() for p in head.parameters())
    assert [tuple(w.shape) for w in (a, c, e)] == [(512, FEATURES), (32, 512), (1, 32)]
    expected = (((features @ a.T + b).relu() @ c.T + d) @ e.T + f).sigmoid()
    torch.testing.assert_close(head(features), expected)
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.6, 0.6]


def test_depth_counts_the_linear_layers_of_the_mlp() -> None:
    for depth in (1, 2, 3, 4):
        head = build_head(f"mlp:depth={depth},width=6", segments=2, features=3, outputs=None, seed=0)
        assert [p.shape[0] for n, p in head.named_parameters() if "weight" in n] == [*[6] * (depth - 1), 1]
    features, _ = draw("bce", 2)
    head = build("mlp")
    a, b, c, d = (p.detach() for p in head.parameters())
    torch.testing.assert_close(head(features), ((features @ a.T + b).relu() @ c.T + d).sigmoid())


def test_attention_weighs_the_segments_and_forgets_their_order() -> None:
    features, _ = draw("bce", 2)
    head = build("attention")
    torch.testing.assert_close(head(features.flip(1)), head(features))
    # A clip of one segment again and again is that segment.
    again = features[:, :1].expand(-1, SEGMENTS, -1)
    torch.testing.assert_close(head(again), head(features[:, :1]))
    with torch.no_grad():
        head.weigh.weight.zero_()
    embedded = head.embed(features).relu().mean(1, keepdim=True)
    torch.testing.assert_close(head(features), head.classify(embedded).sigmoid())


def test_lstm_sees_the_order_of_segments() -> None:
    features, _ = draw("bce", 2)
    head = build("lstm")
    assert (head(features).flip(1) - head(features.flip(1))).abs().max() > 1e-4


@heads
def test_a_bag_is_scored_by_itself(name: str) -> None:
    features, _ = draw("bce", 3)
    torch.testing.assert_close(build(name)(features)[1:2], build(name)(features[1:2]))


@heads
def test_weights_depend_on_seed_and_name_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (flat(dict(build(name, seed=seed).named_parameters())) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() > 0.9 * first.numel()
    assert not build(name).training


def test_names_with_settings_have_one_spelling() -> None:
    names = ["mlp", "mlp:", "mlp:width=64", "mlp:depth=2,width=64", "mlp:width=64,depth=2"]
    assert {HEADS.parse(name).text for name in names} == {"mlp"}
    assert HEADS.parse("mlp:width=5,depth=3").text == "mlp:depth=3,width=5"
    made = [build_head(name, segments=2, features=3, outputs=2, seed=0) for name in names]
    assert len({float(flat(dict(head.named_parameters())).sum()) for head in made}) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sultany", ["unknown head 'sultany'", "did you mean sultani"]),
        ("mpl:depth=2", ["unknown head 'mpl'", "did you mean mlp"]),
        ("mlp:deph=2", ["unknown setting of head mlp 'deph'", "did you mean depth"]),
        ("mlp:depth=0", ["depth is 0", "from 1 to 4"]),
        ("mlp:depth=5", ["depth is 5", "from 1 to 4"]),
        ("mlp:width=two", ["width takes a whole number, got 'two'"]),
        ("mlp:width=2,width=3", ["width is given twice"]),
        ("linear:width=2", ["linear has no settings"]),
        ("no.such_module:make", ["head 'no.such_module:make'", "cannot import"]),
    ],
)
def test_names_that_are_refused(name: str, words: list[str]) -> None:
    refusal(InputError, lambda: build_head(name, segments=2, features=3, outputs=None, seed=0), *words)


# ---- losses


def test_bce_of_a_known_answer() -> None:
    scores = torch.tensor([[[0.5], [0.25]], [[0.9], [0.1]]])
    expected = -(math.log(0.5) + math.log(0.25) + math.log(0.1) + math.log(0.9)) / 4
    assert float(bce(scores, torch.tensor([1, 0]))) == pytest.approx(expected)


def test_ranking_of_a_known_answer() -> None:
    anomalous, normal = [0.2, 0.9, 0.4], [0.3, 0.1, 0.6]
    expected = 1 - 0.9 + 0.6 + 8e-5 * (0.2 + 0.9 + 0.4 + 0.7**2 + 0.5**2)
    scores = torch.tensor([[anomalous, normal]], dtype=torch.float64)[..., None]
    assert float(ranking(scores, torch.tensor([0]))) == pytest.approx(expected, rel=1e-12)
    # The mean of two pairs; the other way round the hinge is 1 - 0.6 + 0.9.
    other = 1 - 0.6 + 0.9 + 8e-5 * (0.3 + 0.1 + 0.6 + 0.2**2 + 0.5**2)
    both = torch.cat((scores, scores.flip(1)))
    assert float(ranking(both, torch.tensor([0, 1]))) == pytest.approx((expected + other) / 2, rel=1e-12)


def test_ranking_beyond_the_margin_leaves_the_regularisers() -> None:
    scores = torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]])[None]
    assert float(ranking(scores, torch.tensor([0]))) == pytest.approx(8e-5 * 2)


def test_ranking_of_pooled_bags_is_the_hinge_and_the_score() -> None:
    scores = torch.tensor([[[0.7]], [[0.2]]])[None]
    assert float(ranking(scores, torch.tensor([0]))) == pytest.approx(1 - 0.7 + 0.2 + 8e-5 * 0.7)


@pytest.mark.parametrize("loss", ["bce", "ranking"])
def test_a_batch_is_the_mean_of_its_samples(loss: str) -> None:
    features, labels = draw(loss, 6)
    model = for_loss("linear", loss)
    singles = [LOSSES[loss](model(x[None]), y[None]) for x, y in zip(features, labels, strict=True)]
    torch.testing.assert_close(LOSSES[loss](model(features), labels), torch.stack(singles).mean())


def test_saturated_scores_have_a_finite_gradient() -> None:
    scores = torch.tensor([[[1.0], [0.0]]], requires_grad=True)
    for label in (0, 1):
        (slope,) = torch.autograd.grad(bce(scores, torch.tensor([label])), scores)
        assert torch.isfinite(slope).all()


# ---- which segments a gradient holds


def slopes(name: str) -> tuple[Tensor, Tensor]:
    """Return scores (2, S) of a pair and the ranking loss's derivative by them (2, S)."""
    features, labels = draw("ranking")
    scores = for_loss(name, "ranking")(features).detach().requires_grad_()
    (slope,) = torch.autograd.grad(ranking(scores, labels), scores)
    return scores.detach()[0, :, :, 0], slope[0, :, :, 0]


@pytest.mark.parametrize("name", ["linear", "mlp", "sultani", "lstm"])
def test_ranking_selects_one_normal_segment_and_barely_touches_other_anomalous_ones(name: str) -> None:
    scores, slope = slopes(name)
    normal, anomalous = slope[1], slope[0]
    assert normal.nonzero().flatten().tolist() == [int(scores[1].argmax())]
    assert float(normal.max()) == 1
    top = int(scores[0].argmax())
    others = torch.cat((anomalous[:top], anomalous[top + 1 :]))
    assert float(anomalous[top]) == pytest.approx(-1, abs=6 * REGULARISATION)
    assert (others != 0).all()
    # One of sparsity, four of smoothness whose differences are below 1.
    assert others.abs().max() <= 5 * REGULARISATION


@pytest.mark.parametrize("name", ["linear", "sultani"])
def test_what_the_normal_bag_does_not_show_is_not_in_the_update(name: str) -> None:
    features, labels = draw("ranking")
    model = for_loss(name, "ranking")
    shown = int(model(features)[0, 1].argmax())
    hidden = next(index for index in range(SEGMENTS) if index != shown)
    sent = Client(model, "ranking").update(features, labels, generator(0)).tensors
    for side, index, seen in ((1, hidden, False), (1, shown, True), (0, 0, True)):
        changed = features.clone()
        changed[0, side, index] *= 0.99
        again = Client(model, "ranking").update(changed, labels, generator(0)).tensors
        assert torch.equal(flat(sent), flat(again)) != seen


@pytest.mark.parametrize("name", ["linear", "mlp", "sultani", "attention", "lstm"])
def test_bce_shows_every_segment(name: str) -> None:
    features, labels = draw("bce")
    model = for_loss(name, "bce")
    sent = flat(Client(model, "bce").update(features, labels, generator(0)).tensors)
    for index in range(SEGMENTS):
        changed = features.clone()
        changed[0, index] *= 0.9
        again = flat(Client(model, "bce").update(changed, labels, generator(0)).tensors)
        assert (sent - again).norm() > 1e-3 * sent.norm()


def test_first_layer_of_a_ranked_pair_has_two_directions_that_count() -> None:
    features, labels = draw("ranking", 1, "rank")
    weight = mean_gradient(for_loss("sultani", "ranking"), ranking, features, labels)["head.layers.0.weight"]
    values = torch.linalg.svdvals(weight)
    assert values[2] < 2e-3 * values[0]
    assert values[1] > 0.02 * values[0]
    features, labels = draw("bce", 1, "rank")
    weight = mean_gradient(for_loss("sultani", "bce"), bce, features, labels)["layers.0.weight"]
    values = torch.linalg.svdvals(weight)
    assert values[SEGMENTS - 1] > 0.01 * values[0]


# ---- the client


@heads
@losses
def test_undefended_update_is_the_autograd_gradient(name: str, loss: str) -> None:
    model, (features, labels) = for_loss(name, loss), draw(loss, 3)
    update = Client(model, loss).update(features, labels, generator(0))
    value = LOSSES[loss](model(features), labels)
    expected = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    assert flat(update.tensors).norm() > 0
    for sent, gradient in zip(update.tensors.values(), expected, strict=True):
        torch.testing.assert_close(sent, gradient)
    assert update.facts == PublicFacts(batch_size=3, loss=loss)
    update.check(model)


def test_labels_of_a_ranked_pair_are_not_looked_at() -> None:
    model, (features, _) = for_loss("linear", "ranking"), draw("ranking", 2)
    sent = [
        flat(Client(model, "ranking").update(features, torch.tensor(labels), generator(0)).tensors)
        for labels in ([0, 0], [1, 7])
    ]
    assert torch.equal(*sent)


class Answers(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.answer = answer

    def forward(self, features: Tensor) -> Any:
        return self.answer(features * self.scale)


def score(features: Tensor) -> Tensor:
    return features.mean(-1, keepdim=True).sigmoid()


PAIRS, PAIR_LABELS = draw("ranking", 3)
X, Y = draw("bce", 3)
REFUSALS: dict[str, tuple[Callable[[], nn.Module], str, Tensor, Tensor, type[Exception], list[str]]] = {
    "bags for ranking": (
        lambda: for_loss("linear", "ranking"), "ranking", X, Y, InputError,
        ["(pair, 2, segment, feature)", "(3, 5, 12)", "stack"],
    ),
    "pairs for bce": (
        lambda: build("linear"), "bce", PAIRS, Y, InputError,
        ["features (clip, segment, feature)", "(3, 2, 5, 12)"],
    ),
    "one bag": (lambda: build("linear"), "bce", X[0], Y, InputError, ["got shape (5, 12)"]),
    "no bag": (lambda: build("linear"), "bce", X[:0], Y[:0], InputError, ["(0, 5, 12)"]),
    "float64": (lambda: build("linear"), "bce", X.double(), Y, InputError, ["float64", ".float()"]),
    "NaN": (lambda: build("linear"), "bce", X * math.nan, Y, InputError, ["NaN or infinity"]),
    "infinite pair": (
        lambda: for_loss("linear", "ranking"), "ranking", PAIRS * math.inf, Y, InputError,
        ["NaN or infinity"],
    ),
    "other features": (
        lambda: build("linear"), "bce", X[..., :9], Y, CapabilityError,
        ["failed on features of shape (3, 5, 9)", "check segments and features"],
    ),
    "label 2": (lambda: build("linear"), "bce", X, Y + 1, InputError, ["labels run from 1 to 2", "'bce'"]),
    "class": (
        lambda: build("linear", 2), "cross_entropy", X, Y + 1, InputError, ["the model has 2 classes"]
    ),
    "logits for bce": (
        lambda: build("linear", 2), "bce", X, Y, CapabilityError,
        ["returned (3, 2)", "expected scores (clip, segment, 1) with 3 rows"],
    ),
    "scores for cross-entropy": (
        lambda: build("linear"), "cross_entropy", X, Y, CapabilityError,
        ["returned (3, 5, 1)", "expected logits (clip, class)"],
    ),
    "no pair": (
        lambda: Answers(lambda x: score(x)[:, :1].expand(-1, 5, -1, -1)), "ranking", PAIRS, Y,
        CapabilityError, ["expected scores (pair, 2, segment, 1)", "(3, 5, 5, 1)"],
    ),
    "no sigmoid": (
        lambda: Answers(lambda x: x.mean(-1, keepdim=True) + 3), "bce", X, Y, CapabilityError,
        ["scores from", "expected [0, 1]", "sigmoid"],
    ),
    "NaN scores": (
        lambda: Answers(lambda x: score(x) * math.nan), "bce", X, Y, CapabilityError, ["infinite scores"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSALS)
def test_client_refusals(row: str) -> None:
    model, loss, features, labels, error, words = REFUSALS[row]
    refusal(error, lambda: Client(model(), loss).update(features, labels, generator(0)), *words)


# ---- defenses


@heads
@losses
def test_dp_is_clip_and_noise_by_hand(name: str, loss: str) -> None:
    model, (features, labels) = for_loss(name, loss).eval(), draw(loss, 3)
    singles = [mean_gradient(model, LOSSES[loss], features[i : i + 1], labels[i : i + 1]) for i in range(3)]
    noise, bound = 0.3, 0.5 * min(float(flat(single).norm()) for single in singles)
    defense = DpSgd(noise_multiplier=noise, max_grad_norm=bound)
    sent = Client(model, loss, defense).update(features, labels, generator("hand")).tensors
    draws = generator("hand")
    for parameter_name, parameter in model.named_parameters():
        total = sum(single[parameter_name] * (bound / flat(single).norm()) for single in singles)
        total = total + noise * bound * torch.randn(parameter.shape, generator=draws)
        torch.testing.assert_close(sent[parameter_name], total / 3, rtol=1e-4, atol=1e-6)


def test_dp_bounds_what_one_pair_can_do() -> None:
    model, (features, labels) = for_loss("sultani", "ranking"), draw("ranking", 4)
    bound = 0.01
    defense = DpSgd(noise_multiplier=0.0, max_grad_norm=bound)

    def total(pairs: Tensor) -> Tensor:
        sent = Client(model, "ranking", defense).update(pairs, labels[: len(pairs)], generator(0))
        return len(pairs) * flat(sent.tensors)

    assert (total(features) - total(features[1:])).norm() == pytest.approx(bound, rel=1e-3)


@losses
def test_the_record_names_the_unit(loss: str) -> None:
    privacy = Client(for_loss("linear", loss), loss, DpSgd(noise_multiplier=1.0)).privacy()
    assert privacy is not None
    assert privacy.unit == UNITS[loss] == ("one bag pair" if loss == "ranking" else "one clip")
    assert privacy.epsilon == pytest.approx(4.377, abs=1e-3)
    assert Client(for_loss("linear", loss), loss, Defense()).privacy() is None


class ByHooks(DpSgd):
    """Gradients a sample as hooks collect them: rows of the batch's backward pass, coupled or not."""

    def per_clip(self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        rows = model(clips).detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(rows, labels), rows)
        linear = lambda scores, index: len(clips) * (scores * slope[index]).sum()  # noqa: E731
        return per_clip_gradients(model, linear, clips, torch.arange(len(clips)))


def ranked_across_the_batch(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank every anomalous bag against every normal one, as Sultani's batches of 30 + 30 do."""
    tops = scores[:, :, 0].max(1).values
    return (1 - tops[:2, None] + tops[None, 2:] * tops[:2, None].detach()).relu().mean()


def test_guards_hold_for_features() -> None:
    features, labels = draw("bce", 4)
    model = for_loss("linear", "bce")
    arguments = (model, bce, features, labels, generator(0))
    sound = ByHooks(noise_multiplier=0.0).aggregate(*arguments)
    torch.testing.assert_close(flat(sound), flat(DpSgd(noise_multiplier=0.0).aggregate(*arguments)))
    with pytest.raises(CapabilityError, match=r"gradient of clip \d changed when other clips did"):
        ByHooks().aggregate(model, ranked_across_the_batch, features, labels, generator(0))


def test_a_batch_of_zero_features_passes_the_guards() -> None:
    model, (features, labels) = for_loss("linear", "bce"), draw("bce", 2)
    sent = Client(model, "bce", DpSgd(noise_multiplier=0.0)).update(0 * features, labels, generator(0))
    assert torch.isfinite(flat(sent.tensors)).all()


@losses
@pytest.mark.parametrize("name", ["sultani", "lstm"])
def test_gradients_a_sample_are_those_of_batches_of_one(name: str, loss: str) -> None:
    model, (features, labels) = for_loss(name, loss), draw(loss, 3)
    samples = per_clip_gradients(model, LOSSES[loss], features, labels)
    assert per_clip_norms(samples).min() > 0
    for index in range(3):
        single = mean_gradient(model, LOSSES[loss], features[index, None], labels[index, None])
        for key, expected in single.items():
            torch.testing.assert_close(samples[key][index], expected, rtol=1e-4, atol=1e-6)


@losses
@pytest.mark.parametrize(
    "defense", [Prune(fraction=0.7), Compress(codec="int8"), Compress(codec="qsgd", bits=4)]
)
def test_messages_about_heads_arrive(loss: str, defense: Defense) -> None:
    model, (features, labels) = for_loss("mlp", loss), draw(loss, 2)
    plain = Client(model, loss).update(features, labels, generator(0))
    sent = Client(model, loss, defense).update(features, labels, generator(0))
    sent.check(model)
    assert sent.wire_bytes < 0.5 * plain.wire_bytes
    assert F.cosine_similarity(flat(sent.tensors), flat(plain.tensors), dim=0) > 0.8


# ---- attacked


def problem_of(name: str, loss: str, distance: Any) -> Problem:
    """Return the problem of an update, in float64, where no kink parts two paths that are equal."""
    model, (features, labels) = for_loss(name, loss), draw(loss, 1, "truth")
    sent = Client(model, loss).update(features, labels, generator(0)).tensors
    target = {key: tensor.double() for key, tensor in sent.items()}
    return Problem(copy.deepcopy(model).double(), LOSSES[loss], labels, target, None, distance)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        # Each head with one loss, and one head with each.
        pytest.param(name, loss, marks=() if loss == LOSSES_OF[0] or name == "mlp" else pytest.mark.slow)
        for name in HEADS
        for loss in LOSSES_OF
    ],
)
def test_engines_take_the_same_path(name: str, loss: str) -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    distance = "l2" if loss == "bce" else "cosine"
    problem = problem_of(name, loss, distance)
    start = draw(loss, 1, "start")[0].double()
    descent = DescentSettings(iterations=20, learning_rate=0.05, low=-math.inf, high=math.inf)
    loops = [Descent(problem, descent, start, engine=engine) for engine in ("native", "reference")]
    assert [loop.engine for loop in loops] == ["native", "reference"]
    native, reference = (loop.run(20) for loop in loops)
    assert native.history == pytest.approx(reference.history, rel=1e-9)
    torch.testing.assert_close(native.x, reference.x, rtol=0, atol=1e-9)
    assert reference.best_objective < 0.9 * reference.history[0]


@heads
def test_derivative_agrees_with_finite_differences(name: str) -> None:
    loss = "ranking"
    problem = problem_of(name, loss, "cosine")
    start = draw(loss, 1, "start")[0].double()
    loop = Descent(problem, DescentSettings(iterations=1, low=-math.inf, high=math.inf), start)
    gradient = loop.distance_and_gradient(start)[1]
    for index in range(3):
        numbers = generator("direction", index)
        direction = torch.randn(start.shape, generator=numbers, dtype=torch.float64)
        ahead, behind = (loop.distance_and_gradient(start + h * direction)[0] for h in (1e-6, -1e-6))
        slope = float((gradient * direction).sum())
        assert float(ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_native_engine_in_float32_starts_as_the_reference_does() -> None:
    problem = problem_of("sultani", "ranking", "cosine")
    problem = replace(
        problem, model=for_loss("sultani", "ranking"),
        target={key: tensor.float() for key, tensor in problem.target.items()},
    )  # fmt: skip
    start, _ = draw("ranking", 1, "start")
    descent = DescentSettings(iterations=3, low=-math.inf, high=math.inf)
    native, reference = (Descent(problem, descent, start, engine=e).run(3) for e in ("native", "reference"))
    assert native.history == pytest.approx(reference.history, rel=1e-4)


# ---- preflight


@heads
@losses
def test_heads_pass_the_preflight(name: str, loss: str) -> None:
    model, (features, _) = for_loss(name, loss), draw(loss)
    pooled = name == "attention"
    expected = CLASSES if loss == "cross_entropy" else 1 if pooled else SEGMENTS
    assert check_head(model, features, loss, CLASSES) == expected
    check_second_derivative(model, features, LOSSES[loss])


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (lambda: nn.Flatten(), "bce", ["no parameters"]),
        (lambda: build("linear", 3), "cross_entropy", ["(1, 3)", "(1, 4)"]),
        (lambda: build("linear"), "cross_entropy", ["(1, 5, 1)", "logits of shape (1, 4)"]),
        (lambda: build("linear", 3), "bce", ["(1, 3)", "(1, 5, 1) or (1, 1, 1)", "'bce'"]),
        (lambda: build("linear", 3), "ranking", ["(1, 5, 3)", "(1, 2, 5, 1)"]),
        (lambda: Answers(lambda x: score(x)[:, 0]), "ranking", ["(1, 2, 5, 1)", "BagPair"]),
        (lambda: Answers(lambda x: x.mean(-1, keepdim=True) + 9), "bce", ["scores from", "sigmoid"]),
        (lambda: Answers(lambda x: score(x) * math.nan), "bce", ["scores from nan"]),
        (lambda: nn.Linear(9, 1), "bce", ["does not take features of shape (1, 5, 12)", "extractor"]),
    ],
)
def test_what_is_no_head_of_the_features_is_refused(
    model: Callable[[], nn.Module], loss: str, words: list[str]
) -> None:
    features, _ = draw(loss)
    refusal(InputError, lambda: check_head(model(), features, loss, CLASSES), *words)


class Hidden(Answers):
    def forward(self, features: Tensor) -> Any:
        return super().forward(features.detach())


def test_heads_that_hide_the_features_are_refused() -> None:
    features, _ = draw("bce")
    refusal(
        CapabilityError, lambda: check_second_derivative(Hidden(score), features, bce), "no finite influence"
    )


# ---- labels


def observe(model: nn.Module, loss: str, features: Tensor, labels: Tensor, **known: Any) -> Observation:
    update = Client(model, loss).update(features, labels, generator(0))
    knowledge = Knowledge(
        clip_shape=tuple(features.shape[1:]), batch_size=len(features), classes=2, **known
    )  # fmt: skip
    return Observation(model, update, knowledge)


@heads
@pytest.mark.parametrize("label", [0, 1])
def test_the_label_of_one_bag_is_exact(name: str, label: int) -> None:
    for seed in range(10):
        features, _ = draw("bce", 1, seed)
        truth = torch.tensor([label])
        assert infer_labels(observe(for_loss(name, "bce"), "bce", features, truth)).tolist() == [label]
        model = build(name, 2, seed)
        assert infer_labels(observe(model, "cross_entropy", features, truth)).tolist() == [label]


@heads
@pytest.mark.parametrize("anomalous", range(5))
def test_anomalous_bags_of_a_batch_are_counted(name: str, anomalous: int) -> None:
    features, _ = draw("bce", 4)
    labels = torch.arange(4).lt(anomalous).long()
    model, (public, _) = for_loss(name, "bce"), draw("bce", 16, "public")
    observation = observe(model, "bce", features, labels, public_clips=public)
    assert infer_labels(observation).tolist() == sorted(labels.tolist())


def test_without_a_bias_the_row_tells_the_label() -> None:
    for label in (0, 1):
        head = build("mlp")
        head.layers[2].bias = None
        features, _ = draw("bce", 1, "no bias")
        observation = observe(head, "bce", features, torch.tensor([label]))
        assert infer_labels(observation).tolist() == [label]


def test_a_ranked_pair_has_no_label_to_infer() -> None:
    features, _ = draw("ranking", 3)
    observation = observe(for_loss("linear", "ranking"), "ranking", features, torch.tensor([1, 0, 1]))
    assert infer_labels(observation).tolist() == [0, 0, 0]
