"""The library as a researcher imports it: objects for everything, a run that is kept, shown and loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import vleak
from vleak import Run
from vleak.attacks import Matching
from vleak.errors import CapabilityError, InputError
from vleak.federated import Defense
from vleak.seeds import generator

CLIPS = torch.rand(3, 3, 4, 16, 16, generator=generator("api"))
SMALL: dict[str, Any] = {"iterations": 2, "workers": 1, "audit_draws": 0, "non_adaptive": 0}


@dataclass(frozen=True, kw_only=True)
class Shrink(Defense):
    """Sends a part of the gradient's size; its strength has no default."""

    name: ClassVar[str] = "shrink"
    strength: float

    def aggregate(
        self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        gradient = super().aggregate(model, loss, clips, labels, generator)
        return {name: tensor * self.strength for name, tensor in gradient.items()}


@dataclass(frozen=True, kw_only=True)
class Thief(Defense):
    """Has the name of another defense."""

    name: ClassVar[str] = "dp"


class Unmarked(Defense):
    """Has a setting, but is no dataclass."""

    strength: float = 0.5


class Impatient(Matching):
    """An attack of the caller's."""

    name: ClassVar[str] = "impatient"


class Hasty(Matching):
    """Another attack of the same name."""

    name: ClassVar[str] = "impatient"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 2 * 8 * 8, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.conv(clips).sigmoid().flatten(1))


def mae(reconstruction: Tensor, truth: Tensor) -> float:
    return float((reconstruction - truth).abs().mean())


def wrong(reconstruction: Tensor, truth: Tensor) -> float:
    return float("nan")


@pytest.fixture(scope="module")
def run() -> Run:
    """A run of objects, in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    return vleak.evaluate(
        data=CLIPS, model=model, defenses=[Shrink(strength=0.5), "dp:noise_multiplier=0.1"],
        attacks=[Impatient(iterations=2), "matching"], metrics=mae, **SMALL,
    )  # fmt: skip


def test_objects_have_their_names_in_the_record(run: Run) -> None:
    settings = run.settings
    assert (settings.data, settings.model, settings.metrics) == ("tensors", "Net", ("mae",))
    assert settings.defenses == ("none", "test_api:Shrink:strength=0.5", "dp:noise_multiplier=0.1")
    assert settings.attacks == ("impatient:iterations=2", "matching")
    assert (settings.frames, settings.size, settings.enhance) == (4, 16, "none")
    assert all(cell.ok for cell in run.cells)
    assert {row.attack for row in run.rows} == {"grey", "impatient:iterations=2", "matching"}
    assert {row.defense for row in run.rows} == {"none", "shrink", "dp σ=0.1"}


def test_objects_do_what_they_are_for(run: Run) -> None:
    by_id = {cell.id: cell for cell in run.cells}
    plain = by_id["Net.given/none/matching/tensors0"]
    shrunk = by_id["Net.given/test_api:Shrink:strength=0.5/matching/tensors0"]
    assert plain.update is not None
    assert shrunk.update is not None
    assert (plain.update.changed_fraction, round(shrunk.update.changed_fraction)) == (0.0, 1)
    pictures = run.pictures(shrunk)
    assert torch.equal(pictures["truth"], (CLIPS[0] * 255).round() / 255)
    assert shrunk.scores is not None
    assert shrunk.scores.metrics["mae"] == pytest.approx(mae(pictures["reconstruction"], CLIPS[0]), abs=4e-3)


def test_the_callers_model_is_left_alone_and_names_change_no_score() -> None:
    model = Net().train()
    before = [parameter.clone() for parameter in model.parameters()]
    runs = [
        vleak.evaluate(data=(CLIPS[:1], torch.tensor([5])), model=model, defenses="none", **SMALL)
        for _ in range(2)
    ]
    assert model.training
    assert all(map(torch.equal, before, model.parameters()))
    assert [c.scores for c in runs[0].cells] == [c.scores for c in runs[1].cells]


def test_a_run_is_saved_loaded_and_the_same(run: Run, tmp_path: Path) -> None:
    loaded = vleak.load_run(run.save(tmp_path / "run"))
    assert loaded.record == run.record
    assert json.loads(run.to_json()) == json.loads((tmp_path / "run" / "results.json").read_text())
    for cell in run.cells:
        kept, again = run.pictures(cell), loaded.pictures(cell.id)
        assert kept.keys() == again.keys()
        assert all(torch.equal(kept[role], again[role]) for role in kept)
    assert loaded.save(tmp_path / "run") == tmp_path / "run"
    assert vleak.load_run(tmp_path / "run" / "results.json").record == run.record
    with pytest.raises(InputError, match="holds another run"):
        vleak.evaluate(data=CLIPS, model=Net(), defenses="none", out=tmp_path / "run", **SMALL)


def test_the_report_of_memory_is_that_of_the_folder(run: Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html")
    loaded = vleak.load_run(run.save(tmp_path / "run"))
    written = loaded.report()
    assert page.read_text() == written.read_text()
    assert written == tmp_path / "run" / "report.html"
    with pytest.raises(InputError, match="path=None: this run is in memory alone; give the file"):
        run.report()


PHASES = ("loading clips", "drawing clips, 0 of ", "comparing clips, 0 of 1", "preparing the model",
          "computing updates, 0 of 7", "computing updates, 6 of 7", "attacking")  # fmt: skip


def test_a_run_in_a_folder_is_that_in_memory(tmp_path: Path) -> None:
    common: dict[str, Any] = {"clips": 1, "frames": 4, "size": 16, "defenses": "none", **SMALL}
    common["attacks"] = "matching"
    told: list[tuple[str, int, int]] = []
    in_memory = vleak.evaluate(progress=lambda *what: told.append(what), **common)
    on_disk = vleak.evaluate(out=tmp_path / "run", **common)
    assert [c.scores for c in in_memory.cells] == [c.scores for c in on_disk.cells]
    assert told[-1] == ("attacking", 3, 3)
    words = [what for what, _, _ in told]
    phases = [next(at for at, what in enumerate(words) if what.startswith(phase)) for phase in PHASES]
    assert phases == sorted(phases)
    assert vleak.load_run(tmp_path / "run").record == on_disk.record


def test_a_table_of_cells(run: Run) -> None:
    pytest.importorskip("pandas")
    table = run.to_pandas()
    assert len(table) == len(run.cells)
    assert table["scores.psnr_gain_db"].tolist() == [
        c.scores.psnr_gain_db for c in run.cells if c.scores is not None
    ]
    assert {"defense.name", "attack.name", "scores.metrics.mae", "clip"} <= set(table.columns)


def test_pandas_is_only_needed_for_the_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CapabilityError, match="needs pandas, which is not installed; pip install pandas"):
        run.to_pandas()


def test_a_notebook_shows_headline_and_rows(run: Run) -> None:
    shown = run._repr_html_()
    assert shown.count("<tr>") == 1 + len(run.rows)
    assert "Without defense" in shown
    assert "<th>verdict</th>" in shown
    assert repr(run) == f"<Run of tensors: 3 clips, {len(run.cells)} cells, {len(run.rows)} rows>"


def test_a_metric_that_gives_no_number_fails_its_cells_by_name() -> None:
    run = vleak.evaluate(
        clips=1, frames=4, size=16, defenses="none", attacks="matching", metrics=[wrong], **SMALL
    )
    failures = {cell.failure or "" for cell in run.cells}
    assert len(failures) == 1
    assert all(text.startswith("metric 'wrong' ") and "returned nan, expected" in text for text in failures)


REFUSED: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"model": nn.Sequential()}, 'model: Sequential is .*model=vleak.named("my_model", ...)'),
    (lambda: {"model": lambda: Net()}, 'model: <lambda> is .*model=vleak.named("my_model", ...)'),
    (lambda: {"metrics": lambda a, b: 0.0}, 'vleak.named("my_metrics", ...)'),
    (lambda: {"model": vleak.named("my net", Net())}, "name is 'my net', expected a text without blanks"),
    (lambda: {"defenses": Thief()}, "Thief has the name 'dp' of another defense; set name = "),
    (lambda: {"defenses": [Shrink(strength=torch.ones(1))]}, "strength is Tensor, expected a number"),
    (lambda: {"defenses": [3]}, "expected names or instances of vleak.Defense, got int"),
    (lambda: {"attacks": [Impatient(), Hasty()]}, "two are called 'impatient'"),
    (lambda: {"attacks": [4]}, "expected names or instances of vleak.Attack, got int"),
    (lambda: {"data": CLIPS, "clips": 4}, "clips=4: the data holds 3 clips; ask for at most 3"),
    (lambda: {"data": CLIPS, "reference_frames": 1}, "reference_frames=1: the data holds 0"),
    (lambda: {"data": CLIPS[0]}, "expected floats of shape (clip, 3, frame, height, width)"),
    (lambda: {"data": CLIPS * 255}, r"expected values in \[0, 1\]"),
    (lambda: {"data": 7}, "data: expected a path, a ClipSet"),
    (lambda: {"clips": 0}, "clips=0: expected a whole number from 1"),
    (lambda: {"clips": 1.5}, "clips=1.5: expected a whole number, or None"),
    (lambda: {"workers": 0}, "workers=0: expected a whole number from 1"),
    (lambda: {"workers": "a"}, "workers='a': expected a whole number from 1"),
    (lambda: {"enhance": None}, "enhance=None: expected a name"),
    (lambda: {"labels": None}, "labels 'None'"),
    (lambda: {"device": ["cpu"]}, "device"),
    (lambda: {"reference_frames": 1.5}, "reference_frames=1.5: expected numbers from 0"),
    (lambda: {"defenses": Unmarked()}, "setting 'strength' is annotated, but the class is no dataclass"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_cannot_be_used_costs_one_line(place: int) -> None:
    arguments, message = REFUSED[place]
    with pytest.raises(InputError) as caught:
        vleak.evaluate(**{"defenses": "none", **arguments()})
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert caught.match(message.replace("(", r"\(").replace(")", r"\)"))
    assert "--" not in text
