"""The stores of a run: what they refuse, and what is left when a disk is full or a run is killed."""

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
from records import make_cell, make_header

from vleak.errors import InputError, VleakError
from vleak.files import write_atomic
from vleak.results import Cell, FolderStore, MemoryStore, RunHeader, read_run
from vleak.results.flags import NO_BETTER

PICTURE = torch.linspace(0, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
HEADER = make_header()


def cell(name: str, **changes: Any) -> Cell:
    return make_cell(gain=-1.0, id=name, clip=name, **changes)


def filled(folder: Path, count: int, header: RunHeader = HEADER) -> None:
    with FolderStore(folder).open(header) as store:
        for index in range(count):
            store.add(cell(f"c{index}"), PICTURE)


def names(folder: Path) -> list[str]:
    return [record.id for record in read_run(folder).cells]


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
    folder = tmp_path / "a" / "run"
    with FolderStore(folder).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.add(cell("c1", status="failed: why", scores=None))
        record = store.finish(["c1", "c2", "c0"])
    assert record.planned_cells == 3
    assert [c.id for c in record.cells] == ["c1", "c0"]
    assert (record.cells[0].media, record.cells[0].failure) == (None, "why")
    stored = np.load(folder / str(record.cells[1].media), allow_pickle=False)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, (PICTURE * 255).round().byte().numpy())
    assert read_run(folder) == read_run(folder / "results.json") == record


def test_memory_and_folder_give_the_same_record_and_pictures(tmp_path: Path) -> None:
    stores = (FolderStore(tmp_path), MemoryStore())
    records = []
    for store in stores:
        with store.open(HEADER):
            store.add_clips(PICTURE.flip(0)[None])
            store.add(cell("c0", clip_index=0), PICTURE, PICTURE.repeat(1, 1, 2, 2))
            store.add(cell("c1", clip_index=0, status="failed: why", scores=None))
            records.append(store.finish(["c0", "c1"]))
    assert records[0] == records[1]
    on_disk, in_memory = (store.pictures(records[0].cells[0]) for store in stores)
    assert list(on_disk) == list(in_memory) == ["truth", "reconstruction", "enhanced"]
    assert all(torch.equal(on_disk[role], in_memory[role]) for role in on_disk)
    assert torch.equal(on_disk["reconstruction"], (PICTURE * 255).round() / 255)
    assert torch.equal(on_disk["truth"], (PICTURE.flip(0) * 255).round() / 255)
    assert list(stores[0].pictures(records[0].cells[1])) == ["truth"]


def test_a_run_is_taken_up(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with FolderStore(tmp_path).open(make_header(environment={"python": "3.12"})) as store:
        assert list(store.cells) == ["c0", "c1"]
        store.add(cell("c2"), PICTURE)
        assert store.finish(["c0"]).environment.python == "3.11"  # that of the first start
    assert names(tmp_path) == ["c0", "c1", "c2"]


def test_a_cell_that_is_added_again_replaces_the_first(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0", status="failed: no memory", scores=None))
        store.add(cell("c1"), PICTURE)
        store.add(cell("c0"), PICTURE)
    assert [(c.id, c.status) for c in read_run(tmp_path).cells] == [("c0", "ok"), ("c1", "ok")]


def test_clips_are_rounded_and_clamped(tmp_path: Path) -> None:
    values = torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 7.0]).view(1, 1, 1, 1, 6)
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add_clips(values)
    assert np.load(tmp_path / "clips.npy", allow_pickle=False).flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_holds_no_nan(value: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        cell("c0", scores={"psnr_db": value})
    with pytest.raises(ValueError, match="finite number"):
        cell("c0", defense={"settings": {"strength": value}})


# --- folders that are refused -----------------------------------------------------------------------------


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"out=.*file is a file; give a folder"):
        FolderStore(tmp_path / "file").open(HEADER)
    with pytest.raises(InputError, match="cannot be used: Not a directory; give another folder"):
        FolderStore(tmp_path / "file" / "below").open(HEADER)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "cells.jsonl", "results.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"holds something that is not a run of vleak; give a new folder$"):
        FolderStore(tmp_path).open(HEADER)
    assert files(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON, it is truncated or damaged"),
        ("[]", "holds a list, expected the object that"),
        ('"text"', "holds a str"),
        ("{}", r"environment is missing \(and 3 more fields\)"),
        ('{"schema_version": 3}', "schema_version is 3, this vleak reads up to 2; update vleak"),
    ],
)
def test_a_strange_header_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=f"run.json.*{message}"):
        FolderStore(tmp_path).open(HEADER)
    assert files(tmp_path) == {"run.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"seed": 7}}, r"settings seed is 0 there and 7 here"),
        ({"settings": {"data": "film.mp4", "seed": 7}}, r"settings data is 'synthetic' there and 'film.mp4'"),
        ({"data": {"sha256": "c"}}, r"data sha256 is 'a' there and 'c' here"),
        ({"model": {"weights_sha256": "x"}}, r"its models are others"),
        ({"environment": {"vleak": "2"}}, r"its version of vleak is '1' there and '2' here"),
    ],
)
def test_another_run_is_named_by_the_first_difference(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    filled(tmp_path, 1)
    before = (tmp_path / "cells.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"out=.* holds another run: {message}.*give another folder"):
        FolderStore(tmp_path).open(make_header(**changes))
    assert (tmp_path / "cells.jsonl").read_bytes() == before
    filled(tmp_path, 1)  # and the refusal let go of the lock


def test_settings_are_compared_before_anything_else_is_known(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    FolderStore(tmp_path).check(HEADER.settings)
    with pytest.raises(InputError, match="settings seed is 0 there and 7 here"):
        FolderStore(tmp_path).check(make_header(settings={"seed": 7}).settings)
    FolderStore(tmp_path / "new").check(HEADER.settings)
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        with pytest.raises(VleakError, match="is in use by another run; wait for it, or give another `out`"):
            FolderStore(tmp_path).open(HEADER)
        store.add(cell("c0"), PICTURE)
    filled(tmp_path, 2)
    assert names(tmp_path) == ["c0", "c1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be used: Permission denied; give another folder"):
            FolderStore(tmp_path / "run").open(HEADER)
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
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c2", seed=5), PICTURE)
    assert names(tmp_path) == ["c0", "c1", "c2"]
    assert read_run(tmp_path).cells[2].seed == 5


def test_full_disk_in_the_journal_leaves_whole_lines(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        length = (tmp_path / "cells.jsonl").stat().st_size
        message = r"1 finished cells are safe, free space and start it again with out="
        with longest_file(length + 30), pytest.raises(VleakError, match=message) as caught:
            store.add(cell("c1"))
        assert len(str(caught.value).splitlines()) == 1
        assert (tmp_path / "cells.jsonl").stat().st_size == length
        assert names(tmp_path) == ["c0"]
        assert list(store.cells) == ["c0"]
        store.add(cell("c2"), PICTURE)
    assert names(tmp_path) == ["c0", "c2"]


def test_full_disk_in_a_picture_leaves_no_cell(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        before = files(tmp_path)
        with longest_file(100), pytest.raises(VleakError, match="1 finished cells are safe"):
            store.add(cell("c1"), PICTURE)
        assert files(tmp_path) == before
    assert names(tmp_path) == ["c0"]


def test_no_space_is_said_as_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FolderStore(tmp_path).open(HEADER) as store:
        monkeypatch.setattr(os, "fsync", full)
        for picture in (PICTURE, None):
            with pytest.raises(VleakError, match=r"No space left on device; 0 finished cells are safe"):
                store.add(cell("c0"), picture)
        with pytest.raises(VleakError, match=r"cannot write .*results.json: No space left on device; free"):
            store.finish([])
    monkeypatch.undo()
    assert read_run(tmp_path).cells == ()
    assert not (tmp_path / "results.json").exists()


# --- reading ----------------------------------------------------------------------------------------------


def test_results_of_a_killed_run_come_from_its_journal(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    found = read_run(tmp_path)
    assert (found.schema_version, found.settings) == (2, HEADER.settings)
    assert found.planned_cells is None  # the journal does not know it
    assert [record.flags for record in found.cells] == [(NO_BETTER,), (NO_BETTER,)]


def test_the_journal_counts_where_a_resumed_run_was_killed(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.finish(["c0", "c1"])
        store.add(cell("c1"), PICTURE)
    assert names(tmp_path) == ["c0", "c1"]
    assert read_run(tmp_path).planned_cells == 2


@pytest.mark.parametrize("path", ["missing", "empty"])
def test_what_is_no_run(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    expected = {"missing": "does not exist", "empty": "holds no run"}[path]
    with pytest.raises(InputError, match=f"{path} {expected}.*; give "):
        read_run(tmp_path / path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON, it is truncated or damaged"),
        (b"\xff", "cannot be read"),
        (b"[]", "a list"),
    ],
)
def test_damaged_results(tmp_path: Path, content: bytes, message: str) -> None:
    filled(tmp_path, 1)
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=f"results.json.*{message}"):
        read_run(tmp_path)


def edited(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """JSON with one field changed, or removed where the value is ``...``."""
    part: Any = content
    *parents, last = path.split(".")
    for name in parents:
        part = part[int(name)] if name.isdigit() else part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return content


EDITS: list[tuple[str, Any, str]] = [
    ("cells.0.scores.psnr_db", "high", 'cells.0.scores.psnr_db is "high", expected a valid number'),
    ("cells.0.clip_index", -1, "cells.0.clip_index is -1, expected greater than or equal to 0"),
    ("cells.0.attack.name", ..., "cells.0.attack.name is missing"),
    ("cells.0.attack.nane", "x", "cells.0.attack.nane is no field that this vleak knows"),
    ("cells.0.knowledge.labels", "known", "cells.0.knowledge.labels is \"known\", expected 'inferred' or"),
    ("cells.0.update.bytes", 1.5, "cells.0.update.bytes is 1.5, expected a valid integer"),
    ("cells.0.status", "done", 'cells.0.status is "done", expected'),
    ("planned_cells", -1, "planned_cells is -1, expected greater than or equal to 0"),
    ("settings", None, "settings is null, expected"),
    ("cells", {}, "cells is {}, expected a valid tuple"),
    ("schema_version", 3, "schema_version is 3, this vleak reads up to 2; update vleak to read it"),
    ("schema_version", 0, "schema_version is 0, expected a number from 1 to 2"),
    ("schema_version", ..., "schema_version is None, expected a number from 1 to 2"),
]


@pytest.mark.parametrize(("path", "value", "message"), EDITS)
def test_an_edited_file_is_refused_by_file_field_and_expectation(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.finish(["c0"])
    file = tmp_path / "results.json"
    file.write_text(json.dumps(edited(json.loads(file.read_text()), path, value)))
    with pytest.raises(InputError) as caught:
        read_run(tmp_path)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_two_cells_of_one_id_are_refused(tmp_path: Path) -> None:
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("c0"), PICTURE)
        store.finish(["c0"])
    file = tmp_path / "results.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"cells": content["cells"] * 2}))
    with pytest.raises(InputError, match="expected one cell of each id, got 'c0' twice"):
        read_run(tmp_path)


def test_an_edited_line_of_the_journal_is_named(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    journal = tmp_path / "cells.jsonl"
    journal.write_text(journal.read_text().replace('"id": "c1"', '"id": "c1", "extra": 1'))
    with pytest.raises(InputError, match=r"cells.jsonl, line 2: extra is no field that this vleak knows"):
        read_run(tmp_path)


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
    with FolderStore(tmp_path).open(HEADER) as store:
        store.add(cell("ε"), PICTURE)
        store.finish(["ε"])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["cells"][0]["id"] == "ε"
