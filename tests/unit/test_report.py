"""Report of a run: what stands on its page, and what a damaged run does to it."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from planted_run import DEFENSES, header, plant_run, store

from vleak.attacks import flags as attack_flags
from vleak.errors import InputError
from vleak.report import gallery, write_report
from vleak.report.answer import answer, tally
from vleak.results import flags, read_run, summarise
from vleak.results.rows import Figure


class Page(HTMLParser):
    """Collects what a test asks of a page: attributes, text, and that every tag is closed in order."""

    VOID = frozenset({"meta", "br", "input", "img", "link", "hr", "use", "path"})

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    def styles(self) -> str:
        return " ".join(value for _, key, value in self.attributes if key == "style")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report") / "run"
    return folder, plant_run(folder, size=16)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run[0]))


@pytest.fixture
def small(tmp_path) -> tuple[Path, dict[str, Any]]:
    return tmp_path / "run", plant_run(tmp_path / "run", clips=2, frames=2, size=8, defenses=DEFENSES[:2])


def rendered(folder: Path, results: dict[str, Any]) -> Page:
    store(folder, results)
    return Page(write_report(folder))


# --- the page ---------------------------------------------------------------------------------------------


def test_every_tag_is_closed(page: Page):
    assert page.open == []
    assert page.source.startswith("<!doctype html>")


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page: Page):
    assert not [a for a in page.attributes if a[0] in ("iframe", "link", "img", "object", "embed", "base")]
    assert [a for a in page.attributes if a[0] == "script"] == [
        ("script", "type", "application/json"),
        ("script", "id", "cells-data"),
    ]
    data, code = page.scripts
    json.loads(data)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (tag, key, value)
    urls = re.findall(r"url\(\s*['\"]?([^)]{0,24})", page.source)
    assert urls
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in urls)
    assert "@import" not in page.source
    policies = [value for tag, key, value in page.attributes if tag == "meta" and key == "content"]
    assert any(
        "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy for policy in policies
    )
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML)\b", code)


def test_the_numbers_of_the_run_are_on_the_page(page: Page, run):
    for row in summarise(read_run(run[0])):
        assert f"{row.identified} of {row.n}" in page.text
        gain = round(row.psnr_gain_db.mean, 1)
        assert (f"{gain:+.1f}".replace("-", "−") if gain else "0.0") in page.text
        assert f"{row.psnr_db:.1f}" in page.text
        assert row.defense in page.text
    for text in (
        "98,114 parameters",
        "52 % held out",
        "ε 4.9",
        "allowed 35 %",
        "400 kB",
        "×0.15",
        "hallway",
        "walk, fall",
    ):
        assert text in page.text
    assert "Without defense 12 of 12 clips are recognised" in page.text
    for text in (
        "That is absence of evidence",
        "zero is a conservative line",
        "not their labels, unless granted",
    ):
        assert text in page.text
    assert "still improving at the end" in page.text
    assert "4 cells" in page.text
    assert "Frames were cropped to a square." in page.text


def headline_tones(page: Page) -> list[str]:
    return re.findall(r'<li class="(\w+)">', page.source)


def test_the_headline_is_coloured_by_what_it_says(page: Page):
    assert headline_tones(page)[:2] == ["plain", "leaks"]
    assert headline_tones(page)[-1] == "cost"
    assert "alert" not in headline_tones(page)


@pytest.mark.usefixtures("no_plots")
def test_a_broken_bound_stands_first(small):
    folder, results = small
    for record in results["cells"]:
        if record["defense"]["name"] == "dp":
            record["certificate"] = {"kind": "identification", "bound": 1e-5}
    page = rendered(folder, results)
    assert headline_tones(page)[0] == "alert"
    assert "BOUND BROKEN" in page.text
    assert page.source.count('<strong class="alarm">') == 1


def test_pictures_stand_side_by_side_and_move(page: Page):
    styles = page.styles()
    pictures = 2 + len(DEFENSES)
    assert len(re.findall(r"--f\d+:url\(data:image/png", styles)) == 12 * pictures
    assert styles.count("background-image:var(--f1)") == 24  # the film and its strip of frames, for 12 truths
    assert styles.count("--n:8;") == 12 * pictures * 2 + 3  # and three films at the top
    assert "prefers-reduced-motion" in page.source
    assert "steps(var(--n), jump-none)" in page.source
    assert "not recognised" in page.text
    assert "recognisable" not in page.text
    assert "identified" not in page.text
    baselines = re.findall(r'<figure class="baseline[^"]*"[^>]*>.*?</figure>', page.source, flags=re.DOTALL)
    assert len(baselines) == 12
    assert not any("recognised" in figure for figure in baselines)


def test_plots_take_the_colours_of_the_page(page: Page):
    plots = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    # Frontier; between guess and proof; against epsilon and by defense: identification and gain, no linkage.
    assert len(plots) == 6
    assert all("var(--s0)" in plot and "#0b0b0" not in plot and "#0a0a0" not in plot for plot in plots)
    assert "certificate allows" in plots[2]
    assert (
        "No other defense leaks less and sends as little as those on the line: dp σ=1, prune 99 %."
        in page.text
    )
    assert all(plot.startswith('<svg role="img" aria-label="') for plot in plots)
    ids = re.findall(r' id="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_report(small):
    first = write_report(small[0]).read_bytes()
    assert write_report(small[0]).read_bytes() == first


def test_a_run_without_epsilon_is_plotted_by_defense(tmp_path):
    results = plant_run(tmp_path / "run", clips=2, frames=2, size=8, defenses=(DEFENSES[0], DEFENSES[4]))
    page = rendered(tmp_path / "run", results)
    assert "Recognised clips by defense" in page.text
    assert "against ε" not in page.text


@pytest.mark.usefixtures("no_plots")
def test_pictures_of_clips_that_are_not_synthetic_stand_on_the_page_when_asked_for(small):
    folder, results = small
    drawn, files = "other seeds", "other files"
    for data, public, asked, shown in (
        ("synthetic", drawn, None, True), ("synthetic:size=8", drawn, None, True),
        ("synthetic", drawn, False, False), ("videos/synthetic", files, None, False),
        ("videos", files, None, False), ("videos", files, True, True),
        ("synthetic", files, None, False), ("synthetic", "tensors", None, False),  # handed over by that name
    ):  # fmt: skip
        results["settings"]["data"] = data
        results["data"]["public_source"] = public
        store(folder, results)
        page = Page(write_report(folder, pictures=asked))
        assert ("data:image" in page.source) == shown
        assert ('class="film' in page.source) == shown
        assert ("Pictures are left out" in page.text) == (not shown)
        if shown:
            assert "On this page: 6 of 8 stored reconstructions" in page.text


@pytest.mark.parametrize(
    ("broken", "undefended", "defended", "text"),
    [(False, "leaks", "leaks", "1 of 1 defense still leaks"),
     (False, "leaks", "nothing_found", "No leak was found behind 1 defense"),
     (False, "nothing_found", "nothing_found", "No picture is rebuilt even without defense"),
     (False, "nothing_found", "leaks", "1 of 1 defense still leaks"),
     (False, "too_few_clips", "too_few_clips", "Too few clips to say"),
     (False, "no_result", "no_result", "No attack gave a result"),
     (True, "leaks", "nothing_found", "A proof does not hold")],
)  # fmt: skip
def test_the_first_line_says_what_leaks(run, broken, undefended, defended, text):
    rows = [row for row in summarise(read_run(run[0])) if row.defense in ("none", "prune 90 %")]
    rows = [
        replace(
            row,
            verdict=undefended if row.undefended else defended,
            figures=(Figure("recognised", 1, 1, 0.0, 0.0, broken=broken),),
        )
        for row in rows
        if not row.baseline
    ]
    assert answer(rows) == text
    assert sum(count for *_, count in tally(rows)) == 1


# --- what can be wrong with a run -------------------------------------------------------------------------


def test_hostile_names_stay_text(small):
    folder, results = small
    bad = '<script>alert("x")</script>$\\frac'
    for record in results["cells"]:
        record["clip"] += bad
        record["model"] = record["training_state"] = bad
        record["defense"]["label"] = bad if record["defense"]["name"] == "dp" else record["defense"]["label"]
        record["flags"] = [bad]
        record["scores"]["metrics"] = {bad: 1.0}
    results["cells"][-1] |= {"status": f"failed: {bad}", "scores": None}
    for part in ("environment", "settings", "data"):
        results[part] |= {name: bad for name, value in results[part].items() if isinstance(value, str)}
    results["settings"] |= {"labels": "inferred", "data": "synthetic"}
    results["data"]["public_source"] = "other seeds"
    results["data"] |= {"notes": [bad], "classes": [bad]}
    results["models"][0] |= {"name": bad, "training_state": bad}
    page = rendered(folder, results)
    assert page.source.count("<script") == page.source.count("</script") == 2  # the data and the code
    assert bad in json.loads(page.scripts[0])["texts"]
    assert bad in page.text
    assert page.open == []


@pytest.mark.usefixtures("no_plots")
def test_one_clip_is_shown_without_an_interval(tmp_path):
    page = rendered(tmp_path / "run", plant_run(tmp_path / "run", clips=1, frames=1, size=8))
    assert ("small", "title", "1 clip; an interval needs at least 8") in page.attributes
    assert "fewer than 8 clips give none" in page.text
    pictures = page.text.split("See for yourself")[1].split("Every attack, every defense")[0]
    assert "recognised" not in pictures.replace("is recognised in it", "")


@pytest.mark.usefixtures("no_plots")
def test_a_run_in_which_everything_failed(small):
    folder, results = small
    for record in results["cells"]:
        record.update(status="failed: out of memory", scores=None, update=None, certificate=None, media=None)
    page = rendered(folder, results)
    assert "out of memory" in page.text
    assert "Without defense no attack gave a result" in page.text


@pytest.mark.usefixtures("no_plots")
def test_a_failed_cell_says_so_where_its_picture_would_be(small):
    folder, results = small
    results["cells"][2].update(status="failed: NaN in the step", scores=None, media=None)
    page = rendered(folder, results)
    assert page.text.count("failed: NaN in the step") == 1  # the tile
    assert "NaN in the step" in json.loads(page.scripts[0])["texts"]
    assert "1 failed" in page.text


@pytest.mark.usefixtures("no_plots")
def test_values_that_were_not_measured_become_dashes(small):
    folder, results = small
    for record in results["cells"]:
        record["scores"] |= dict.fromkeys(("motion_psnr_db", "label_correct", "ssim_gain", "ssim"))
        record["update"] = None
    page = rendered(folder, results)
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split("flags of the attacks")[0]


@pytest.mark.usefixtures("no_plots")
def test_defenses_that_share_a_label_have_a_picture_each(small):
    folder, results = small
    twins = []
    for record in results["cells"]:
        if record["defense"]["name"] == "dp":
            record["defense"]["settings"] = {"bucket": 64}
            twins.append({**record, "defense": {**record["defense"], "settings": {"bucket": 4096}}})
            twins[-1]["id"] += "4096"
            twins[-1]["scores"] = {**record["scores"], "psnr_gain_db": -33.3}
    results["cells"] += twins
    page = rendered(folder, results)
    for label, gain in (("bucket=64", "−33.3"), ("bucket=4096", "−33.3")):
        gains = re.findall(rf"<b>dp σ=0.1, {label}</b>\s*<span>(\S+) dB", page.source)
        assert len(gains) == 2
        assert all((shown == gain) == (label == "bucket=4096") for shown in gains)
        assert f"dp σ=0.1, {label}" in json.loads(page.scripts[0])["texts"]  # the table of cells


@pytest.mark.usefixtures("no_plots")
def test_a_stopped_run_says_so_first(small):
    folder, results = small
    page = rendered(folder, results | {"planned_cells": 56})
    first = re.search(r'<ul class="headline">\s*<li class="(\w+)">([^<]*)<', page.source)
    assert first.groups() == (
        "unclear",
        f"{len(results['cells'])} of 56 cells finished; rows may be missing.",
    )
    assert "rows may be missing" not in rendered(folder, results | {"planned_cells": 8}).text


@pytest.mark.usefixtures("no_plots")
def test_one_clip_and_one_cell_are_singular(tmp_path):
    results = plant_run(tmp_path / "run", clips=1, frames=2, size=8, defenses=DEFENSES[:1])
    results["cells"] = results["cells"][-1:]
    assert "1 private clip · 1 model · 1 cell " in rendered(tmp_path / "run", results).text


@pytest.mark.usefixtures("no_plots")
def test_epsilon_is_printed_as_everywhere(small):
    folder, results = small
    for record in results["cells"]:
        if record["defense"]["name"] == "dp":
            record["defense"]["epsilon"] = 498_765.0
    text = rendered(folder, results).text.replace("\u00a0", " ")
    assert text.count("ε 5.0e5") == 2  # the headline and the table
    assert "498" not in text


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "flag",
    [flags.NO_BETTER, flags.FAILS_UNDEFENDED, flags.BEATS_UNDEFENDED, flags.WEAKER_BEATS,
     attack_flags.NEAR_ZERO, attack_flags.NOT_FALLING, attack_flags.STILL_FALLING, attack_flags.NOT_A_NUMBER],
)  # fmt: skip
def test_every_flag_has_its_meaning(small, flag):
    folder, results = small
    results["cells"][2]["flags"] = [flag]
    text = rendered(folder, results).text
    assert f"⚑ {flag} 1 cell" in text
    assert "raised by the attack" not in text


def test_an_empty_run_is_a_page(tmp_path):
    page = rendered(tmp_path, header(2, 2, 8) | {"planned_cells": 0, "cells": []})
    assert "says nothing about leakage" in page.text


@pytest.mark.usefixtures("no_plots")
def test_metrics_from_outside_have_columns_of_their_own(small):
    folder, results = small
    for record in results["cells"]:
        record["scores"]["metrics"] = {"sharpness": 0.123}
    page = rendered(folder, results)
    assert page.text.count("sharpness") == 2  # the column and the legend
    assert page.text.count("0.12") == 4  # grey, public_mean, none, dp


@pytest.mark.usefixtures("no_plots")
def test_a_row_says_how_the_attacker_knew_the_defense(small):
    folder, results = small
    for knowledge, adaptive, text in (
        ("channel", True, ""), ("simulated", True, "defense simulated"), ("none", False, "not adaptive"),
    ):  # fmt: skip
        for record in results["cells"]:
            if record["defense"]["name"] == "dp":
                record["attack"] |= {"defense_knowledge": knowledge, "adaptive": adaptive}
        shown = {t for t in ("defense simulated", "not adaptive") if t in rendered(folder, results).text}
        assert shown == ({text} if text else set())


@pytest.mark.usefixtures("no_plots")
def test_missing_and_broken_media_are_shown_as_missing(small):
    folder, results = small
    (folder / "clips.npy").unlink()
    (folder / results["cells"][2]["media"]).write_bytes(b"no array")
    results["cells"][3]["media"] = "../../outside.npy"
    page = rendered(folder, results)
    assert page.text.count("'clips.npy' is missing") == 2
    assert "is not a readable .npy file" in page.text
    assert "lies outside the run folder" in page.text


@pytest.mark.usefixtures("no_plots")
def test_only_the_first_clips_are_shown_and_the_page_says_so(tmp_path):
    results = plant_run(tmp_path / "run", clips=14, frames=2, size=8, defenses=DEFENSES[:1])
    page = rendered(tmp_path / "run", results)
    assert "the first 12 of 14 clips" in page.text
    assert page.text.count("every frame") == 12


@pytest.mark.usefixtures("no_plots")
def test_pictures_keep_to_their_bytes(tmp_path, monkeypatch):
    results = plant_run(tmp_path / "run", clips=4, frames=2, size=8, defenses=DEFENSES[:2])
    whole = rendered(tmp_path / "run", results)
    size = sum(map(len, re.findall(r"data:image/png[^)]*", whole.source))) // 4  # of a clip, roughly
    monkeypatch.setattr(gallery, "MAX_BYTES", int(2.5 * size))
    page = rendered(tmp_path / "run", results)
    assert page.text.count("every frame") == 2
    assert "the first 2 of 4 clips" in page.text
    assert "On this page: 6 of 16 stored reconstructions" in page.text


@pytest.mark.usefixtures("no_plots")
def test_hundreds_of_cells_of_several_models_fit(tmp_path):
    folder = tmp_path / "run"
    results = plant_run(folder, clips=3, frames=2, size=8)
    cells = results["cells"]
    results["cells"] = [
        {**record, "model": f"model{n}", "id": f"{n}{record['id']}"} for n in range(60) for record in cells
    ]
    page = rendered(folder, results)
    assert "1,620 cells, of which the first 50 are listed" in page.text
    assert len(json.loads(page.scripts[0])["cells"]) == len(results["cells"])
    assert page.text.count("every frame") <= 12
    assert len(page.source) < 20_000_000


def test_results_that_cannot_be_read_leave_no_report(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 9, "cells": []}', encoding="utf-8")
    with pytest.raises(InputError, match="9"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
