"""Every kind of page in headless Chromium: accessible, in its frame, usable, and nothing planted ran."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from audits import clips as audit_clips
from audits import compared, quick, sent, with_norm
from chromium import View, chromium, dom, look, printed
from entries import PROTOCOL, entry, figures
from nights import run_of, shifted
from planted_run import DEFENSES, plant_run, store
from planted_study import QUICK, PlantedRuns
from torch import nn

from vleak.regression import make_baseline, read_history, regress
from vleak.report import (
    board_page,
    write_audit,
    write_audits,
    write_comparison,
    write_night,
    write_report,
    write_study,
)
from vleak.results import RunRecord, read_run
from vleak.study import run as study_run
from vleak.study import run_study
from vleak.suite import leaderboard

pytestmark = pytest.mark.slow

BAD = """"><script>window.planted = 1</script><img src=x onerror="window.planted = 2">'"""
"""Text that runs where it is not escaped: as markup, in an attribute, in a script."""
BREAKOUT = "</script><script>window.planted = 3</script>"

AXE = """
  const found = await axe.run(document, {resultTypes: ["violations"], iframes: false});
  const wide = [...document.querySelectorAll("body *")].filter((one) =>
    one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, .hidden, svg"));
  return {
    violations: found.violations.map((one) =>
      `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" | ")}`),
    passes: found.passes.length,
    sideways: document.documentElement.scrollWidth > innerWidth
      ? [innerWidth, document.documentElement.scrollWidth, ...wide.slice(0, 4).map((one) => one.outerHTML.slice(0, 120))]
      : [],
    planted: window.planted ?? null,
  };
"""  # fmt: skip  # noqa: E501


def hostile_run(folder: Path) -> Path:
    """Write a run with something planted into every text that comes from outside."""
    results = plant_run(folder, clips=9, frames=4, size=16, defenses=DEFENSES[:4])
    for number, record in enumerate(results["cells"]):
        text = BAD if number % 2 else BREAKOUT
        record["clip"] += text
        record["id"] += text
        record["model"] = record["training_state"] = BAD
        if record["defense"]["name"] == "dp":
            record["defense"]["label"] += BAD
            record["defense"]["settings"] = {BAD: BREAKOUT}
        record["flags"] = [text]
        record["attack"]["method"] = text
        record["scores"]["metrics"] = {BAD: 1.0}
        record["scores"]["linked"] = number % 3 == 0
    results["cells"][-1] |= {"status": f"failed: {BREAKOUT}", "scores": None}
    results["cells"][-2]["media"] = f"reconstructions/{BAD}"
    for part in ("environment", "settings", "data"):
        results[part] |= {name: BAD for name, value in results[part].items() if isinstance(value, str)}
    results["settings"] |= {"labels": "inferred", "data": "synthetic"}
    results["data"] |= {
        "public_source": "other seeds",
        "notes": [BREAKOUT],
        "classes": [BAD],
        "names": [f"walk@{n}{BAD}" for n in range(9)],
    }
    results["models"][0] |= {"name": BAD, "training_state": BAD, "notes": [BREAKOUT]}
    results["not_served"] = {BAD: BREAKOUT}
    store(folder, results)
    return folder


def plain_run(folder: Path) -> Path:
    plant_run(folder, clips=12, frames=4, size=16)
    return folder


def comparison_page(folder: Path) -> str:
    first, second = plain_run(folder / "first"), hostile_run(folder / "second")
    runs = (read_run(first), read_run(second))
    return write_comparison((first, second), runs).read_text(encoding="utf-8")


def audit_page(folder: Path) -> str:
    net = with_norm()
    net.add_module(f"{BAD}".replace(".", ""), nn.Linear(1, 1))
    made = quick(net, sent(net).tensors, truth=audit_clips().clips[0], defenses=("prune:fraction=0.9",))
    return write_audit(made, folder / "audit.html", pictures=True).read_text(encoding="utf-8")


def audits_page(folder: Path) -> str:
    net = with_norm()
    made = [compared(net, sent(net, clip).tensors) for clip in (0, 1)]
    index = write_audits(dict(zip((BAD, "second.npz"), made, strict=True)), folder / "pages")
    return index.read_text(encoding="utf-8")


def night_page(folder: Path) -> str:
    def renamed(run: RunRecord) -> RunRecord:
        record = run.model_dump(mode="json")
        for cell in record["cells"]:
            if cell["defense"]["name"] == "dp":
                cell["defense"]["label"] = BAD
        return RunRecord.model_validate(record)

    baseline = make_baseline([renamed(run_of(draw)) for draw in range(6)])
    history = folder / "history"
    for night in range(100, 140):
        judged = regress(renamed(run_of(night, shifted(psnr_gain_db=4.0))), baseline, history=history)
        if judged.verdict == "failed":
            break
    header, lines = read_history(history)
    assert header is not None
    return write_night(judged, folder / "night.html", lines, header.tests).read_text(encoding="utf-8")


def study_page(folder: Path) -> str:
    runs = PlantedRuns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "evaluate", runs.evaluate)
        patch.setattr(study_run, "extractor_for", lambda name, **options: None)
        study = run_study(QUICK, folder)
    record = json.loads(study.model_dump_json())
    record["claims"][0] |= {"name": BAD, "remarks": [BREAKOUT]}
    record["claims"][0]["comparisons"][0] |= {"name": BAD, "unit": BREAKOUT}
    record["data"] |= {"notes": [BREAKOUT]}
    (folder / "study.json").write_text(json.dumps(record), encoding="utf-8")
    return write_study(folder).read_text(encoding="utf-8")


def own_page(folder: Path) -> str:
    """Page of a run on clips of the user's own, whose pictures are left out, and of which cells failed."""
    results = plant_run(folder, clips=2, frames=2, size=8, defenses=DEFENSES[:2])
    results["settings"]["data"] = "videos"
    results["cells"][-1] |= {"status": "failed: out of memory", "scores": None, "media": None}
    store(folder, results)
    return write_report(folder).read_text(encoding="utf-8")


def leaderboard_page(folder: Path) -> str:
    entries = [
        entry(BAD, figures([8.0] * 12, 12, 12)), entry("prune", audit=None), entry(BREAKOUT),
        entry("refused", change={"adaptive": False}), entry("prune", attack=BAD),
    ]  # fmt: skip
    return board_page(leaderboard(entries, PROTOCOL))


PAGES: Mapping[str, Callable[[Path], str]] = {
    "run": lambda folder: write_report(plain_run(folder)).read_text(encoding="utf-8"),
    "hostile": lambda folder: write_report(hostile_run(folder)).read_text(encoding="utf-8"),
    "own": own_page,
    "comparison": comparison_page,
    "audit": audit_page,
    "audits": audits_page,
    "night": night_page,
    "study": study_page,
    "leaderboard": leaderboard_page,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    chromium()  # or all of this is for nothing
    return {name: make(tmp_path_factory.mktemp(name) / "page" if name in ("run", "hostile", "own")
                       else tmp_path_factory.mktemp(name)) for name, make in PAGES.items()}  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_have_no_violation_fit_a_phone_and_run_nothing_planted(
    pages, tmp_path: Path, dark: bool
) -> None:
    views = [
        View(f"{name} {width}", page, AXE, width) for name, page in pages.items() for width in (1280, 360)
    ]
    seen = look(views, tmp_path, dark=dark, axe=True)
    assert {name: found["violations"] for name, found in seen.items() if found["violations"]} == {}
    assert {name: found["sideways"] for name, found in seen.items() if found["sideways"]} == {}
    assert {found["planted"] for found in seen.values()} == {None}
    assert all(found["passes"] >= 20 for found in seen.values())


def test_what_is_planted_would_run_and_would_be_seen(pages, tmp_path: Path) -> None:
    """The checks can fail: a page that does not escape, and one that nobody can read."""
    broken = pages["run"].replace("</header>", f"{BAD}<img src=x><p style='color:#eee'>pale</p></header>", 1)
    (seen,) = look([View("broken", broken, AXE)], tmp_path, axe=True).values()
    assert seen["planted"] in (1, 2)
    assert {found.split(":")[0] for found in seen["violations"]} >= {"image-alt", "color-contrast"}


def test_the_own_script_runs_under_the_policy_of_the_page_and_no_other(pages, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(pages["run"].replace("</footer>", f"{BAD}</footer>"), encoding="utf-8")
    seen = dom(page, tmp_path)
    assert "108 cells; shown: 1 to 50." not in pages["run"]
    assert "108 cells; shown: 1 to 50." in seen
    page.write_text(
        pages["run"].replace("</footer>", "<script>document.title = 'ran'</script></footer>"),
        encoding="utf-8",
    )
    assert "<title>ran" not in dom(page, tmp_path)


STATE = """
  const rows = [...document.querySelectorAll("#cells-table tbody tr")];
  return {
    count: document.getElementById("cells-count").textContent,
    gains: rows.filter((row) => !row.classList.contains("opened")).map((row) => row.cells[4].textContent),
    defenses: [...new Set(rows.filter((row) => !row.classList.contains("opened"))
      .map((row) => row.cells[0].textContent))],
    sorted: [...document.querySelectorAll("#cells-table th[aria-sort]")].map((one) =>
      [one.dataset.name, one.getAttribute("aria-sort")]),
    opened: document.querySelector(".opened")?.textContent ?? "",
    pictures: document.querySelectorAll(".opened .film").length,
    expanded: document.querySelectorAll("[aria-expanded=true]").length,
    find: document.getElementById("cells-find").value,
    page: document.getElementById("cells-page").textContent,
    hash: location.hash,
  };
"""
HOSTILE = """
  for (const button of document.querySelectorAll("#cells-table .open")) button.click();
  return [window.planted ?? null, document.getElementById("cells-find").value, document.images.length];
"""
ACTIONS = """
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const part = (name) => document.getElementById(`cells-${name}`);
  const heading = (name) => document.querySelector(`#cells-table th[data-name=${name}] button`);
"""


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-")) for text in texts if text != "–"]


def test_the_address_restores_filter_order_page_and_opened_cell(pages, tmp_path: Path) -> None:
    cell = "c3d_tiny.untrained/dp σ=0.5/matching/walk@3"
    shared = f"#cells?defense={quote('dp σ=0.5')}&sort=-gain&open={quote(cell, safe='')}"
    views = [
        View("shared", pages["run"], STATE, fragment=shared),
        View("found", pages["run"], STATE, fragment="#cells?find=walk%4011+PRUNE&sort=gain"),
        View("second page", pages["run"], STATE, fragment="#cells?page=2"),
        View("nonsense", pages["run"], STATE, fragment="#cells?defense=none-such&sort=x&page=99&open=y&z=1"),
        View("nothing", pages["run"], STATE, fragment="#cells?find=zzz"),
        View("elsewhere", pages["run"], STATE, fragment="#plots"),
        View(
            "hostile",
            pages["hostile"],
            HOSTILE,
            fragment=f"#cells?find={quote(BAD, safe='')}&open={quote(BAD)}",
        ),
    ]
    seen = look(views, tmp_path)
    found = seen["shared"]
    assert found["count"] == "12 of 108 cells match; shown: 1 to 12."
    assert numbers(found["gains"]) == sorted(numbers(found["gains"]), reverse=True)
    assert found["defenses"] == ["dp σ=0.5"]
    assert found["sorted"] == [["gain", "descending"]]
    assert cell in found["opened"]
    assert "Certificate allows, share0.73" in found["opened"]
    assert found["pictures"] == 2  # the private clip, and what was rebuilt
    assert found["expanded"] == 1
    assert seen["found"]["count"] == "2 of 108 cells match; shown: 1 to 2."
    assert seen["second page"]["page"] == "page 2 of 3"
    assert seen["nonsense"]["count"] == "108 cells; shown: 101 to 108."
    assert seen["nothing"]["count"].startswith("No cell matches.")
    assert seen["elsewhere"]["count"] == "108 cells; shown: 1 to 50."
    assert seen["hostile"] == [None, BAD, len(re.findall("<img", BAD)) - 1]


def test_headings_fields_and_rows_are_used_by_hand(pages, tmp_path: Path) -> None:
    script = (
        ACTIONS
        + """
      heading("gain").click(); heading("gain").click();
      part("outcome").value = "recognised";
      part("outcome").dispatchEvent(new Event("change"));
      part("find").value = "sign";
      part("find").dispatchEvent(new Event("input"));
      await wait(300);
      document.querySelector("#cells-table .open").click();
      const focused = document.activeElement.className;
      const state = await (async () => {"""
        + STATE
        + """})();
      part("reset").click();
      const reset = part("count").textContent;
      part("on").click();
      const next = part("page").textContent;
      document.querySelector("tr[data-cells] a").click();
      await wait(100);
      return {...state, focused, reset, next, link: location.hash, linked: part("count").textContent};
    """
    )
    columns = (
        ACTIONS
        + """
      const table = document.querySelector("table.sortable");
      const column = 5;
      const texts = () => [...table.querySelectorAll("tbody tr:not(.model)")].map((row) =>
        row.cells[column].querySelector("b").textContent);
      const button = table.tHead.rows[0].cells[column].querySelector("button");
      const before = texts();
      button.click();
      const down = texts(), said = table.tHead.rows[0].cells[column].getAttribute("aria-sort");
      button.click();
      const up = texts();
      button.click();
      return {before, down, up, said, after: texts(), model: table.querySelector("tbody tr").className};
    """
    )
    seen = look([View("cells", pages["run"], script), View("rows", pages["run"], columns)], tmp_path)
    found = seen["cells"]
    assert found["count"] == "12 of 108 cells match; shown: 1 to 12."
    assert found["sorted"] == [["gain", "ascending"]]
    assert numbers(found["gains"]) == sorted(numbers(found["gains"]))
    assert re.fullmatch(r"#cells\?find=sign&outcome=recognised&sort=gain&open=[^&]+", found["hash"])
    assert found["focused"] == "open"
    assert found["reset"] == "108 cells; shown: 1 to 50."
    assert found["next"] == "page 2 of 3"
    assert found["link"] == "#cells?defense=none&attack=matching"
    assert found["linked"] == "12 of 108 cells match; shown: 1 to 12."
    rows = seen["rows"]
    assert numbers(rows["down"]) == sorted(numbers(rows["before"]), reverse=True)
    assert numbers(rows["up"]) == sorted(numbers(rows["before"]))
    assert rows["after"] == rows["before"]
    assert (rows["said"], rows["model"]) == ("descending", "model")


def test_ten_thousand_cells_are_small_enough_and_found(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = plant_run(folder, clips=12, frames=8, size=32, defenses=DEFENSES[:3])
    first = results["cells"]
    noisy = [cell for cell in first if cell["defense"]["name"] == "dp"]
    for number in range(1, 500):
        for cell in noisy:
            defense = cell["defense"] | {
                "label": f"{cell['defense']['label']} v{number}", "settings": {"v": number}
            }  # fmt: skip
            first.append(cell | {"id": f"{cell['id']}/{number}", "defense": defense})
    results["cells"] = first[:10_000]
    store(folder, results)
    page = write_report(folder).read_text(encoding="utf-8")
    assert len(page.encode()) < 20_000_000
    assert re.search(r"the first 11 of 8\d\d defenses", page)
    assert re.search(r"On this page: \d+ of 10000 stored reconstructions", page)
    script = (
        ACTIONS
        + """
      heading("gain").click();
      part("find").value = "walk@3 v17";
      part("find").dispatchEvent(new Event("input"));
      await wait(300);
      return [part("count").textContent, document.querySelectorAll("#cells-table tbody tr").length];
    """
    )
    ((count, rows),) = look([View("many", page, script)], tmp_path).values()
    assert re.fullmatch(r"\d+ of 10,000 cells match; shown: 1 to \d+.", count)
    assert 0 < rows <= 50


def test_what_takes_the_focus_is_in_sight(pages, tmp_path: Path) -> None:
    script = """
      const kinds = "a[href], button, input, select, summary, [tabindex='0']";
      const taking = [...document.querySelectorAll(kinds)];
      const unseen = taking.filter((one) => {
        const around = one.tagName === "SUMMARY" ? one.parentElement.parentElement : one;
        if (around.closest("details:not([open])")) return false;
        if (one.closest("[hidden]") || one.disabled) return false;
        one.focus();
        const box = one.getBoundingClientRect();
        const clipped = one.closest("thead") && getComputedStyle(one.closest("thead")).clipPath !== "none";
        const style = getComputedStyle(one);
        return document.activeElement !== one || box.width < 8 || box.height < 8 || clipped
          || style.outlineStyle === "none";
      });
      return [taking.length > 8, unseen.map((one) => one.outerHTML.slice(0, 120))];
    """
    views = [View(f"{name} {width}", pages[name], script, width) for name in ("run", "comparison", "night")
             for width in (1280, 360)]  # fmt: skip
    assert {tuple(map(str, found)) for found in look(views, tmp_path).values()} == {("True", "[]")}


@pytest.mark.parametrize("name", ["run", "comparison", "audit", "night", "study", "leaderboard"])
def test_pages_are_printed_on_upright_sheets_and_wide_tables_on_wide_ones(
    pages, tmp_path: Path, name: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(pages[name], encoding="utf-8")
    sheets = printed(page, tmp_path)
    upright = [width < height for width, height in sheets]
    assert upright[0], "the verdict is on the first sheet"
    assert len(sheets) <= 40
    if name == "run":
        assert not all(upright), "every cell is on wide sheets"


def test_clips_stand_still_for_who_asks_for_less_motion(pages, tmp_path: Path) -> None:
    script = "return getComputedStyle(document.querySelector('.clip .film')).animationName;"
    assert look([View("moving", pages["run"], script)], tmp_path) == {"moving": "film"}
    assert look([View("still", pages["run"], script)], tmp_path, still=True) == {"still": "none"}
