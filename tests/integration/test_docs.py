"""What a newcomer reads first: no dead link, no placeholder, and the example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_was_left_to_fill_in(page: Path) -> None:
    assert not re.search(
        r"\b(TODO|TBD|FIXME|TABLE|MINUTES|TUNING|SPREAD)\b", page.read_text(encoding="utf-8")
    )


def test_readme_names_commands_that_exist() -> None:
    commands = set(
        re.findall(r"^vleak (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert commands == {"evaluate", "study", "train", "report", "list", "doctor", "bench"}


def test_the_example_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "attack_one_update.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("none: +")
    assert "rank 1 of 8, label right: True" in lines[0]
    assert lines[1].startswith("dp σ=1: ")
