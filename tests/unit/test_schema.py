"""The schema of results.json, and the step from the older one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from records import make_cell, make_run

import vleak
from vleak.results import FolderStore, read_run, summarise
from vleak.results.records import RunRecord
from vleak.results.schema import FILE, results_schema, write_schema

ROOT = Path(__file__).resolve().parents[2]
SEGMENTS: dict[str, Any] = {
    "segments": 4, "carrying": 4, "recovered": 1, "exact": 1, "baseline_exact": 0, "cosine": 0.5,
    "relative_error": 0.2, "in_order": None, "cosine_gain": 0.1, "identified": True, "rank": 1,
    "candidates": 12, "baselines": {"grey": {"cosine": 0.4}}, "best_baseline": "grey",
}  # fmt: skip


def a_run() -> RunRecord:
    """A run with every kind of attacker and both kinds of scores."""
    dp = {"name": "dp", "label": "dp σ=1", "epsilon": 5.0, "delta": 1e-5}
    return make_run(
        make_cell(0, id="a", attack={"name": "grey", "baseline": True, "adaptive": False},
                  knowledge={"defense": False}),
        make_cell(0, 3.0, True, id="b", attack={"defense_knowledge": "channel"},
                  scores={"segments": SEGMENTS, "baseline_identified": False}),
        make_cell(0, 1.0, id="c", defense=dp, knowledge={"defense": False},
                  attack={"name": "matching_blind", "counterpart": "matching", "adaptive": False}),
        make_cell(0, id="d", defense=dp, status="failed: why", scores=None, update=None,
                  attack={"adaptive": False}),
    )  # fmt: skip


def as_version_1(record: RunRecord) -> dict[str, Any]:
    """The same run as it was written before: other names, nothing that says which attackers are baselines."""
    content: dict[str, Any] = json.loads(json.dumps(record.content())) | {"schema_version": 1}
    content["versions"] = {name: content["environment"][name] for name in ("vleak", "torch")}
    del content["settings"]["metrics"]
    for cell in content["cells"]:
        cell["flags"] = [flag.replace("the best baseline", "the prior") for flag in cell["flags"]]
        for name in ("baseline", "counterpart", "defense_knowledge", "settings"):
            del cell["attack"][name]
        for scores in (cell["scores"], (cell["scores"] or {}).get("segments")):
            if scores is not None:
                scores.pop("metrics", None)
                for new, old in (("baselines", "null"), ("best_baseline", "best_null"),
                                 ("baseline_identified", "null_identified"),
                                 ("baseline_exact", "null_exact")):  # fmt: skip
                    if new in scores:
                        scores[old] = scores.pop(new)
    return content


def old_folder(folder: Path) -> Path:
    """A folder of version 1, whose header had no version and whose journal is lines of cells."""
    folder.mkdir()
    (folder / "reconstructions").mkdir()
    content = as_version_1(a_run())
    header = {key: content[key] for key in ("environment", "versions", "settings", "data", "models")}
    (folder / "run.json").write_text(json.dumps(header))
    (folder / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in content["cells"]))
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_the_committed_schema_is_that_of_the_records(tmp_path: Path) -> None:
    written = write_schema(tmp_path)
    assert written.read_bytes() == (ROOT / FILE).read_bytes(), "run python -m vleak.results.schema"


def test_what_is_written_has_the_fields_of_the_schema() -> None:
    schema = results_schema()
    content = a_run().content()
    assert set(content) == set(schema["properties"]) == set(schema["required"])
    cell = schema["$defs"]["Cell"]
    assert all(set(written) == set(cell["properties"]) for written in content["cells"])
    assert cell["additionalProperties"] is False


def test_a_run_of_version_1_is_read_as_that_of_today(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "old")
    assert read_run(folder) == a_run()
    assert summarise(read_run(folder)) == summarise(a_run())
    (folder / "results.json").unlink()
    from_journal = read_run(folder)
    assert from_journal.planned_cells is None
    assert [c.model_copy(update={"flags": ()}) for c in from_journal.cells] == list(a_run().cells)


def test_names_in_the_scores_of_version_1_are_baselines(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "old")
    content = json.loads((folder / "results.json").read_text())
    content["cells"][0]["attack"]["name"] = "held_still"
    content["cells"][1]["scores"]["null"] = {"held_still": {"psnr_db": 20.0, "ssim": 0.5}}
    (folder / "results.json").write_text(json.dumps(content))
    assert [cell.attack.baseline for cell in read_run(folder).cells] == [True, False, False, False]


def test_settings_that_version_1_did_not_always_have_are_what_then_ran(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "old")
    content = json.loads((folder / "results.json").read_text())
    for name in ("pipeline", "extractor", "reference_frames", "enhance"):
        del content["settings"][name]
    (folder / "results.json").write_text(json.dumps(content))
    settings = read_run(folder).settings
    assert (settings.pipeline, settings.reference_frames, settings.enhance) == ("raw", (0,), "none")


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_of_version_1_is_taken_up(tmp_path: Path, half: bool) -> None:
    folder = old_folder(tmp_path / "old")
    if half:  # a resumed run that was killed between journal and header: lines of 2 below a header of 1
        lines = [json.dumps(cell) + "\n" for cell in a_run().content()["cells"]]
        (folder / "cells.jsonl").write_text("".join(lines))
    run = a_run()
    header = vleak.results.RunHeader.model_validate({k: getattr(run, k) for k in dict(run) if k in (
        "environment", "settings", "data", "models")})  # fmt: skip
    with FolderStore(folder).open(header) as store:
        assert list(store.cells.values()) == list(run.cells)
    assert json.loads((folder / "run.json").read_text())["schema_version"] == 2
    shutil.rmtree(folder / "reconstructions")
    (folder / "results.json").unlink()
    assert [c.id for c in read_run(folder).cells] == ["a", "b", "c", "d"]
