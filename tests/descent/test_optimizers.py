"""L-BFGS, Gauss-Newton, and descents from coarse to fine: known answers, the box, and the bookkeeping."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from descents import (
    CLASSES,
    FRAMES,
    SIZE,
    Cliff,
    Smooth,
    assert_near,
    built_in,
    distances,
    doubled,
    draw,
    engines,
    make_problem,
    make_settings,
    oracle,
    penalty,
)
from tiny import build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent import ENGINES, Descent, DescentSettings, Problem, optimizers
from vleak.descent.levels import ResizedInput, levels_of, resize
from vleak.descent.optimizers import first_state
from vleak.descent.step import Step, first_values
from vleak.descent.step_settings import settings_of, settings_table
from vleak.errors import InputError
from vleak.models import SMALL_MODELS
from vleak.native import loader, operators
from vleak.seeds import generator

rules = pytest.mark.parametrize("rule", optimizers.RULES)
#: every rule in one engine; in the other they are slow.
rules_and_engines = pytest.mark.parametrize(
    ("rule", "engine"),
    [
        pytest.param(rule, engine, marks=pytest.mark.slow if engine == ENGINES[place % 2] else ())
        for place, rule in enumerate(optimizers.RULES)
        for engine in ENGINES
    ],
)


def test_the_numbers_of_a_step_have_the_names_of_their_arguments() -> None:
    row = operators.step_settings(
        step=2, lr=0.1, prior_weight=0.2, spatial=0.3, temporal=0.4, betas=(0.5, 0.6), eps=0.7,
        low=0.8, high=0.9,
    )  # fmt: skip
    step = settings_of({"settings": torch.tensor(row, dtype=torch.float64)})
    assert step[:9] == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert step._fields[:9] == (
        "lr", "prior_weight", "spatial", "temporal", "beta1", "beta2", "eps", "low", "high"
    )  # fmt: skip
    assert (step.bias1, step.bias2_root**2) == pytest.approx((0.75, 0.64))


# ---- quadratic problems: the objective is a parabola, so the answer is known


def parabola(n: int = 12, condition: float = 30.0) -> tuple[Tensor, Tensor]:
    """Return a positive definite matrix and the point where the parabola is lowest, inside the unit box."""
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator("basis"), dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ basis.T
    return matrix, 0.3 + 0.4 * torch.rand(n, generator=generator("lowest"), dtype=torch.float64)


def settings(low: float = 0.0, high: float = 1.0) -> Tensor:
    return settings_table(DescentSettings(iterations=1, low=low, high=high))[0]


def minimize(
    rule: str, matrix: Tensor, lowest: Tensor, iterations: int, **box: float
) -> tuple[list[float], list[Tensor]]:
    """Return objectives and points of a descent to the lowest point of a parabola, without any model."""
    x = torch.full((1, 1, 1, 1, len(lowest)), 0.5, dtype=torch.float64)
    values = {"x": x, "settings": settings(**box)} | first_state(rule, x)
    history, points = [], []
    for _ in range(iterations):
        x = values["x"]
        gap = (x - lowest).view(-1)
        objective, slope = 0.5 * gap @ matrix @ gap, (matrix @ gap).view_as(x)
        history.append(float(objective))
        points.append(x.view(-1))
        values |= step(rule, values, x, objective, slope, matrix)
    return history, points


def step(
    rule: str, values: dict[str, Tensor], x: Tensor, objective: Tensor, slope: Tensor, matrix: Tensor
) -> dict[str, Tensor]:
    if rule == "lbfgs":
        return optimizers.lbfgs(values, x, objective, slope)
    return optimizers.gauss_newton(
        values, x, objective, slope, lambda vector: (matrix @ vector.view(-1)).view_as(vector)
    )


@pytest.mark.parametrize(("rule", "iterations"), [("lbfgs", 30), ("gauss_newton", 12)])
def test_a_parabola_is_descended_to_its_lowest_point(rule: str, iterations: int) -> None:
    matrix, lowest = parabola()
    history, points = minimize(rule, matrix, lowest, iterations)
    assert history[-1] < 1e-9 * history[0]
    torch.testing.assert_close(points[-1], lowest, rtol=0, atol=1e-4)


def test_gauss_newton_solves_least_squares_in_one_step_where_conjugate_gradients_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As many different eigenvalues as inner iterations, and no damping.
    kinds = torch.arange(1.0, optimizers.INNER + 1, dtype=torch.float64)
    matrix = torch.diag(kinds.repeat(2))
    lowest = parabola(len(matrix))[1]
    monkeypatch.setattr(optimizers, "FIRST_DAMPING", 0.0)
    history, points = minimize("gauss_newton", matrix, lowest, 2)
    assert history[1] < 1e-12 * history[0]
    torch.testing.assert_close(points[1], lowest, rtol=0, atol=1e-6)


def test_lbfgs_direction_is_that_of_the_two_loops() -> None:
    numbers = generator("pairs")
    moves = torch.randn(5, 9, generator=numbers, dtype=torch.float64)
    matrix, _ = parabola(9)
    changes = moves @ matrix
    changes[2] = -changes[2]  # no positive curvature: left out
    vector = torch.randn(9, generator=numbers, dtype=torch.float64)
    got, known = optimizers._inverse_product(moves, changes, vector)
    assert bool(known)
    torch.testing.assert_close(got, two_loops([0, 1, 3, 4], moves, changes, vector))
    assert not bool(optimizers._inverse_product(moves, -moves, vector)[1])


def two_loops(pairs: list[int], moves: Tensor, changes: Tensor, vector: Tensor) -> Tensor:
    """Multiply by the inverse Hessian of L-BFGS as Liu and Nocedal write it."""
    result, factors = vector.clone(), {}
    for i in reversed(pairs):
        factors[i] = moves[i] @ result / (moves[i] @ changes[i])
        result = result - factors[i] * changes[i]
    last = pairs[-1]
    result = result * (moves[last] @ changes[last]) / (changes[last] @ changes[last])
    for i in pairs:
        result = result + moves[i] * (factors[i] - changes[i] @ result / (moves[i] @ changes[i]))
    return result


@rules
def test_box_is_kept_and_its_corner_is_found(rule: str) -> None:
    matrix, lowest = parabola()
    low, high = 0.4, 0.55
    history, points = minimize(rule, matrix, lowest, 60, low=low, high=high)
    assert all(((x >= low) & (x <= high)).all() for x in points)
    x = projected_descent(matrix, lowest, low, high)
    assert ((x == low) | (x == high)).any()
    assert ((x > low) & (x < high)).any()
    torch.testing.assert_close(points[history.index(min(history))], x, rtol=0, atol=1e-4)


def projected_descent(matrix: Tensor, lowest: Tensor, low: float, high: float) -> Tensor:
    """Return the lowest point in a box, by many small steps."""
    x = torch.full_like(lowest, 0.5)
    for _ in range(20_000):
        x = (x - matrix @ (x - lowest) / 31).clamp(low, high)
    return x


@rules
def test_a_point_that_fails_is_given_up(rule: str) -> None:
    """From where the first gradient leads far too far: the next points come nearer until one is lower."""
    matrix, lowest = parabola()
    x = torch.full((1, 1, 1, 1, len(lowest)), 0.5, dtype=torch.float64)
    values = {"x": x, "settings": settings(-math.inf, math.inf)} | first_state(rule, x)
    gap = (x - lowest).view(-1)
    objective, slope = 0.5 * gap @ matrix @ gap, (matrix @ gap).view_as(x)
    values |= step(rule, values, x, objective, slope, matrix)
    first = (values["x"] - x).norm()
    for _ in range(2):
        values |= step(rule, values, values["x"], objective + 1, slope, matrix)
        assert torch.equal(values["base"], x)
        nearer = (values["x"] - x).norm()
        assert 0 < nearer <= 0.5 * first
        first = nearer
    values |= step(rule, values, values["x"], objective - 1, slope, matrix)
    assert float(values["base_objective"]) == pytest.approx(float(objective - 1))


# ---- in the loop


@pytest.mark.parametrize(
    ("rule", "distance", "engine"),
    [
        pytest.param(
            rule,
            distance,
            engine,
            marks=pytest.mark.slow if (distance, engine) == ("cosine", "native") else (),
        )
        for rule in optimizers.RULES
        for distance in ("cosine", "l2")
        for engine in ENGINES
    ],
)
def test_objective_falls_and_best_is_the_best_of_the_history(rule: str, distance: str, engine: str) -> None:
    problem = make_problem(build(Smooth), 2, masked=True, distance=distance)
    state = Descent(problem, make_settings(problem, 25, rule=rule), draw(2, "start"), engine=engine).run(25)
    assert state.best_objective == min(state.history)
    assert state.best_objective < 0.25 * state.history[0]
    assert ((state.best >= 0) & (state.best <= 1)).all()
    expected = oracle(problem, state.best)[0].item()
    expected += penalty(state.best.double(), make_settings(problem)).item()
    assert state.best_objective == pytest.approx(expected, rel=1e-4)


# The graph of Gauss-Newton is large, and of a recurrent network very large.
PATHS = [
    ("lbfgs", "c3d_tiny", "l2"),
    ("lbfgs", "lrcn", "cosine"),
    pytest.param("lbfgs", "c3d_tiny", "cosine", marks=pytest.mark.slow),
    pytest.param("lbfgs", "lrcn", "l2", marks=pytest.mark.slow),
    *(
        pytest.param("gauss_newton", name, distance, marks=pytest.mark.slow)
        for name, distance in (
            ("c3d_tiny", "cosine"),
            ("c3d_tiny", "l2"),
            ("c3d_tiny_pool", "cosine"),
            ("lrcn", "cosine"),
            ("lrcn", "l2"),
        )
    ),
]


@pytest.mark.parametrize(("rule", "name", "distance"), PATHS)
def test_engines_take_the_same_path(rule: str, name: str, distance: str) -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    problem = doubled(make_problem(built_in(name), 2, masked=True, distance=distance))
    start, descent = draw(2, "start").double(), make_settings(problem, rule=rule, smoothing=0.01)
    native, reference = (Descent(problem, descent, start, engine=e).run(20) for e in ENGINES)
    assert len(native.history) == 20
    assert native.history == pytest.approx(reference.history, rel=1e-6)
    torch.testing.assert_close(native.best, reference.best, rtol=0, atol=1e-6)


@rules_and_engines
def test_two_halves_are_one_run(rule: str, engine: str) -> None:
    problem = make_problem(build(Smooth))
    whole, halves = (
        Descent(problem, make_settings(problem, 12, rule=rule), draw(1, "start"), engine=engine)
        for _ in range(2)
    )
    expected = whole.run(12)
    halves.run(5)
    got = halves.run(100)
    assert got.history == expected.history
    assert torch.equal(got.x, expected.x)
    assert torch.equal(got.best, expected.best)


@rules_and_engines
def test_nan_ends_the_descent_and_is_named(rule: str, engine: str) -> None:
    problem = make_problem(build(Cliff))
    descent = make_settings(problem, rule=rule, prior_weight=1e6, prior=torch.zeros(3, FRAMES, SIZE, SIZE))
    state = Descent(problem, descent, draw(1, "start"), engine=engine).run(20)
    assert state.nan_at is not None
    assert state.nan_at == len(state.history)
    assert math.isnan(state.history[-1])
    assert torch.isfinite(state.x).all()
    assert state.best_objective == min(state.history[:-1])


@rules
def test_rows_of_features_are_rebuilt(rule: str) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(20, 16), nn.Linear(16, CLASSES)

        def forward(self, rows: Tensor) -> Tensor:
            return self.out(torch.sigmoid(self.hidden(rows)))

    model = build(Head)
    truth = torch.randn(1, 20, generator=generator("rows"))
    labels = torch.tensor([2])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(F.cross_entropy(model(truth), labels), parameters)
    problem = Problem(model, F.cross_entropy, labels, dict(zip(names, gradient, strict=True)))
    descent = DescentSettings(iterations=60, rule=rule, low=-math.inf, high=math.inf)  # type: ignore[arg-type]
    state = Descent(problem, descent, torch.zeros(1, 20), engine="reference").run(60)
    assert state.best_objective < 1e-4
    torch.testing.assert_close(state.best, truth, rtol=0, atol=0.05)


@distances
@pytest.mark.parametrize("scaled", [False, True])
def test_gauss_newton_multiplies_by_its_matrix(distance: str, scaled: bool) -> None:
    """Against the matrix itself, made of the derivative of the gradient, entry by entry."""
    problem = doubled(make_problem(build(Smooth), 1, masked=True, distance=distance, scaled=scaled))
    x, descent = draw(1, "start").double(), make_settings(problem)
    values = first_values(problem, descent, x)
    with operators.use_reference():
        _, _, curvature = Step(problem.model, problem.loss, distance, descent).linearize(values, x)
    for index in range(3):
        vector = torch.randn(x.shape, generator=generator("vector", index), dtype=torch.float64)
        along = torch.autograd.functional.jvp(lambda clips: residual(problem, clips), x, vector)[1]
        expected = torch.autograd.functional.vjp(lambda clips: residual(problem, clips), x, along)[1]
        assert_near(curvature(vector), expected, 1e-10)


def residual(problem: Problem, x: Tensor) -> Tensor:
    """Return what Gauss-Newton takes the distance to be half the square of."""
    names, parameters = zip(*problem.model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(
        problem.loss(problem.model(x), problem.labels), parameters, create_graph=True
    )
    masks, scales = problem.masks or {}, problem.scales or dict.fromkeys(names, 1.0)
    got = torch.cat(
        [(scales[name] * g * masks[name]).flatten() for name, g in zip(names, gradient, strict=True)]
    )
    return math.sqrt(2) * got if problem.distance == "l2" else got / got.norm()


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 5), (1, 1, 1, 4, 5), (1, 2, 3, 1, 5), (1, 1, 1, 1, 7)])
def test_curvature_of_the_priors_is_that_of_their_parabola(isotropic: bool, shape: tuple[int, ...]) -> None:
    """With weights held at x, the parabola's derivative at x is that of total variation and prior."""
    x = torch.rand(shape, generator=generator("x"), dtype=torch.float64)
    vector = torch.randn(shape, generator=generator("v"), dtype=torch.float64)
    descent = DescentSettings(
        iterations=1, spatial=0.3, temporal=0.7, prior_weight=0.2, isotropic=isotropic, smoothing=0.5
    )
    values = {"settings": settings_table(descent)[0], "prior": torch.zeros_like(x)}
    zero = torch.zeros((), dtype=torch.float64)
    slope = optimizers.add_priors(values, x, zero, torch.zeros_like(x), descent)[1]
    torch.testing.assert_close(optimizers.prior_product(values, x, x, descent), slope)
    product = optimizers.prior_product(values, x, vector, descent)
    again = optimizers.prior_product(values, x, product, descent)
    assert (vector * product).sum() > 0
    assert (vector * again).sum() == pytest.approx(float(product.square().sum()))  # symmetric


class Sigmoid(nn.Module):
    """The smooth kind of network that Gauss-Newton is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1), nn.Sigmoid(),
            nn.Conv3d(8, 8, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip
        self.head = nn.Linear(8 * 4 * 4 * 4, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.layers(clips).flatten(1))


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
def test_gauss_newton_is_ahead_of_adam_on_a_smooth_network_at_equal_work(seed: int) -> None:
    problem, start = make_problem(build(Sigmoid)), draw(1, "start", seed)
    descent = make_settings(problem, spatial=0.001, temporal=0.003, prior_weight=0.02, smoothing=0.02)
    # An iteration costs no more than 1 + 2 * INNER evaluations, see its docstring.
    work = 10 * (1 + 2 * optimizers.INNER)
    ahead, adam = (
        Descent(problem, replace(descent, iterations=n, rule=rule), start, engine="reference").run(n)
        for rule, n in (("gauss_newton", 10), ("adam", work))
    )
    assert ahead.best_objective < adam.best_objective


# ---- from coarse to fine


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((8, 32, 32), [(2, 8, 8), (4, 16, 16), (8, 32, 32)]),
        ((5, 9, 7), [(2, 3, 2), (3, 5, 4), (5, 9, 7)]),
        ((1, 2, 3), [(1, 1, 1), (1, 1, 2), (1, 2, 3)]),
    ],
)
def test_levels_halve_and_what_is_one_stays_one(shape: tuple[int, ...], sizes: list[tuple[int, ...]]) -> None:
    descent = DescentSettings(iterations=20, coarse=2, coarse_share=0.2)
    problem = Problem(nn.Identity(), F.cross_entropy, torch.tensor([0]), {})
    levels = levels_of(problem, descent, torch.zeros(1, 3, *shape))
    assert [level.size for level in levels] == sizes
    assert [level.settings.iterations for level in levels] == [4, 4, 12]
    assert levels[-1].problem is problem


def test_a_descent_too_short_for_levels_has_none() -> None:
    problem = Problem(nn.Identity(), F.cross_entropy, torch.tensor([0]), {})
    levels = levels_of(
        problem, DescentSettings(iterations=4, coarse=2, coarse_share=0.2), torch.zeros(1, 3, 8, 8, 8)
    )
    assert [(level.size, level.settings.iterations) for level in levels] == [(None, 4)]


def test_a_model_behind_a_resize_sees_linear_interpolation() -> None:
    small = draw(2, "small")[..., :3, :5, :4].double()
    enlarged = ResizedInput(nn.Identity(), small, (6, 9, 4))
    expected = F.interpolate(small, (6, 9, 4), mode="trilinear")
    torch.testing.assert_close(enlarged(small), expected)
    torch.testing.assert_close(resize(small, (6, 9, 4)), expected)
    assert torch.equal(resize(small, (3, 5, 4)), small)
    even = small[..., :2, :4, :]
    means = even.unflatten(2, (1, 2)).unflatten(4, (2, 2)).unflatten(6, (2, 2)).mean((3, 5, 7))
    torch.testing.assert_close(resize(even, (1, 2, 2)), means)


@distances
@pytest.mark.parametrize("size", [(4, 8, 8), (3, 7, 5), (1, 6, 6)])
def test_gradient_flows_through_the_resize(distance: str, size: tuple[int, ...]) -> None:
    class Any(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv3d(3, 4, 3, padding=1), nn.Linear(4, CLASSES)

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(torch.tanh(self.conv(clips)).mean((2, 3, 4)))

    model = build(Any)
    start = torch.rand(2, 3, *size, generator=generator("start", *size), dtype=torch.float64)
    target = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    problem = Problem(model, F.cross_entropy, torch.tensor([1, 2]), target, None, distance)  # type: ignore[arg-type]
    problem = doubled(problem)
    level = levels_of(problem, DescentSettings(iterations=9, coarse=1), start)[0]
    small = resize(start, level.size)
    values = first_values(level.problem, level.settings, small)
    with operators.use_reference():
        value, gradient = level.step.evaluate(values, small)
    leaf = small.clone().requires_grad_()
    large = F.interpolate(leaf, size, mode="trilinear")
    expected, by_large = oracle(problem, large)
    assert float(value) == pytest.approx(float(expected))
    assert_near(gradient, torch.autograd.grad(large, leaf, by_large)[0], 1e-10)


EVERY_RULE = ("adam", "sign_adam", *optimizers.RULES)
#: half a second each; the same rules run in the other engine.
SLOW = (("gauss_newton", "native"), ("lbfgs", "reference"))
every_rule = pytest.mark.parametrize("rule", EVERY_RULE)


@pytest.mark.parametrize(
    ("rule", "engine"),
    [
        pytest.param(rule, engine, marks=pytest.mark.slow if (rule, engine) in SLOW else ())
        for rule in EVERY_RULE
        for engine in ENGINES
    ],
)
def test_a_coarse_start_is_a_part_of_one_descent(rule: str, engine: str) -> None:
    problem = make_problem(build(Smooth), 2, masked=True)
    descent = make_settings(problem, 20, rule=rule, coarse=1, coarse_share=0.3)
    loop, halves = (Descent(problem, descent, draw(2, "start"), engine=engine) for _ in range(2))
    seen: list[int] = []
    coarse = loop.run(6, every=4, progress=seen.append)
    start = draw(2, "start")
    assert coarse.x.shape == coarse.best.shape == start.shape
    # It is a coarse clip, enlarged: so shrinking and enlarging it again changes little.
    blurred = [resize(resize(clip, (2, 4, 4)), (4, 8, 8)) - clip for clip in (coarse.best, start)]
    assert blurred[0].abs().mean() < 0.5 * blurred[1].abs().mean()
    assert coarse.best_objective == min(coarse.history)
    assert coarse.begun == 0
    state = loop.run(100, every=5, progress=seen.append)
    assert seen == [4, 6, 11, 16, 20]
    assert (len(state.history), state.begun) == (20, 6)
    assert state.best_objective == min(state.history[6:])
    halves.run(3)
    halves.run(5)
    got = halves.run(100)
    assert got.history == state.history
    assert torch.equal(got.best, state.best)
    assert torch.equal(got.x, state.x)


@engines
def test_the_fine_level_goes_on_from_the_best_of_the_coarse_one(engine: str) -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, 20, coarse=1, coarse_share=0.2)
    loop = Descent(problem, descent, draw(1, "start"), engine=engine)
    best = loop.run(4).best
    again = Descent(problem, replace(descent, coarse=0, iterations=16), best, engine=engine).run(16)
    assert loop.run(16).history[4:] == pytest.approx(again.history, rel=1e-6)


@engines
def test_objective_of_a_coarse_level_is_that_of_the_coarse_clip(engine: str) -> None:
    problem = make_problem(build(Smooth))
    descent, start = make_settings(problem, coarse=1), draw(1, "start")
    small = resize(start, (2, 4, 4))
    large = F.interpolate(small, start.shape[2:], mode="trilinear")
    prior = resize(descent.prior[None], (2, 4, 4))
    halved = replace(descent, prior=prior, spatial=descent.spatial / 2, temporal=descent.temporal / 2)
    expected = oracle(problem, large)[0] + penalty(small.double(), halved)
    got = Descent(problem, descent, start, engine=engine).run(1).history
    assert got == pytest.approx([expected.item()], rel=1e-5)


@engines
def test_a_plateau_on_a_coarse_level_leads_to_the_next(engine: str) -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, 300, coarse=2, coarse_share=0.3, patience=5, tolerance=0.02)
    loop = Descent(problem, descent, draw(1, "start"), engine=engine)
    state = loop.run(300)
    assert state.settled
    assert len(state.history) < 300
    assert [level.settings.iterations for level in loop._levels] == [90, 90, 120]
    assert state.best_objective < 0.7 * state.history[0]
    assert len(loop.run(10).history) == len(state.history)


@engines
def test_nan_on_a_coarse_level_ends_the_descent(engine: str) -> None:
    problem = make_problem(build(Cliff))
    dark = 0.1 * draw(1, "start")
    loop = Descent(problem, make_settings(problem, coarse=1), dark, engine=engine)
    state = loop.run(20)
    assert (state.nan_at, len(state.history), state.best_objective) == (1, 1, math.inf)
    assert torch.equal(state.best, dark)
    assert len(loop.run(5).history) == 1


@engines
def test_levels_do_not_show_in_progress_and_stop(engine: str) -> None:
    problem = make_problem(build(Smooth))
    descent = make_settings(problem, 10, coarse=2, coarse_share=0.2)
    loop, whole = (Descent(problem, descent, draw(1, "start"), engine=engine) for _ in range(2))
    seen: list[int] = []
    assert len(loop.run(10, progress=seen.append, stop=lambda: len(seen) == 1, every=7).history) == 7
    assert torch.equal(loop.run(10, progress=seen.append).best, whole.run(10).best)
    assert seen == [7, 10]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "c3d_tiny_pool" else ()) for name in SMALL_MODELS],
)
def test_engines_take_the_same_path_from_coarse_to_fine(name: str) -> None:
    if operators.backend() != "native":
        pytest.skip(f"no native code here: {loader.status().reason}")
    problem = doubled(make_problem(built_in(name), 2, masked=True))
    descent, start = make_settings(problem, coarse=1), draw(2, "start").double()
    native, reference = (Descent(problem, descent, start, engine=e).run(20) for e in ENGINES)
    assert native.history == pytest.approx(reference.history, rel=1e-9)
    torch.testing.assert_close(native.best, reference.best, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coarse": -1}, ["coarse", "-1"]),
        ({"coarse": 2, "coarse_share": 0.5}, ["coarse", "2 of 0.5"]),
        ({"coarse_share": 0.0}, ["coarse", "0.0"]),
    ],
)
def test_levels_that_leave_nothing_are_refused(change: dict[str, Any], words: list[str]) -> None:
    problem = make_problem(build(Smooth))
    with pytest.raises(InputError) as caught:
        Descent(problem, DescentSettings(**{"iterations": 5, **change}), draw(1, "start"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_rows_of_features_have_no_coarse_levels() -> None:
    problem = make_problem(build(Smooth))
    with pytest.raises(InputError, match="coarse: expected clips"):
        Descent(problem, DescentSettings(iterations=5, coarse=1), torch.zeros(1, 20))
