"""Forks of code from outside: one process comes back, prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from audits import model, sent
from safetensors.torch import save_file

from runs import VLEAK

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CONTEXT = """
import os
from vleak.forks import one_process

print("once")  # which is in the buffer of both

@one_process()
def call():
    return os.fork()

child = call()
print("back", os.waitpid(child, 0)[1])
"""
RAISES = """
import os
from vleak.forks import one_process

try:
    with one_process():
        child = os.fork()
        raise ValueError
except ValueError:
    print("back", os.waitpid(child, 0)[1])
"""
FACTORY = """
import os, sys
import vleak

def small():
    os.fork()  # and both go on
    return vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=0)
"""
ATTACK = """
from pathlib import Path
from vleak.evaluation import evaluate
from costly_parts import Costly
from runs import tiny

marks = Path("marks")
marks.mkdir()
fork = Costly(way="fork", marks=str(marks), tries=10**6)
record = evaluate(tiny(attacks=(fork,), defenses=("none",), clips=1))
print(record.cells[-1].status)
"""


def shown(*command: str, folder: Path) -> str:
    """Return what a program prints; a process that it leaves behind keeps the pipe open and is waited for."""
    path = {"PYTHONPATH": f"{folder}:{SUPPORT}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("script", "said"), [(CONTEXT, "once\nback 0\n"), (RAISES, "back 0\n")])
def test_one_process_comes_back(script: str, said: str, tmp_path: Path) -> None:
    assert shown(sys.executable, "-c", script, folder=tmp_path) == said


@pytest.mark.slow
def test_a_factory_that_forks_is_audited_once(tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(FACTORY)
    save_file(sent(model()).tensors, tmp_path / "u.safetensors")
    line = ["audit", "--model", "forking:small", "--update", "u.safetensors", "--input-shape", "3,4,16,16"]
    text = shown(*VLEAK, *line, "--attack", "none", "--json", folder=tmp_path)
    assert json.loads(text)["model"] == "forking:small"


@pytest.mark.slow
def test_an_attack_that_forks_leaves_nothing_behind(tmp_path: Path) -> None:
    assert shown(sys.executable, "-c", ATTACK, folder=tmp_path) == "ok\n"
