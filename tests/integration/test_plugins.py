"""A package outside the tree, built and installed into an environment of its own, and used from there."""

from __future__ import annotations

import json
import os
import pty
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "support" / "outside_package"
SMALL = ("--clips", "2", "--frames", "4", "--size", "16", "--iterations", "2", "--enhance", "none")
ORIGIN = "entry point of outside-parts 0.3"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that lies over this one and has the package, built as a wheel."""
    root = tmp_path_factory.mktemp("outside")
    shutil.copytree(SOURCE, root / "source")
    command = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    built = run(Path(sys.executable), *command, "--wheel-dir", str(root), str(root / "source"))
    assert built.returncode == 0, built.stderr
    venv.create(root / "env", with_pip=False, symlinks=True)
    python = root / "env" / "bin" / "python"
    home = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # This environment's packages, editable ones included, lie below those of the new one.
    folders = [path for path in (*site.getsitepackages(), *sys.path) if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({folder!r})" for folder in dict.fromkeys(folders)]
    (home / "below.pth").write_text("\n".join(lines) + "\n")
    (wheel,) = root.glob("*.whl")
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(home),
        str(wheel),
    ]
    installed = run(Path(sys.executable), *install)
    assert installed.returncode == 0, installed.stderr
    return python


def run(python: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, timeout=300, env=environment, **options
    )


def vleak(python: Path, folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = "from vleak.cli import main; main()"
    return run(python, "-c", command, *arguments, cwd=folder, **options)


LIBRARY = """
from dataclasses import replace
import torch, vleak
from vleak.attacks import ATTACKS
from vleak.defenses import DEFENSES, parse_defenses
from vleak.errors import InputError
from vleak.federated import Client
from vleak.metrics import METRICS, measure
from vleak.models import EXTRACTORS, build_extractor
from vleak.seeds import generator

model = vleak.build_model("one_layer:width=5", frames=4, size=8, classes=3, seed=1)
same = vleak.build_model("one_layer:width=5", frames=4, size=8, classes=3, seed=1)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
clips, labels = torch.rand(1, 3, 4, 8, 8, generator=generator("clips")), torch.tensor([2])
client = Client(model, defense=DEFENSES.build("zero_small:part=0.5"))
update = client.update(clips, labels, generator(0))
masks = client.channel(update).masks
assert 0 < sum(int(mask.sum()) for mask in masks.values()) < sum(mask.numel() for mask in masks.values())
assert [defense.part for defense in parse_defenses("zero_small")] == [0.1, 0.5]
attack = ATTACKS.build("short:iterations=2,smooth=0.5,engine=reference")
knowledge = vleak.Knowledge(clip_shape=(3, 4, 8, 8), batch_size=1, classes=3)
observation = vleak.Observation(model, update, knowledge, client.channel(update))
answer = attack.reconstruct(observation, generator(1))
assert (answer.clips.shape, answer.defense_knowledge) == (clips.shape, "channel")
told = replace(knowledge, simulate=client.update)
answer = attack.reconstruct(vleak.Observation(model, update, told), generator(1))
assert (answer.clips.shape, answer.defense_knowledge) == (clips.shape, "simulated")
metric = METRICS.build("brightness_error:scale=0.5")
assert measure(metric, clips[0], clips[0]) == 0.0
assert abs(measure(metric, clips[0] * 0, clips[0]) - 2 * clips.mean()) < 1e-6
features = build_extractor("frame_means", size=8, frames=4, seed=0)(clips)
assert features.shape == (1, 4, 48)
run = vleak.evaluate(
    model="one_layer:width=3", defenses="zero_small:part=0.5", attacks="short:iterations=2,smooth=0.5",
    metrics="brightness_error:scale=0.5", clips=2, frames=4, size=16, enhance="none", engine="reference",
    non_adaptive=0,
)
assert all(cell.ok for cell in run.cells), [cell.status for cell in run.cells]
assert all(cell.scores.metrics["brightness_error:scale=0.5"] >= 0 for cell in run.cells)
try:
    parse_defenses("torn")
except InputError as error:
    print(error)
kinds = (DEFENSES, ATTACKS, METRICS, EXTRACTORS, vleak.MODELS)
print([kind.find(name).origin for kind in kinds for name in kind.names() if name not in kind.builtin
       and name != "torn"])
"""


@pytest.fixture(scope="module")
def screen(python: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Lines on the terminal of a process that uses the package as a library, and then lists defenses."""
    ours, theirs = pty.openpty()
    code = f"{LIBRARY}\nfrom vleak.cli import run\nraise SystemExit(run(['list', 'defenses']))"
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [str(python), "-c", code], stdout=theirs, cwd=tmp_path_factory.mktemp("screen"),
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = terminal.read(4096)
            except OSError:  # how a terminal of Linux says that nobody writes any more
                break
            if not part:
                break
            shown += part
        assert process.wait(60) == 0, shown.decode()
    return shown.decode().splitlines()


def test_lists_show_what_came_from_outside_and_from_where(screen: list[str]) -> None:
    lines = {line.split()[0]: line for line in screen if line.split()}
    assert "built in" in lines["dp"]
    assert "Zeros every entry" in lines["zero_small"]
    assert ORIGIN in lines["zero_small"]
    assert "cannot be used" in lines["torn"]


@pytest.mark.slow  # the library uses the same parts below
def test_the_command_line_runs_what_came_from_outside(python: Path, tmp_path: Path) -> None:
    finished = vleak(
        python, tmp_path, "evaluate", *SMALL, "--pipeline", "all", "--model", "one_layer:width=3",
        "--extractor", "frame_means", "--head", "linear", "--attack", "short:smooth=0.5",
        "--metric", "brightness_error:scale=0.5", "--defense", "zero_small",
        "--defense", "outside_parts:ZeroSmall:part=0.25", "--defense", "careless", "--out", "run",
        "--engine", "reference", "--non-adaptive", "0",
    )  # fmt: skip
    broken = "defense Careless (outside_parts:Careless): transmit returned"
    assert finished.returncode == 2  # of the careless one there is no result; all other cells went on
    assert broken in finished.stderr.splitlines()[-1]
    cells = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert {cell["model"] for cell in cells} == {"one_layer:width=3", "frame_means>linear>bce"}
    attacked = [cell for cell in cells if cell["attack"]["name"] == "short"]
    for model in {cell["model"] for cell in cells}:
        changed = {
            cell["defense"]["settings"]["part"]: cell["update"]["changed_fraction"]
            for cell in attacked
            if cell["defense"]["name"] == "zero_small" and cell["model"] == model
        }
        assert 0 < changed[0.1] < changed[0.25] < changed[0.5] < 1
    assert {cell["attack"]["settings"]["smooth"] for cell in attacked} == {0.5}
    scored = [
        cell["scores"]["metrics"] for cell in cells if cell["model"] == "one_layer:width=3" and cell["scores"]
    ]
    assert all(metrics["brightness_error:scale=0.5"] >= 0 for metrics in scored)
    failed = [cell["status"] for cell in attacked if cell["status"] != "ok"]
    assert len(failed) == 2 * 2  # two clips in two pipelines
    assert all(broken in line for line in failed)


def test_the_library_uses_each_of_them(screen: list[str]) -> None:
    assert screen[:2] == [
        f"defense 'torn' ({ORIGIN}) cannot be imported: RuntimeError: weights are missing; mend or uninstall "
        "that package",
        str([ORIGIN] * 6),
    ]
