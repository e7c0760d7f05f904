import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vleak.attacks import flags as attack_flags
from vleak.errors import InputError
from vleak.metrics import score_clip
from vleak.report import read_array, write_report
from vleak.report.media import film_strip
from vleak.results import flags
from vleak.results.summary import summarise
from vleak.seeds import generator

# label, name, epsilon, bound, share of the truth in the rebuilt clip, bytes
DEFENSES = [
    ("none", "none", None, None, 0.96, 400_000),
    ("dp σ=0.1", "dp", 47.0, 1.0, 0.72, 400_000),
    ("dp σ=0.5", "dp", 10.0, 0.73, 0.12, 400_000),
    ("dp σ=1", "dp", 4.9, 0.35, 0.0, 400_000),
    ("prune 90 %", "prune", None, None, 0.85, 60_000),
    ("prune 99 %", "prune", None, None, 0.5, 6_200),
    ("compress sign", "compress", None, None, 0.66, 12_600),
]


def room(count: int, frames: int = 8, size: int = 32) -> Tensor:
    """Clips of one room with a lamp, a door and somebody who walks by."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    lamp = torch.exp(-((x - 0.75) ** 2 + (y - 0.2) ** 2) / 0.08)
    wall = torch.stack(
        [0.35 + 0.4 * lamp + 0.1 * y, 0.3 + 0.3 * lamp + 0.05 * x, 0.32 + 0.15 * lamp + 0.1 * x]
    )
    wall[:, size // 3 :, size // 8 : size // 3] *= 0.55
    clips = wall[None, :, None].repeat(count, 1, frames, 1, 1)
    for n in range(count):
        shirt = torch.rand(3, generator=generator("shirt", n))
        for t in range(frames):
            left = (0.1 + 0.06 * (n % 12)) * size + (1 if n % 2 else -1) * t * size / 40
            body = ((x * size - left).abs() < size / 9) & (y > 0.35 + 0.02 * (n % 5))
            head = (x * size - left) ** 2 + ((y - 0.27) * size) ** 2 < (size / 11) ** 2
            clips[n, :, t, body] = shirt[:, None]
            clips[n, :, t, head] = torch.tensor([0.85, 0.66, 0.53])[:, None]
    return (clips + 0.01 * torch.randn(clips.shape, generator=generator("grain"))).clamp(0, 1)


def fake_run(folder: Path, clips: int = 12, frames: int = 8, size: int = 32, defenses=DEFENSES) -> dict:
    """Write a run folder with real scores of made-up rebuilds, and return its results."""
    everything = room(clips + 12, frames, size)
    private, public = everything[:clips], everything[clips:]
    nulls = {"grey": torch.full_like(private[0], 0.5), "public_mean": public.mean(0)}
    (folder / "reconstructions").mkdir(parents=True)
    np.save(folder / "clips.npy", (private * 255).round().byte().numpy())
    cells = []
    for index in range(clips):
        for name, answer in nulls.items():
            cells.append(cell(folder, DEFENSES[0], name, index, answer, private, nulls))
        for defense in defenses:
            seed = generator(defense[0], index)
            blur = torch.nn.functional.avg_pool3d(private[index][None], (1, 3, 3), 1, (0, 1, 1))[0]
            noise = torch.randn(blur.shape, generator=seed) * 0.3 * (1 - defense[4]) ** 2
            answer = defense[4] * blur + (1 - defense[4]) * nulls["public_mean"] + noise
            cells.append(cell(folder, defense, "matching", index, answer.clamp(0, 1), private, nulls))
    results = {
        "schema_version": 1,
        "environment": {
            "vleak": "0.1.0",
            "torch": "2.13.0",
            "python": "3.11",
            "device": "cpu",
            "extension": "native",
        },
        "settings": {
            "data": "synthetic",
            "defenses": ["dp", "prune"],
            "frames": frames,
            "size": size,
            "seed": 0,
        },
        "data": {
            "name": "hallway",
            "clips": clips,
            "public_clips": 12,
            "public_source": "the same files, outside the attacked frames",
            "classes": ["walk", "fall"],
            "labels": [n % 2 for n in range(clips)],
            "names": [f"walk@{n}" for n in range(clips)],
            "notes": ["Frames were cropped to a square."],
        },
        "models": [
            {
                "name": "c3d_tiny",
                "training_state": "untrained",
                "parameters": 98_114,
                "train_accuracy": 0.5,
                "held_out_accuracy": 0.52,
                "chance": 0.5,
                "training_steps": 0,
            }
        ],
        "cells": cells,
    }
    store(folder, results)
    return results


def cell(
    folder: Path, defense: tuple, attack: str, index: int, answer: Tensor, private: Tensor, nulls: dict
) -> dict:
    label, name, epsilon, bound, share, size = defense
    identity = f"c3d_tiny.untrained/{label}/{attack}/walk@{index}"
    media = f"reconstructions/{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    np.save(folder / media, (answer * 255).round().byte().numpy())
    null = attack in nulls
    return {
        "id": identity,
        "media": media,
        "pipeline": "raw",
        "model": "c3d_tiny",
        "training_state": "untrained",
        "defense": {
            "name": name,
            "label": label,
            "settings": {},
            "epsilon": epsilon,
            "delta": 1e-5 if epsilon else None,
            "unit": "one clip",
            "adjacency": "add or remove",
        },
        "attack": {"name": attack, "adaptive": not null, "iterations": 150, "restarts": 1, "seconds": 3.1},
        "knowledge": {
            "labels": "inferred",
            "reference_frames": 0,
            "batch_size": 1,
            "defense": True,
            "public_clips": 12,
        },
        "clip": f"walk@{index}",
        "clip_index": index,
        "seed": index,
        "scores": {
            **score_clip(answer, private[index], index, private, nulls, nulls["public_mean"]),
            "label_correct": None if null else share > 0.2 or index % 2 == 0,
        },
        "certificate": {"kind": "identification", "bound": bound} if bound else None,
        "update": {"bytes": size, "cosine_to_undefended": min(1.0, share + 0.15), "changed_fraction": 1.0},
        "flags": ["still improving at the end"] if label == "dp σ=0.5" and index % 3 == 0 else [],
        "status": "ok",
    }


def store(folder: Path, results: dict) -> None:
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


class Page(HTMLParser):
    """Collects what a test asks of a page: attributes, text, and that every tag is closed in order."""

    VOID = frozenset({"meta", "br", "input", "img", "link", "hr", "use", "path"})

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
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
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def styles(self) -> str:
        return " ".join(value for _, key, value in self.attributes if key == "style")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("report") / "run"
    return folder, fake_run(folder)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run[0]))


@pytest.fixture
def small(tmp_path) -> tuple[Path, dict]:
    return tmp_path / "run", fake_run(tmp_path / "run", clips=2, frames=2, size=8, defenses=DEFENSES[:2])


def rendered(folder: Path, results: dict) -> Page:
    store(folder, results)
    return Page(write_report(folder))


# --- the page ---------------------------------------------------------------------------------------------


def test_every_tag_is_closed(page: Page):
    assert page.open == []
    assert page.source.startswith("<!doctype html>")


def test_the_page_loads_nothing_and_runs_nothing(page: Page):
    assert not [
        a for a in page.attributes if a[0] in ("script", "iframe", "link", "img", "object", "embed", "base")
    ]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for tag, key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (tag, key, value)
    urls = re.findall(r"url\(\s*['\"]?([^)]{0,24})", page.source)
    assert urls
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in urls)
    assert "@import" not in page.source
    policies = [value for tag, key, value in page.attributes if tag == "meta" and key == "content"]
    assert any("default-src 'none'" in policy for policy in policies)


def test_the_numbers_of_the_run_are_on_the_page(page: Page, run):
    for row in summarise(run[1]):
        assert f"{row.identified} of {row.n}" in page.text
        assert f"{row.psnr_gain_db.mean:+.1f}".replace("-", "−") in page.text
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


def test_pictures_stand_side_by_side_and_move(page: Page):
    styles = page.styles()
    tiles = 2 + len(DEFENSES)
    assert len(re.findall(r"--f\d+:url\(data:image/png", styles)) == 12 * tiles
    assert styles.count("background-image:var(--f1)") == 24  # the film and its strip of frames, for 12 truths
    assert styles.count("--n:8;") == 12 * tiles * 2 + 3  # and three films at the top
    assert "prefers-reduced-motion" in page.source
    assert "steps(var(--n), jump-none)" in page.source
    assert "not recognised" in page.text
    assert "recognisable" not in page.text
    assert "identified" not in page.text
    nulls = re.findall(r'<figure class="null[^"]*">.*?</figure>', page.source, flags=re.DOTALL)
    assert len(nulls) == 12
    assert not any("recognised" in tile or " hit" in tile for tile in nulls)


def test_plots_take_the_colours_of_the_page(page: Page):
    plots = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    assert len(plots) == 6  # against epsilon and by defense: identification, linkage and gain
    assert all("var(--s0)" in plot and "#0b0b0" not in plot and "#0a0a0" not in plot for plot in plots)
    assert "certificate allows" in plots[0]
    ids = re.findall(r' id="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_report(run):
    first = write_report(run[0]).read_bytes()
    assert write_report(run[0]).read_bytes() == first


def test_a_run_without_epsilon_is_plotted_by_defense(tmp_path):
    results = fake_run(tmp_path / "run", 2, 2, 8, [DEFENSES[0], DEFENSES[4]])
    page = rendered(tmp_path / "run", results)
    assert "Recognised clips by defense" in page.text
    assert "against ε" not in page.text


# --- what can be wrong with a run -------------------------------------------------------------------------


def test_hostile_names_stay_text(small):
    folder, results = small
    bad = '<script>alert("x")</script>$\\frac'
    for record in results["cells"]:
        record["clip"] += bad
        record["model"] = record["training_state"] = bad
        record["defense"]["label"] = bad if record["defense"]["name"] == "dp" else record["defense"]["label"]
        record["flags"] = [bad]
    results["cells"][-1]["status"] = f"failed: {bad}"
    results["data"] = {"name": bad, "notes": [bad], "classes": [bad], "public_source": bad}
    results["settings"] = {bad: bad}
    results["environment"] = {bad: [bad, {bad: bad}]}
    results["models"] = [{"name": bad, "parameters": bad, "training_state": bad}]
    page = rendered(folder, results)
    assert not [a for a in page.attributes if a[0] == "script"]
    assert "<script" not in page.source
    assert bad in page.text
    assert page.open == []


def test_one_clip_is_shown_without_an_interval(tmp_path):
    page = rendered(tmp_path / "run", fake_run(tmp_path / "run", clips=1, frames=1, size=8))
    assert "1 clip; an interval needs at least 8" in page.text or "needs at least 8" in page.text
    assert (
        "recognised"
        not in page.text.replace("is recognised in it", "").split("See for yourself")[1].split("Health")[0]
    )


def test_a_run_in_which_everything_failed(small):
    folder, results = small
    for record in results["cells"]:
        record.update(status="failed: out of memory", scores=None, update=None, certificate=None, media=None)
    page = rendered(folder, results)
    assert "out of memory" in page.text
    assert "Without defense no attack gave a result" in page.text


def test_a_failed_cell_says_so_where_its_picture_would_be(small):
    folder, results = small
    results["cells"][2].update(status="failed: NaN in the step", scores=None, media=None)
    page = rendered(folder, results)
    assert page.text.count("failed: NaN in the step") == 2  # the tile and the table of cells
    assert "1 failed" in page.text


def test_null_values_become_dashes(small):
    folder, results = small
    for record in results["cells"]:
        record["scores"] |= {
            "motion_psnr_db": None,
            "motion_ssim": None,
            "label_correct": None,
            "ssim_gain": None,
        }
        record["update"] = {"bytes": None, "cosine_to_undefended": None}
    page = rendered(folder, results)
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split("health of the attacks")[0]


def test_defenses_that_share_a_label_have_a_picture_each(small):
    folder, results = small
    twins = []
    for record in results["cells"]:
        if record["defense"]["name"] == "dp":
            record["defense"]["settings"] = {"bucket": 64}
            twins.append({**record, "defense": {**record["defense"], "settings": {"bucket": 4096}}})
            twins[-1]["scores"] = {**record["scores"], "psnr_gain_db": -33.3}
    results["cells"] += twins
    page = rendered(folder, results)
    for label, gain in (("bucket=64", "−33.3"), ("bucket=4096", "−33.3")):
        tiles = re.findall(rf"<b>dp σ=0.1, {label}</b>\s*<span>(\S+) dB", page.source)
        assert len(tiles) == 2
        assert all((tile == gain) == (label == "bucket=4096") for tile in tiles)
        assert f"<td>dp σ=0.1, {label}</td>" in page.source  # the table of cells


def test_a_stopped_run_says_so_first(small):
    folder, results = small
    page = rendered(folder, results | {"planned_cells": 56})
    first = re.search(r'<ul class="headline">\s*<li class="(\w+)">([^<]*)<', page.source)
    assert first.groups() == (
        "unclear",
        f"{len(results['cells'])} of 56 cells finished; rows may be missing.",
    )
    assert "rows may be missing" not in rendered(folder, results | {"planned_cells": 8}).text


def test_one_clip_and_one_cell_are_singular(tmp_path):
    results = fake_run(tmp_path / "run", clips=1, frames=2, size=8, defenses=DEFENSES[:1])
    results["cells"] = results["cells"][-1:]
    assert "1 private clip · 1 model · 1 cell " in rendered(tmp_path / "run", results).text


def test_epsilon_is_printed_as_everywhere(small):
    folder, results = small
    for record in results["cells"]:
        if record["defense"]["name"] == "dp":
            record["defense"]["epsilon"] = 498_765.0
    text = rendered(folder, results).text.replace("\u00a0", " ")
    assert text.count("ε 5.0e5") == 2  # the headline and the table
    assert "498" not in text


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
    page = rendered(tmp_path, {"schema_version": 1, "cells": []})
    assert "says nothing about leakage" in page.text


def test_missing_and_broken_media_are_shown_as_missing(small):
    folder, results = small
    (folder / "clips.npy").unlink()
    (folder / results["cells"][2]["media"]).write_bytes(b"no array")
    results["cells"][3]["media"] = "../../outside.npy"
    page = rendered(folder, results)
    assert page.text.count("'clips.npy' is missing") == 2
    assert "is not a readable .npy file" in page.text
    assert "lies outside the run folder" in page.text


def test_only_the_first_clips_are_shown_and_the_page_says_so(tmp_path):
    results = fake_run(tmp_path / "run", clips=14, frames=2, size=8, defenses=DEFENSES[:1])
    page = rendered(tmp_path / "run", results)
    assert "the first 12 of 14 clips" in page.text
    assert page.text.count("every frame") == 12


def test_hundreds_of_cells_of_several_models_fit(tmp_path):
    folder = tmp_path / "run"
    results = fake_run(folder, clips=3, frames=2, size=8)
    cells = results["cells"]
    results["cells"] = [
        {**record, "model": f"model{n}", "id": f"{n}{record['id']}"} for n in range(60) for record in cells
    ]
    page = rendered(folder, results)
    assert "The first 1500 are listed" in page.text
    assert page.text.count("every frame") <= 12
    assert len(page.source) < 20_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"schema_version": 9, "cells": []}', "schema version 9"),
        ('{"schema_version": 1, "cells": [{}]}', "lacks 'attack'"),
    ],
)
def test_results_that_cannot_be_read_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# --- media ------------------------------------------------------------------------------------------------


def test_read_array_gives_what_was_saved(tmp_path):
    clip = torch.randint(0, 256, (3, 2, 4, 5), generator=generator("bytes"), dtype=torch.uint8).numpy()
    np.save(tmp_path / "a.npy", clip)
    assert np.array_equal(read_array(tmp_path, "a.npy"), clip)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 4, 5), np.uint8))
    raw = (tmp_path / "a.npy").read_bytes()
    forged = raw.replace(b"(3, 2, 4, 5), }      ", b"(3, 2, 4, 5000000), }"[:21])
    assert forged != raw
    assert len(forged) == len(raw)
    (tmp_path / "a.npy").write_bytes(forged)
    with pytest.raises(InputError, match="claims 120000000 bytes of data and has 120"):
        read_array(tmp_path, "a.npy")
    (tmp_path / "a.npy").write_bytes(raw[:-1])
    with pytest.raises(InputError, match="claims 120 bytes of data and has 119"):
        read_array(tmp_path, "a.npy")


def test_pickles_other_types_and_escapes_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="expected bytes"):
        read_array(tmp_path, "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((3, 2, 4, 5), np.float32))
    with pytest.raises(InputError, match="expected bytes"):
        read_array(tmp_path, "b.npy")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link.npy").symlink_to(tmp_path / "b.npy")
    for name in ("../b.npy", str(tmp_path / "b.npy"), "link.npy"):
        with pytest.raises(InputError, match="outside the run folder"):
            read_array(tmp_path / "run", name)
    for name in ("gone.npy", "nul\0.npy", ""):
        with pytest.raises(InputError):
            read_array(tmp_path / "run", name)


def test_a_film_strip_holds_the_frames_in_order():
    import base64
    import io

    from PIL import Image

    clip = torch.randint(0, 256, (3, 5, 6, 7), generator=generator("film"), dtype=torch.uint8).numpy()
    strip = film_strip(clip)
    assert (strip.frames, strip.width, strip.height) == (5, 7, 6)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip.uri.split(",")[1]))))
    assert np.array_equal(image, np.concatenate(list(clip.transpose(1, 2, 3, 0)), axis=1))


def test_large_and_long_clips_are_shrunk_and_grey_ones_stay_grey():
    strip = film_strip(np.zeros((1, 40, 200, 400), np.uint8))
    assert (strip.frames, strip.width, strip.height) == (14, 96, 48)
