"""Every built-in defense in one run: what its clients cannot use is named, all else is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import cells_of
from observers import Onlooker

from runs import tiny
from vleak.data import load_clips
from vleak.defenses import DEFENSES, parse_defenses
from vleak.errors import InputError
from vleak.evaluation import evaluate
from vleak.report import write_report
from vleak.results import RunRecord

ASKED = "mixup:alpha=0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("every") / "run"


@pytest.fixture(scope="module")
def record(folder: Path) -> RunRecord:
    """Quick run of all defenses, one of them also by its name, by an attack that costs nothing."""
    settings = tiny(
        clips=2,
        model="c3d_tiny:width=4,depth=1",
        defenses=("all", ASKED),
        attacks=(Onlooker(),),
        quick=True,
        enhance="classical",
        non_adaptive=1,
    )
    return evaluate(settings, folder, workers=1)


def test_every_built_in_defense_is_measured_or_named_with_a_reason(record: RunRecord) -> None:
    found = [cell for cell in cells_of(record, "onlooker") if cell.defense.text != ASKED]
    measured = {cell.defense.name for cell in found}
    refused = {text.partition(":")[0] for text in record.not_served}
    assert measured | refused == set(DEFENSES.builtin)
    assert not measured & refused
    assert refused == {"mixup", "secure_sum"}  # of one clip alone
    assert all(cell.ok for cell in found), [cell.status for cell in found if not cell.ok]
    assert all("\n" not in reason and len(reason) > 10 for reason in record.not_served.values())


def test_what_is_asked_for_by_name_is_not_left_out(record: RunRecord) -> None:
    asked = [cell for cell in cells_of(record, "onlooker", "mixup") if cell.defense.text == ASKED]
    assert len(asked) == 2
    assert not any(cell.ok for cell in asked)
    with pytest.raises(InputError, match="unknown defense 'alll'"):
        tiny(defenses=("alll",))


@pytest.mark.usefixtures("no_plots")
def test_a_quick_run_says_what_it_left_out(record: RunRecord, folder: Path) -> None:
    settings = record.settings
    assert (settings.quick, settings.enhance) == (True, "none")
    assert record.data.notes[-1].startswith("quick run: at most 8 clips")
    by_name: dict[str, set[str]] = {}
    for cell in cells_of(record, "onlooker"):
        by_name.setdefault(cell.defense.name, set()).add(cell.defense.text)
    assert max(map(len, by_name.values())) == 2
    noise = [strength.settings()["noise_multiplier"] for strength in parse_defenses("dp")]
    kept = {cell.defense.settings["noise_multiplier"] for cell in cells_of(record, "onlooker", "dp")}
    assert kept == {noise[0], noise[-1]}
    page = write_report(folder).read_text()
    assert all(text in page for text in record.not_served)


def test_a_quick_run_attacks_the_first_clips_of_a_whole_one() -> None:
    settings = tiny(
        clips=9, model="c3d_tiny:width=4,depth=1", defenses=("none",), attacks=(Onlooker(),), quick=True
    )
    quick = evaluate(settings).data
    assert (quick.clips, quick.names) == (8, load_clips("synthetic", clips=9, frames=4, size=16).names[:8])
