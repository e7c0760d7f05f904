"""The page of a study: each claim with its verdict, what was measured, and pictures to judge by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vleak.errors import InputError
from vleak.files import write_atomic
from vleak.report.figures import Plot, draw_curve
from vleak.report.gallery import Scene, Tile
from vleak.report.media import film_strip, read_array
from vleak.report.page import environment, resource
from vleak.results.folder import read_run
from vleak.results.records import SCHEMA_VERSION
from vleak.results.statistics import Interval
from vleak.study.study import attacked, folder

MAX_SCENES = 4
_TONES = {"holds": "safe", "does not hold": "leaks", "mixed": "unclear"}


@dataclass(frozen=True)
class Shot:
    """Which picture of a run is shown: what its cells must have, and whether the enhanced one."""

    title: str
    run: str
    defense: str = "none"
    references: int = 0
    enhanced: bool = False


def write_study(out: Path) -> Path:
    """Write ``study.html`` into the folder of a finished study: one file, no script, nothing fetched.

    Raises:
        InputError: no study, no JSON in its file, or another schema version.
        VleakError: the page cannot be written.
    """
    study = _read(out / "study.json")
    path = out / "study.html"
    claims = [
        {
            **claim,
            "tone": _TONES.get(claim["verdict"], "unclear"),
            "rows": [_with_interval(row) for row in claim["comparisons"]],
            "spans": {
                unit: _span([row for row in claim["comparisons"] if row["unit"] == unit])
                for unit in {row["unit"] for row in claim["comparisons"]}
            },
            "plots": _plots(claim),
            "scenes": _scenes(out, study, _shots(claim["key"], study)),
        }
        for claim in study["claims"]
    ]
    page = environment().get_template("study.html")
    write_atomic(path, page.render(study=study, claims=claims, css=Markup(resource("report.css"))))
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a study: {error}; run `vleak study` first") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path} is no study of schema version {SCHEMA_VERSION}; run `vleak study` again")
    return content


def _with_interval(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["interval"]
    return {**row, "of": Interval(row["effect"], low, high, row["clips"])}


def _span(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    ends = [end for row in rows for end in (row["effect"], *row["interval"]) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (-1.0, 1.0)


def _plots(claim: Mapping[str, Any]) -> list[Plot]:
    return [
        draw_curve(
            axis,
            [(x, Interval(mean, low, high, 0)) for x, mean, low, high in points],
            claim["unit_of_points"],
            logarithmic=axis in ("parameters", "width"),
        )
        for axis, points in claim["points"].items()
    ]


def _shots(key: str, study: Mapping[str, Any]) -> list[Shot]:
    """Return what is shown of a claim; of runs that the study did not make, nothing is."""
    runs = study["runs"]
    compressed = [label for label in study["compressed"] if label != "none"]
    shots = {
        "extractors": [
            Shot("raw frames", "raw"),
            *(Shot(run.replace(", ", " · "), run) for run in study["strongest"]),
        ],
        "complexity": [
            Shot(run.removeprefix("raw, "), run)
            for run in runs
            if run.startswith(("raw, width", "raw, depth"))
        ],
        "enhancement": [
            Shot("as rebuilt", "raw"),
            Shot("classical", "raw", enhanced=True),
            Shot("network", "raw, network", enhanced=True),
        ],
        "references": [
            Shot("no frame", "raw"),
            Shot("one frame", "raw", references=1),
            Shot("four frames", "raw", references=4),
        ],
        "compression": [
            Shot("plain", "compressed"),
            *(Shot(label, "compressed", defense=label) for label in compressed),
        ],
    }
    return [shot for shot in shots.get(key, []) if shot.run in runs]


def _scenes(out: Path, study: Mapping[str, Any], shots: Sequence[Shot]) -> list[Scene]:
    """Return the first clips of the study, with the private one and every shot; never chosen by scores."""
    if not shots:
        return []
    results = {shot.run: read_run(out / folder(shot.run)).model_dump(mode="json") for shot in shots}
    # A quick study asks less: what was not run needs no empty tile.
    shots = [s for s in shots if attacked(results[s.run], defense=s.defense, references=s.references)]
    names = study["data"]["names"][:MAX_SCENES]
    return [
        Scene(
            name,
            (
                _truth(out / folder(shots[0].run), index),
                *(_tile(out, results[shot.run], shot, name) for shot in shots),
            ),
        )
        for index, name in enumerate(names)
    ]


def _truth(run: Path, index: int) -> Tile:
    try:
        return Tile("private clip", "truth", film_strip(read_array(run, "clips.npy")[index]))
    except InputError as error:
        return Tile("private clip", "truth", None, missing=str(error))


def _tile(out: Path, results: Mapping[str, Any], shot: Shot, clip: str) -> Tile:
    """Return a shot of a clip by the attack that gained most there on the whole."""
    cells = attacked(results, defense=shot.defense, references=shot.references)
    gains: dict[str, list[float]] = {}
    for cell in cells:
        gains.setdefault(cell["attack"]["name"], []).append(cell["scores"]["psnr_gain_db"])
    if not gains:
        return Tile(shot.title, "attack", None, missing="no result")
    best = max(gains, key=lambda name: sum(gains[name]) / len(gains[name]))
    found = [c for c in cells if c["attack"]["name"] == best and c["clip"] == clip]
    if not found:
        return Tile(shot.title, "attack", None, missing="not run on this clip")
    cell = found[0]
    scores = cell["enhanced"]["after"] if shot.enhanced else cell["scores"]
    media = cell["media_enhanced" if shot.enhanced else "media"]
    try:
        strip = film_strip(read_array(out / folder(shot.run), str(media)))
    except InputError as error:
        return Tile(shot.title, "attack", None, missing=str(error))
    return Tile(
        shot.title,
        "attack",
        strip,
        gain_db=scores["psnr_gain_db"],
        recognised=bool(scores["identified"]),
    )
