"""`vleak audit`: an update in a file, a model by its factory, and one line for every mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from audits import clips, model, sent
from safetensors.torch import save_file

from vleak.cli import run
from vleak.update_audit import AuditRecord

SUPPORT = Path(__file__).resolve().parents[1] / "support"
FACTORIES = """
import os, sys, time
import vleak

def small():
    print("a factory that prints")
    return vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=0)

def other():
    return vleak.build_model("c3d_tiny:width=8", frames=4, size=16, classes=6, seed=0)

def hangs():
    time.sleep(60)

def exits():
    os._exit(0)
"""
GIVEN = ["--model", "my_factories:small", "--update", "update.safetensors", "--input-shape", "3,4,16,16"]
TWO = ["--update", "update.safetensors", "--update", "second.safetensors"]
QUICK = ["--attack", "none", "--try-defense", "none"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with a module of factories and an update; what hangs fails."""

    def hangs(number: int, frame: object) -> NoReturn:
        pytest.fail("it hangs")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VLEAK_FACTORY_SECONDS", "20")
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    save_file(sent(model()).tensors, "update.safetensors")
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_record_goes_to_stdout_and_the_page_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"clips": clips().clips[:1].contiguous()}, "truth.safetensors")
    save_file({"clips": clips().clips.contiguous()}, "candidates.safetensors")
    code = run(
        ["audit", *GIVEN, "--attack", "matching", "--iterations", "15", "--starts", "1", "--try-defense",
         "prune:fraction=0.99", "--truth", "truth.safetensors", "--candidates", "candidates.safetensors",
         "--seed", "3", "--out", "page.html", "--json"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0
    record = json.loads(shown.out)
    AuditRecord.model_validate(record)
    assert record["seed"] == 3
    assert record["budget"]["iterations"] == 15
    assert [trial["defense"] for trial in record["defenses"]] == ["none", "prune:fraction=0.99"]
    assert record["measured"][0]["candidates"] == 12
    assert f"risk {record['risk']['level']}" in shown.err
    assert "Risk" in Path("page.html").read_text(encoding="utf-8")


def test_facts_of_the_client_reach_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(model().state_dict(), "before.safetensors")
    after = {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in model().state_dict().items()}
    torch.save(after, "after.pt")
    given = ["--model", "my_factories:small", "--update", "after.pt", "--input-shape", "3,4,16,16"]
    local = ["--local-steps", "4", "--local-rate", "0.1", "--local-momentum", "0.5", "--local-decay", "0.25",
             "--local-batch", "1", "--local-optimizer", "sgd"]  # fmt: skip
    assert run(["audit", *given, *QUICK, *local, "--before", "before.safetensors", "--batch", "2",
                "--mode", "train", "--input-layout", "NCTHW", "--kind", "weights", "--classes", "6",
                "--partial", "--seconds", "9", "--public", "synthetic", "--defense", "none",
                "--checkpoint", "before.safetensors", "--json"]) == 0  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    AuditRecord.model_validate(record)
    update = record["update"]
    assert update["kind"] == "fedavg"
    assert update["batch_size"] == 2
    assert update["mode"] == "train"
    assert update["local"] == (
        "steps 4, batch_size 1, learning_rate 0.1, momentum 0.5, weight_decay 0.25, optimizer sgd"
    )


def test_several_updates_have_a_row_a_record_and_a_page_each(capsys: pytest.CaptureFixture[str]) -> None:
    turned = {name: -tensor for name, tensor in sent(model(), 1).tensors.items()}
    Path("round [2]").mkdir()
    save_file(turned, "round [2]/turned.safetensors")
    several = [*GIVEN, "--update", "round [2]/turned.safetensors", *QUICK, "--seed", "3", "--json"]
    assert run(["audit", *several, "--out", "pages"]) == 0
    shown = capsys.readouterr()
    records = json.loads(shown.out)
    assert list(records) == ["update.safetensors", "round [2]/turned.safetensors"]
    assert {record["seed"] for record in records.values()} == {3}
    assert run(["audit", *GIVEN, *QUICK, "--seed", "3", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    for record in (alone, records["update.safetensors"]):
        AuditRecord.model_validate(record)
        record["budget"].pop("spent_s")
    assert alone == records["update.safetensors"]
    rows = [line.split() for line in shown.err.splitlines() if line.split()[1:2] == ["undetermined"]]
    assert rows == [
        ["turned.safetensors", "undetermined", "wrong:", "sign"],
        ["update.safetensors", "undetermined", "fits"],
    ]
    assert "highest risk: turned.safetensors" in shown.err
    assert "pages: pages/index.html" in shown.err
    assert sorted(os.listdir("pages")) == ["01-update.html", "02-turned.html", "index.html"]
    index = Path("pages/index.html").read_text(encoding="utf-8")
    assert index.index('<a href="02-turned.html">') < index.index('<a href="01-update.html">')
    assert 'href="index.html"' in Path("pages/02-turned.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_several_updates_are_attacked_and_scored(capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"clips": clips().clips[:1].contiguous()}, "truth.safetensors")
    save_file(sent(model(), 1).tensors, "other.safetensors")
    attacked = ["--attack", "matching", "--iterations", "30", "--truth", "truth.safetensors"]
    several = ["--update", "other.safetensors", "--try-defense", "none", "--json"]
    assert run(["audit", *GIVEN, *attacked, *several]) == 0
    shown = capsys.readouterr()
    records = json.loads(shown.out)
    assert [record["measured"][0]["recognised"] for record in records.values()] == [True, False]
    assert all(record["budget"]["skipped"] == [] for record in records.values())
    rows = [line for line in shown.err.splitlines() if re.match(r" +(update|other)\.safetensors ", line)]
    assert [re.findall(r"\d of \d", row)[0] for row in rows] == ["1 of 1", "0 of 1"]
    assert "highest risk: update.safetensors" in shown.err


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--update", "nowhere.npz"], "nowhere.npz is not a file"),
        (["--update", "planted.pt"], "more than tensors, which is not opened"),
        (["--update", "planted.pkl"], "is a pickle"),
        (["--update", "truncated.safetensors"], "truncated.safetensors"),
        (["--model", "my_factories:other"], "has shape"),
        (["--model", "my_factories:nothing"], "my_factories"),
        (["--model", "my_factories:exits"], "the factory ended its process"),
        (["--model", "c3d_tiny"], "needs its number of --classes"),
        (["--input-shape", "3,4,16"], "expected four whole numbers"),
        (["--input-shape", "3x4x16x16"], "--input-shape '3x4x16x16': expected C,T,H,W"),
        (["--input-shape", "3,4,24,24"], "choose --frames and --size"),
        (["--iterations", "1"], "--iterations 1: expected a whole number from 10"),
        (["--seconds", "0"], "--seconds 0.0: expected a number from 1"),
        (["--local-steps", "5"], "--local-steps 5: is of local training, whose learning rate is not given"),
        (["--local-optimizer", "adam"], "give --local-rate too"),
        (["--batch", "0"], "--batch 0: expected a whole number from 1"),
        (["--batch", "1000000"], "--batch 1000000: at most 87381 clips of this shape"),
        (["--classes", "-1"], "--classes -1: expected a whole number from 2"),
        (["--local-optimizer", "adamw", "--local-rate", "0.1"], "did you mean adam"),
        (["--mode", "training"], "did you mean train"),
        (["--out", "no/such/page.html"], "--out no/such/page.html"),
        (
            ["--out", "update.safetensors"],
            "--out update.safetensors: expected a page, a file that ends in .html",
        ),
        (["--truth", "update.safetensors"], "holds 8 tensors, expected one"),
        ([*TWO, "--update", "nowhere.npz"], "nowhere.npz is not a file"),
        ([*TWO, "--update", "planted.pt"], "planted.pt is damaged or holds more than tensors"),
        ([*TWO, "--update", "wider.npz"], "update.safetensors fits the model: give updates of another"),
        ([*TWO, "--update", "again.pt"], "update.safetensors and again.pt hold the same update"),
        ([*TWO, "--out", "page.html"], "--out page.html: several updates have a page each; give a folder"),
        ([*TWO, "--out", "update.safetensors"], "--out update.safetensors: it is a file"),
        ([*TWO, "--out", "held"], "--out held: the folder holds files already"),
        ([*TWO, "--out", "no/pages"], "--out no/pages: there is no folder no"),
        ([*TWO, "--truth", "update.safetensors"], "holds 8 tensors, expected one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path("update.safetensors").read_bytes()
    Path("truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("planted.pkl").write_bytes(pickle.dumps(Planted()))
    torch.save({"x": Planted()}, "planted.pt")
    first = sent(model()).tensors
    torch.save(first, "again.pt")
    np.savez("wider.npz", **{name: tensor[..., None].numpy() for name, tensor in first.items()})
    save_file({name: 2 * tensor for name, tensor in first.items()}, "second.safetensors")
    Path("held").mkdir()
    Path("held", "index.html").write_text("another page")
    kept = set(os.listdir())
    given = [*GIVEN[:2], *GIVEN[4:]] if "--update" in arguments else GIVEN
    assert run(["audit", *given, *QUICK, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.startswith("vleak: ")]
    assert len(lines) == 1
    assert words in lines[0], lines[0]
    assert "Traceback" not in shown.err
    assert set(os.listdir()) - {"__pycache__"} == kept - {"__pycache__"}
    assert Path("update.safetensors").read_bytes() == whole
    assert os.listdir("held") == ["index.html"]
    shutil.rmtree("__pycache__", ignore_errors=True)


def test_a_factory_that_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLEAK_FACTORY_SECONDS", "1")
    assert run(["audit", *GIVEN, *QUICK, "--model", "my_factories:hangs"]) == 2
    assert "did not return within 1 s" in capsys.readouterr().err
