"""A real Flower simulation with two clients: the mod records, audits and holds back what they send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from audits import SHAPE, clips, model

from vleak.federated import LocalTraining, Update
from vleak.update_audit import AuditRecord, audit

pytest.importorskip("flwr", reason="needs Flower: pip install 'vleak[flower]'")
pytest.importorskip("ray", reason="needs Flower's simulation: pip install 'vleak[flower]'")
pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def simulate(folder: Path, *arguments: str) -> list[str]:
    """Run one round in a process of its own; what the server got, an entry a client."""
    places = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(SUPPORT / "flower_round.py"), str(folder), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=550, env=environment)
    assert (folder / "seen.json").is_file(), done.stderr[-3000:]
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("steps", [1, 5])
def test_an_update_of_a_flower_client_is_recorded_and_its_clip_found(tmp_path: Path, steps: int) -> None:
    assert simulate(tmp_path, str(steps)) == ["weights", "weights"]
    files = sorted((tmp_path / "updates").glob("*.safetensors"))
    assert len(files) == 2
    found = set()
    for file in files:
        assert Update.load(file).facts.local == LocalTraining(steps=steps, learning_rate=0.05)
        for row in range(2):
            made = audit(
                model(), file, input_shape=SHAPE, attacks=("matching",), defenses=(), iterations=60, starts=1,
                truth=clips().clips[row], candidates=clips().clips,
            )  # fmt: skip
            (score,) = made.record.measured
            if score.recognised:
                found.add(row)
                assert score.linked
                assert score.candidates == 12
    assert found == {0, 1}


def test_a_flower_client_does_not_send_what_leaks(tmp_path: Path) -> None:
    assert simulate(tmp_path, "1", "high") == ["error", "error"]
    records = [
        AuditRecord.model_validate_json(path.read_text()) for path in (tmp_path / "updates").glob("*.json")
    ]
    assert [record.risk.level for record in records] == ["high", "high"]
