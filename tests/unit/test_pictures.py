"""Pictures of a run: .npy files of bytes that are checked before they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vleak.errors import InputError
from vleak.results.pictures import read_array
from vleak.seeds import generator


def test_read_array_gives_what_was_saved(tmp_path: Path) -> None:
    clip = torch.randint(0, 256, (3, 2, 4, 5), generator=generator("bytes"), dtype=torch.uint8).numpy()
    np.save(tmp_path / "a.npy", clip)
    assert np.array_equal(read_array(tmp_path, "a.npy"), clip)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
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


def test_pickles_other_types_and_escapes_are_refused(tmp_path: Path) -> None:
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
