"""One file of features: an .npy array or rows of text. The files are not trusted.

Nothing is unpickled: the header of an .npy is parsed here, and the size that it claims is compared with the
length of the file before a byte is allocated.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vleak.data.lists import is_number, read_text
from vleak.data.tree import printable, suffix
from vleak.errors import InputError

MAX_FEATURES = 2**17  # columns
MAX_MATRIX_BYTES = 2**31  # one file, as float32
MAX_TEXT_BYTES = 2**28
MAX_HEADER_BYTES = 2**16
_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Layout:
    """Where the crops of an array (three axes) are: on the first axis, (crops, T, F), or the second.

    Attributes:
        axis: 0 or 1.
        crops: their number.
    """

    axis: int
    crops: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape can have the layout."""
        return len(shape) == 3 and shape[self.axis] == self.crops

    def __str__(self) -> str:
        """Return the layout in words."""
        if self.crops == 1:
            return "(1, T, F)" if self.axis == 0 else "(T, 1, F)"
        return f"({self.crops} crops, T, F)" if self.axis == 0 else f"(T, {self.crops} crops, F)"


LAYOUTS = (Layout(0, 1), Layout(1, 1), Layout(1, 5), Layout(1, 10), Layout(0, 5), Layout(0, 10))
"""Layouts of arrays with three axes; of several that fit, the first is taken."""


def shared_layout(shapes: Iterable[tuple[int, ...]]) -> tuple[Layout | None, list[Layout]]:
    """Return the layout that most arrays of three axes can have, and others that as many can have.

    Args:
        shapes: of the arrays; those with other than three axes are left out.
    """
    deep = [shape for shape in shapes if len(shape) == 3]
    votes = {layout: sum(layout.fits(shape) for shape in deep) for layout in LAYOUTS}
    most = max(votes.values())
    if not most:
        return None, []
    best, *others = [layout for layout in LAYOUTS if votes[layout] == most]
    return best, others


def array_shape(path: Path, shown: str) -> tuple[int, ...]:
    """Return the shape that the header of an .npy claims; () where the file cannot be read.

    The error is raised where the file is read.
    """
    try:
        return _array(path, shown).shape
    except InputError:
        return ()


def read_features(path: Path, shown: str, layout: Layout | None) -> tuple[NDArray[np.float32], str]:
    """Return the matrix (T, F) of one file, float32 and finite, and its layout in the file in words.

    Args:
        path: the file.
        shown: its name in messages.
        layout: of arrays with three axes in the same source; None where none of them fits any.

    Raises:
        InputError: the file is empty, damaged, no matrix of numbers, of another size than its header
            claims, of another layout, or exceeds a limit.
    """
    if suffix(path.name) == ".npy":
        stored, words = _crop(_array(path, shown), layout, shown)
    else:
        stored, words = _text(path, shown), "text rows"
    if stored.shape[1] > MAX_FEATURES or 4 * stored.size > MAX_MATRIX_BYTES:
        raise InputError(
            f"{shown}: {stored.shape[0]} rows of {stored.shape[1]} columns, the limits are {MAX_FEATURES} "
            f"columns and {MAX_MATRIX_BYTES / 2**30:.0f} GiB"
        )
    with np.errstate(over="ignore"):
        matrix = np.array(stored, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{shown}: row {row + 1}, column {column + 1}: {stored[row, column]} is no finite number; "
            f"remove or extract it again"
        )
    return matrix, words


def _crop(array: NDArray[np.floating], layout: Layout | None, shown: str) -> tuple[NDArray[np.floating], str]:
    """Return the first crop of an array, (T, F), and the layout of the array in words."""
    if array.ndim == 2:
        return array, "rows (T, F)"
    if layout is not None and layout.fits(array.shape):
        first_used = ", the first crop used" if layout.crops > 1 else ""
        return array[:, 0] if layout.axis else array[0], f"{layout}{first_used}"
    others = f" as most of the other files, which are {layout}" if layout is not None else ""
    raise InputError(
        f"{shown}: shape {array.shape}; expected (T, F), or with 1, 5 or 10 crops (T, crops, F) or "
        f"(crops, T, F){others}"
    )


def _array(path: Path, shown: str) -> NDArray[np.floating]:
    """Return an .npy file as a memory map, after checking that its header and its length agree."""
    try:
        length = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(12)
            size, at = _header_size(start, length, shown)
            stream.seek(at)
            header = stream.read(size)
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from error
    kind, fortran, shape = _header(header, shown)
    expected = at + size + kind.itemsize * math.prod(shape)
    if expected != length:
        raise InputError(
            f"{shown}: its header claims {'x'.join(map(str, shape))} of {kind.name}, {expected} bytes, the "
            f"file has {length}; it is damaged or cut off: fetch it again"
        )
    return np.memmap(path, kind, "r", at + size, shape, "F" if fortran else "C")


def _header_size(start: bytes, length: int, shown: str) -> tuple[int, int]:
    """Return length and offset of the header of an .npy, in bytes."""
    if not length:
        raise InputError(f"{shown}: an empty file; expected an .npy array")
    if len(start) < 12 or not start.startswith(_MAGIC) or start[6] not in (1, 2, 3):
        raise InputError(f"{shown}: is no .npy array, or damaged at its start")
    size, at = (
        (struct.unpack("<H", start[8:10])[0], 10)
        if start[6] == 1
        else (struct.unpack("<I", start[8:])[0], 12)
    )
    if size > MAX_HEADER_BYTES or at + size > length:
        raise InputError(f"{shown}: its header claims {size} bytes; it is damaged: fetch it again")
    return size, at


def _header(header: bytes, shown: str) -> tuple[np.dtype[np.floating], bool, tuple[int, ...]]:
    """Return dtype, Fortran order and shape from the header of an .npy, which is a Python literal."""
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{shown}: its header cannot be read; it is damaged: fetch it again") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{shown}: its header is not that of an .npy array; it is damaged: fetch it again")
    kind, shape = fields["descr"], fields["shape"]
    if not isinstance(kind, str) or not re.fullmatch(r"[<>=]f[248]", kind):
        what = "Python objects" if kind in ("|O", "O") else f"type {printable(str(kind)[:40])}"
        raise InputError(
            f"{shown}: holds {what}; expected float16, float32 or float64: save the array itself"
        )
    if (
        not isinstance(shape, tuple)
        or not shape
        or any(type(length) is not int or length < 1 for length in shape)
    ):
        raise InputError(
            f"{shown}: its header claims shape {printable(str(shape)[:40])}; expected rows of numbers"
        )
    return np.dtype(kind), fields["fortran_order"] is True, shape


def _text(path: Path, shown: str) -> NDArray[np.float64]:
    """Return the rows of numbers of a text file, separated by blanks or commas."""
    rows: list[NDArray[np.float64]] = []
    for number, line in enumerate(read_text(path, shown, MAX_TEXT_BYTES).splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        if rows and len(words) != len(rows[0]):
            raise InputError(
                f"{shown}: line {number} has {len(words)} columns, expected {len(rows[0])} as in the first; "
                f"the file is damaged or cut off"
            )
        rows.append(np.array(_numbers(words, number, shown)))
    if not rows:
        raise InputError(f"{shown}: an empty file; expected rows of numbers")
    return np.stack(rows)


def _numbers(words: Sequence[str], line: int, shown: str) -> list[float]:
    try:
        if not any("_" in word for word in words):  # float() parses 01_0014 as a number
            return [float(word) for word in words]
    except ValueError:
        pass  # reported below, with line and column
    wrong = next(index for index, word in enumerate(words) if not is_number(word))
    raise InputError(
        f"{shown}: line {line}, column {wrong + 1}: {words[wrong][:40]!r} is no number; expected rows "
        f"of numbers"
    )
