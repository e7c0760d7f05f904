"""The page on what decides whether an update leaks: runs, tables, and the spectrum of the Jacobian."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted_run import PlantedDefense, plant_run
from torch import Tensor
from torch.nn import functional as F

import vleak
from vleak.errors import InputError
from vleak.evaluation import Settings
from vleak.federated import JacobianProducts
from vleak.seeds import generator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TODAY = datetime.date(2026, 1, 2)


@pytest.fixture
def decides(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the command; breaching counts as installed, and is never run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import breaching_attack
    import decides_page
    import decides_plan
    import jacobian
    import what_decides

    monkeypatch.setattr(breaching_attack, "load", lambda: breaching_attack)
    return SimpleNamespace(page=decides_page, plan=decides_plan, jacobian=jacobian, command=what_decides)


# ---------------------------------------------------------------------------------------------------------
# Spectrum


def test_products_with_the_jacobian_of_softmax_regression(decides: Any) -> None:
    draws = generator("softmax regression")
    weight, x = torch.randn((3, 5), generator=draws).double(), torch.randn(5, generator=draws).double()
    label = torch.tensor([1])

    def send(x: Tensor) -> list[Tensor]:
        leaf = weight.clone().requires_grad_()
        loss = F.cross_entropy((leaf @ x)[None], label)
        return list(torch.autograd.grad(loss, [leaf], create_graph=True))

    p = (weight @ x).softmax(0)
    wrong = p - F.one_hot(label[0], 3)
    # The gradient is (p - y) x', so that d g[a, i] / d x[j] = dp[a]/dx[j] x[i] + (p - y)[a] (i = j).
    moved = (torch.diag(p) - torch.outer(p, p)) @ weight
    dense = torch.einsum("aj,i->aij", moved, x) + torch.einsum("a,ij->aij", wrong, torch.eye(5).double())
    dense = dense.reshape(15, 5)
    products = JacobianProducts(send, x)
    v, r = torch.randn(5, generator=draws).double(), torch.randn(15, generator=draws).double()
    assert torch.allclose(products.times(v), dense @ v)
    assert torch.allclose(products.transposed(r), dense.T @ r)
    assert torch.allclose(products.squared(v), dense.T @ (dense @ v))


def test_the_spectrum_of_known_singular_values(decides: Any) -> None:
    singular = torch.cat([torch.ones(20), torch.full((30,), 0.05), torch.full((50,), 1e-3)]).double()
    squares = singular.square()
    found = decides.jacobian.spectrum([lambda v: squares * v] * 2, 100, 10, generator("known"))
    assert found.size == 100
    assert found.above == pytest.approx((0.2, 0.5))
    assert found.effective_rank == pytest.approx(float(squares.sum() ** 2 / squares.square().sum()))


def test_a_local_step_tells_what_the_gradient_tells(decides: Any) -> None:
    work = decides.plan.Work(setting=decides.plan.Setting(size=16), clips=1)
    stepped = replace(work, setting=decides.plan.Setting(size=16, local_steps=1))
    gradient, delta = (decides.command.spectrum_of(each, "synthetic", 0) for each in (work, stepped))
    assert gradient.size == 3 * 8 * 16 * 16
    assert 100 < gradient.effective_rank < gradient.size
    assert delta.effective_rank == pytest.approx(gradient.effective_rank, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------
# Plan


def test_every_run_is_one_that_evaluate_takes(decides: Any) -> None:
    works = decides.plan.works()
    assert len({work.folder for work in works}) == len(works)
    for work in works:
        given = work.arguments()
        Settings(**given | {name: (given[name],) for name in ("batch", "local_steps", "defenses")})


def test_a_factor_at_a_time(decides: Any) -> None:
    varied = {"Network": "network", "Training state": "state", "Mode": "mode", "Batch": "batch",
              "Local steps": "local_steps"}  # fmt: skip
    matrix = decides.plan.matrix()
    for heading, factor in varied.items():
        for setting in matrix[heading]:
            centre = decides.plan.Setting(network=setting.network)
            assert replace(setting, **{factor: getattr(centre, factor)}) == centre


def test_the_networks_that_people_use_are_there_untrained_and_early(decides: Any) -> None:
    settings = [setting for group in decides.plan.matrix().values() for setting in group]
    for network in (decides.plan.RESIDUAL, decides.plan.TUBELETS):
        for state in ("untrained", "early"):
            assert decides.plan.Setting(network=network, size=64, state=state) in settings


def test_a_peer_has_the_clips_and_the_labels_of_the_default(decides: Any) -> None:
    for ours, theirs in decides.plan.peers():
        assert ours.peer is None
        assert ours.labels == "granted"
        for work in theirs:
            assert work.peer is not None
            same = replace(work, peer=None, iterations=0)
            assert same == ours


def test_a_modern_peer_starts_from_a_pattern_that_fills_every_frame(decides: Any) -> None:
    start = decides.plan.Breaching(config="modern")._start((2, 3, 2, 6, 8), generator("start"))
    assert start.shape == (2, 3, 2, 6, 8)
    assert torch.equal(start[..., 4:], start[..., :4])
    assert torch.equal(start[..., 4:, :], start[..., :2, :])
    assert torch.equal(start[:, :, 0], start[:, :, 1])
    assert not torch.equal(start[0], start[1])


# ---------------------------------------------------------------------------------------------------------
# Page


def plant(folder: Path, share: float) -> Path:
    """Plant a finished run whose answers hold a share of the truth."""
    plant_run(folder, frames=4, size=16, defenses=[PlantedDefense("none", "none", None, None, share, 9)])
    return folder


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Folder of a planted run by its share, each made once."""
    return cache(lambda share: plant(tmp_path_factory.mktemp("planted") / "run", share))


@pytest.fixture
def planted(planted_folder: Callable[[float], Path], decides: Any) -> Callable[..., Any]:
    """Outcome of a planted run."""

    def outcome(share: float, seconds: float = 24.0, above: tuple[float, ...] | None = None) -> Any:
        seen = above and decides.jacobian.Spectrum(1000, 123.4, above)
        return decides.page.outcome(vleak.load_run(planted_folder(share)), seconds, seen, TODAY)

    return outcome


def test_tables_say_what_was_measured(decides: Any, planted: Callable[..., Any]) -> None:
    setting = decides.plan.Setting(network=decides.plan.RESIDUAL)
    results = {
        decides.plan.Work(setting=decides.plan.Setting()): planted(0.96, above=(0.25, 0.5)),
        decides.plan.Work(setting=setting): planted(0.0),
    }
    text = decides.page.tables(results, TODAY)
    mean, low, high = next(iter(results.values())).gain
    line = next(line for line in text.splitlines() if line.startswith("| `c3d_tiny` | 32 | untrained"))
    assert f"| {mean:+.1f} [{low:+.1f}, {high:+.1f}] | 12/12 |" in line
    assert line.endswith("| 123 of 1000 | 25.0 % | 50.0 % | 2026-01-02 |")
    assert "Written on 2026-01-02" in text
    assert "measured 2026-01-02: vleak" in text
    assert "Of 2 settings (23 are planned)\n\n- leak: 1\n- show" in text
    assert "- cannot be judged by this attack: 1 (`r3d_18:width=16`, 8x32x32, untrained)" in text
    assert "## Mode" in text  # r3d in eval mode stands there, too
    assert "## Local steps" in text
    assert "peer" not in text


def test_a_peer_is_compared_clip_by_clip(decides: Any, planted: Callable[..., Any]) -> None:
    ours, (theirs, *_) = decides.plan.peers()[0]
    results = {ours: planted(0.5, 36.0), theirs: planted(0.96, 360.0)}
    text = decides.page.tables(results, TODAY)
    by_clip = [results[work].psnr_by_clip for work in (ours, theirs)]
    lead = sum(by_clip[1][clip] - by_clip[0][clip] for clip in by_clip[0]) / 12
    assert lead > 1.0
    (line,) = (line for line in text.splitlines() if "breaching, `invertinggradients`" in line)
    assert f"| {lead:+.1f} [" in line
    assert line.endswith("| 12/12 | 30.0 | 2026-01-02 |")
    assert "Of 0 settings (23 are planned)" in text  # labels are granted there: these are none of the matrix


def test_only_what_is_between_the_marks_is_written(decides: Any, planted: Callable[..., Any]) -> None:
    results = {decides.plan.Work(setting=decides.plan.Setting()): planted(0.96)}
    begin, end = decides.page.BEGIN, decides.page.END
    text = decides.page.page(f"before\n{begin}\nold\n{end}\nafter\n", results, TODAY)
    assert text.startswith(f"before\n{begin}\n\nWritten on")
    assert text.endswith(f"\n\n{end}\nafter\n")
    assert "old" not in text
    assert decides.page.page(text, results, TODAY) == text
    with pytest.raises(InputError, match="expected the lines"):
        decides.page.page("no marks", results, TODAY)


def test_outcomes_are_kept_and_read_again(decides: Any, planted: Callable[..., Any], tmp_path: Path) -> None:
    known, path = decides.plan.works(), tmp_path / "outcomes.json"
    results = {known[0]: planted(0.96, above=(0.25, 0.5)), known[-1]: planted(0.5)}
    assert decides.page.read_outcomes(path) == {}
    decides.page.write_outcomes(path, results)
    assert decides.page.read_outcomes(path) == results
    for wrong in ("[]", "{", path.read_text().replace('"identified"', '"identity"')):
        path.write_text(wrong)
        with pytest.raises(InputError, match="expected what this command writes"):
            decides.page.read_outcomes(path)


def test_what_was_measured_before_is_not_run_again(
    decides: Any, planted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, path, page = decides.plan.works(), tmp_path / "outcomes.json", tmp_path / "page.md"
    page.write_text(f"{decides.page.BEGIN}{decides.page.END}")
    decides.page.write_outcomes(path, dict.fromkeys(known[1:], planted(0.5)))
    ran = []
    monkeypatch.setattr(decides.command, "finished", lambda work, *_: ran.append(work) or planted(0.96))
    monkeypatch.setattr(
        "sys.argv",
        ["what_decides", "--data", "synthetic", "--out", str(tmp_path), "--outcomes", str(path),
         "--page", str(page)],
    )  # fmt: skip
    monkeypatch.setattr(decides.command, "load", lambda: object())
    assert decides.command.main() == 0
    assert ran == known[:1]
    assert decides.page.read_outcomes(path)[known[0]].identified == 12
    assert "Of 23 settings" in page.read_text()


def test_the_page_has_the_marks(decides: Any) -> None:
    page = (BENCHMARKS.parent / "docs" / "what_decides.md").read_text(encoding="utf-8")
    assert page.index(decides.page.BEGIN) < page.index(decides.page.END)


# ---------------------------------------------------------------------------------------------------------
# Command


def test_a_finished_run_is_not_run_again(
    decides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = decides.plan.Work(setting=decides.plan.Setting())
    asked: list[Path] = []

    def evaluate(*, out: Path, **_: object) -> vleak.Run:
        asked.append(out)
        if len(asked) == 1:
            out.mkdir(parents=True)
            raise KeyboardInterrupt
        return vleak.load_run(plant(out, 0.5))

    monkeypatch.setattr(vleak, "evaluate", evaluate)
    spectrum = decides.jacobian.Spectrum(10, 2.0, (0.1, 0.2))
    monkeypatch.setattr(decides.command, "spectrum_of", lambda *_: spectrum)

    def finished(seed: int = 0) -> Any:
        return decides.command.finished(work, "synthetic", seed, tmp_path, lambda *_: None)

    with pytest.raises(KeyboardInterrupt):
        finished()
    first = finished()
    again = finished()
    assert asked == [tmp_path / work.folder] * 2
    assert again.spectrum == spectrum
    assert again.seconds_a_clip == first.seconds_a_clip > 0
    with pytest.raises(InputError, match="another seed"):
        finished(seed=1)
