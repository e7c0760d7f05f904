"""The folder of a run: what it refuses, and what is left of it when a disk is full or a run is killed."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vleak.errors import InputError, VleakError
from vleak.files import write_atomic
from vleak.results import read_results
from vleak.results.flags import NO_BETTER
from vleak.results.store import Store, check_folder, write_clips

PICTURE = torch.linspace(0, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
HEADER: dict[str, Any] = {
    "environment": {"python": "3.11"},
    "versions": {"vleak": "1"},
    "settings": {"data": "synthetic", "seed": 0},
    "data": {"clips": 3, "sha256": "a"},
    "models": [{"name": "m", "weights_sha256": "b"}],
}


def cell(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "clip": name,
        "attack": {"name": "matching"},
        "defense": {"name": "none"},
        "scores": {"psnr_gain_db": -1.0, "identified": False},
        "flags": [],
        "status": "ok",
    } | changes


def filled(folder: Path, count: int) -> None:
    with Store(folder, HEADER) as store:
        for index in range(count):
            store.add(cell(f"c{index}"), PICTURE)


def names(folder: Path) -> list[str]:
    return [record["id"] for record in read_results(folder)["cells"]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Let every write beyond so many bytes of a file fail, after a short write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- what goes in comes out -------------------------------------------------------------------------------


def test_cells_and_pictures_are_kept(tmp_path: Path) -> None:
    with Store(tmp_path / "a" / "run", HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.add_without_picture(cell("c1", status="failed: why"))
        results = store.results(["c1", "c2", "c0"])
        store.write_results(results)
    assert results["planned_cells"] == 3
    assert [record["id"] for record in results["cells"]] == ["c1", "c0"]
    assert results["cells"][0]["media"] is None
    stored = np.load(tmp_path / "a" / "run" / results["cells"][1]["media"], allow_pickle=False)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, (PICTURE * 255).round().byte().numpy())
    assert read_results(tmp_path / "a" / "run") == results


def test_a_run_is_taken_up(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    later = HEADER | {"environment": {"python": "3.12"}}
    with Store(tmp_path, later) as store:
        assert list(store.cells) == ["c0", "c1"]
        store.add(cell("c2"), PICTURE)
        assert store.results(["c0"])["environment"] == {"python": "3.11"}  # that of the first start
    assert names(tmp_path) == ["c0", "c1", "c2"]


def test_a_cell_that_is_added_again_replaces_the_first(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        store.add_without_picture(cell("c0", status="failed: no memory"))
        store.add(cell("c1"), PICTURE)
        store.add(cell("c0"), PICTURE)
    found = read_results(tmp_path)["cells"]
    assert [(record["id"], record["status"]) for record in found] == [("c0", "ok"), ("c1", "ok")]


def test_clips_are_rounded_and_clamped(tmp_path: Path) -> None:
    write_clips(tmp_path / "a.npy", torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 7.0]))
    assert np.load(tmp_path / "a.npy", allow_pickle=False).tolist() == [0, 0, 0, 1, 255, 255]


def test_nan_never_reaches_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.add(cell("c0", seed=float("nan")), PICTURE)
        store.add(cell("c1"), PICTURE)
    assert names(tmp_path) == ["c1"]


# --- folders that are refused -----------------------------------------------------------------------------


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"--out .*file is a file; give a folder"):
        Store(tmp_path / "file", HEADER)
    with pytest.raises(InputError, match="cannot be used: Not a directory; give another folder"):
        Store(tmp_path / "file" / "below", HEADER)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "cells.jsonl", "results.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"holds something that is not a run of vleak; give a new folder$"):
        Store(tmp_path, HEADER)
    assert files(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "{}", '{"settings": null}'])
def test_a_strange_header_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match="give another folder"):
        Store(tmp_path, HEADER)
    assert files(tmp_path) == {"run.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"data": "synthetic", "seed": 7}}, r"settings seed is 0 there and 7 here"),
        ({"settings": {"data": "film.mp4", "seed": 7}}, r"settings data is 'synthetic' there and 'film.mp4'"),
        ({"settings": {"data": "synthetic"}}, r"settings seed is 0 there and None here"),
        ({"data": {"clips": 3, "sha256": "c"}}, r"data sha256 is 'a' there and 'c' here"),
        ({"models": [{"name": "m", "weights_sha256": "x"}]}, r"its models are others"),
        ({"versions": {"vleak": "2"}}, r"versions vleak is '1' there and '2' here"),
    ],
)
def test_another_run_is_named_by_the_first_difference(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    filled(tmp_path, 1)
    before = (tmp_path / "cells.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"holds another run: {message}.*give another folder"):
        Store(tmp_path, HEADER | changes)
    assert (tmp_path / "cells.jsonl").read_bytes() == before
    filled(tmp_path, 1)  # and the refusal let go of the lock


def test_settings_are_compared_before_anything_else_is_known(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    check_folder(tmp_path, HEADER["settings"])
    with pytest.raises(InputError, match="settings seed is 0 there and 7 here"):
        check_folder(tmp_path, {"data": "synthetic", "seed": 7})
    check_folder(tmp_path / "new", HEADER["settings"])
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        with pytest.raises(VleakError, match="is in use by another run; wait for it, or give another --out"):
            Store(tmp_path, HEADER)
        store.add(cell("c0"), PICTURE)
    filled(tmp_path, 2)
    assert names(tmp_path) == ["c0", "c1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be used: Permission denied; give another folder"):
            Store(tmp_path / "run", HEADER)
    finally:
        tmp_path.chmod(0o700)


# --- killed, full -----------------------------------------------------------------------------------------


def test_a_run_that_was_killed_before_its_header_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "reconstructions").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.123.abcd").write_text('{"sett')
    filled(tmp_path, 1)
    assert names(tmp_path) == ["c0"]


@pytest.mark.parametrize(
    "tail", [b'{"id": "c2", "sc', b'{"id": "c2"}', b"\0\0\0\n", b"17\n", b'{"no": "id"}\n']
)
def test_a_torn_tail_is_dropped(tmp_path: Path, tail: bytes) -> None:
    filled(tmp_path, 2)
    with open(tmp_path / "cells.jsonl", "ab") as journal:
        journal.write(tail)
    assert names(tmp_path) == ["c0", "c1"]
    with Store(tmp_path, HEADER) as store:
        store.add(cell("c2", seed=5), PICTURE)
    assert names(tmp_path) == ["c0", "c1", "c2"]
    assert read_results(tmp_path)["cells"][2]["seed"] == 5


def test_full_disk_in_the_journal_leaves_whole_lines(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        store.add(cell("c0"), PICTURE)
        length = (tmp_path / "cells.jsonl").stat().st_size
        message = r"1 finished cells are safe, free space and give the same command with --out"
        with longest_file(length + 30), pytest.raises(VleakError, match=message) as caught:
            store.add_without_picture(cell("c1"))
        assert len(str(caught.value).splitlines()) == 1
        assert (tmp_path / "cells.jsonl").stat().st_size == length
        assert names(tmp_path) == ["c0"]
        assert list(store.cells) == ["c0"]
        store.add(cell("c2"), PICTURE)
    assert names(tmp_path) == ["c0", "c2"]


def test_full_disk_in_a_picture_leaves_no_cell(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        store.add(cell("c0"), PICTURE)
        before = files(tmp_path)
        with longest_file(100), pytest.raises(VleakError, match="1 finished cells are safe"):
            store.add(cell("c1"), PICTURE)
        assert files(tmp_path) == before
    assert names(tmp_path) == ["c0"]


def test_no_space_is_said_as_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store(tmp_path, HEADER) as store:
        monkeypatch.setattr(os, "fsync", full)
        for add in (lambda: store.add(cell("c0"), PICTURE), lambda: store.add_without_picture(cell("c0"))):
            with pytest.raises(VleakError, match=r"No space left on device; 0 finished cells are safe"):
                add()
        with pytest.raises(VleakError, match=r"cannot write .*results.json: No space left on device; free"):
            store.write_results(store.results([]))
    monkeypatch.undo()
    assert read_results(tmp_path)["cells"] == []
    assert not (tmp_path / "results.json").exists()


# --- reading ----------------------------------------------------------------------------------------------


def test_results_of_a_killed_run_come_from_its_journal(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    found = read_results(tmp_path)
    assert (found["schema_version"], found["settings"]) == (1, HEADER["settings"])
    assert found["planned_cells"] is None  # the journal does not know it
    assert [record["flags"] for record in found["cells"]] == [[NO_BETTER], [NO_BETTER]]


def test_the_journal_counts_where_a_resumed_run_was_killed(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.write_results(store.results(["c0", "c1"]))
        store.add(cell("c1"), PICTURE)
    assert names(tmp_path) == ["c0", "c1"]
    assert read_results(tmp_path)["planned_cells"] == 2


@pytest.mark.parametrize("path", ["missing", "file", "empty"])
def test_what_is_no_run(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    expected = {"missing": "does not exist", "file": "is no folder", "empty": "holds no run"}[path]
    with pytest.raises(InputError, match=f"{path} {expected}.*; give "):
        read_results(tmp_path / path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "cannot be read as JSON"), (b"\xff", "cannot be read"), (b"[]", "a list")]
)
def test_damaged_results(tmp_path: Path, content: bytes, message: str) -> None:
    filled(tmp_path, 1)
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=f"results.json.*{message}"):
        read_results(tmp_path)


# --- write_atomic -----------------------------------------------------------------------------------------


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ("long content, ü", b"bytes"):
        write_atomic(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert files(tmp_path) == {"a.json"}


def test_write_atomic_keeps_the_old_file_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    with longest_file(1000), pytest.raises(VleakError, match=r"^cannot write .*a.json: .*; free space or"):
        write_atomic(path, b"x" * 2000)
    assert path.read_text() == "old"
    assert files(tmp_path) == {"a.json"}


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_write_atomic_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises((VleakError, KeyboardInterrupt)):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert files(tmp_path) == {"a.json"}


def test_write_atomic_names_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VleakError, match=r"cannot write .*missing/a: No such file or directory"):
        write_atomic(tmp_path / "missing" / "a", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VleakError, match=r"cannot write .*folder: Is a directory"):
        write_atomic(tmp_path / "folder", "new")
    assert files(tmp_path) == {"folder"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", "text")
        filled(tmp_path / "run", 1)
    finally:
        os.umask(before)
    written = [tmp_path / "a", *(path for path in (tmp_path / "run").rglob("*") if path.is_file())]
    assert len(written) == 5
    assert {path.stat().st_mode & 0o777 for path in written} == {mode}


def test_results_are_json_for_every_reader(tmp_path: Path) -> None:
    with Store(tmp_path, HEADER) as store:
        store.add(cell("ε"), PICTURE)
        store.write_results(store.results(["ε"]))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["cells"][0]["id"] == "ε"
