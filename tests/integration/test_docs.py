"""What a newcomer reads first: no dead link, no placeholder, and every example runs."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from runs import VLEAK

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
#: what each example has to print, beside running without a warning.
PRINTED = {
    "attack_one_update": r"none: \+\d.*rank 1 of 8, label right: True\ndp σ=1: ",
    "captured_update": r"by its last layer: gradient\nlabels: \[0\] flags: \[\](.|\n)*gain: \+\d.*: True",
    "framework_gates": r"normaliser: doubt: (.|\n)*sampling: wrong: batches are shuffled(.|\n)*gates: "
    "FlowerMod Nvflare",
    "watched_client": r"risk: high\n(.|\n)*checks: fits facts: fedsgd",
    "evaluate_defenses": r"none, strongest: \+\d.*4 of 4 recognised.*leaks",
    "guarded_client": r"none: defend more by dp:(.|\n)*: send: no check (.|\n)*leave\nrefuse: class_trap",
    "own_attack": r"none, cosine_matching.* \(non-adaptive\): \+\d",
    "own_defense": r"random_mask, matching: .*known by: channel(.|\n)*_blind: .*known by: none",
    "own_metric": r"none grey \S+ flat(.|\n)*none strongest \S+ \+0\.[5-9]",
    "own_private_defense": (
        r"conformance: 9 of 9 hold\nepsilon: at least [5-9]\.\d, claimed 10\.0\n"
        r"matching, defense known by channel: .*\nmatching_blind, defense known by none: "
    ),
    "own_model": r"raw \S+ none strongest \+\d(.|\n)*feature \S+ none",
    "suite_entry": r"1 \[1 to \d\]: prune 90 %, (.|\n)*refused: mixup .*, all cells",
    "saved_run": r"schema \d(.|\n)*mean error 0\.\d",
}


def shell_lines(page: str) -> str:
    """Lines of a page that stand between fences or are indented."""
    parts = re.split(r"^ *```.*$", page, flags=re.MULTILINE)
    indented = [line for part in parts[::2] for line in part.splitlines() if line.startswith("    ")]
    return "\n".join([*parts[1::2], *indented])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_was_left_to_fill_in(page: Path) -> None:
    assert not re.search(
        r"\b(TODO|TBD|FIXME|TABLE|MINUTES|TUNING|SPREAD)\b", page.read_text(encoding="utf-8")
    )


def test_pages_name_commands_that_exist() -> None:
    code = "\n".join(shell_lines(page.read_text(encoding="utf-8")) for page in PAGES)
    named = set(re.findall(r"^ *vleak (\w+)", code, re.MULTILINE))
    shown = subprocess.run([*VLEAK, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^\W*(\w+) {2,}", shown, re.MULTILINE))
    assert {"evaluate", "study", "train", "report", "list", "doctor", "bench"} <= named
    assert named <= known


def test_guides_show_code_that_is_run() -> None:
    """Python on a page of the site is included from examples/, so that the tests run what it shows."""
    blocks = [
        (page.name, block)
        for page in [ROOT / "docs/index.md", *ROOT.glob("docs/guides/*.md")]
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    assert len(blocks) >= len(EXAMPLES)
    for page, block in blocks:
        assert re.fullmatch(r'--8<-- "examples/\S+"\n', block), f"{page}:\n{block}"


def test_a_private_defense_takes_twenty_lines() -> None:
    text = (ROOT / "examples" / "own_private_defense.py").read_text(encoding="utf-8")
    shown = text.partition("[start:defense]")[2].partition("# --8<--")[0]
    assert 15 <= sum(bool(line.strip()) for line in shown.splitlines()) <= 20


SLOW_EXAMPLES = {
    "own_attack",
    "own_defense",
    "own_model",
    "own_metric",
    "evaluate_defenses",
    "guarded_client",
    "saved_run",
    "suite_entry",
}  # others run attacks too
RUN = [
    pytest.param(script, id=script.stem, marks=[pytest.mark.slow] if script.stem in SLOW_EXAMPLES else [])
    for script in EXAMPLES
]


@pytest.mark.parametrize("script", RUN)
def test_the_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr()
    assert shown.err == ""
    assert re.search(PRINTED[script.stem], shown.out), shown.out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(name="hooks", scope="module")
def _hooks() -> ModuleType:
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_field_tables_say_what_each_field_means(hooks: ModuleType) -> None:
    record = {
        "description": "One cell.\n\nAttributes:\n    low, high: ends of the\n        interval. n: clips.\n",
        "properties": {
            "low": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
            "high": {"type": "number"},
            "n": {"$ref": "#/$defs/Count"},
        },
    }
    assert hooks.record_table("Cell", record).splitlines() == [
        "## Cell",
        "",
        "One cell.",
        "",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
        "| `low` | number or null | `null` | ends of the interval |",
        "| `high` | number |  | ends of the interval |",
        "| `n` | [Count](#count) |  | clips |",
    ]
