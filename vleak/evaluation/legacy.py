"""Stores of typed cells on top of the store of version 1, until the typed stores replace it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vleak.results.flags import mark
from vleak.results.records import Cell, RunHeader
from vleak.results.store import Store, check_folder, write_clips

_NAMES = {
    "baselines": "null",
    "best_baseline": "best_null",
    "baseline_identified": "null_identified",
    "baseline_exact": "null_exact",
}


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_NAMES.get(k, k): _renamed(v) for k, v in value.items()}
    return value


class RunStore(Protocol):
    cells: Mapping[str, Any]

    def check(self, settings: Any) -> None: ...
    def open(self, header: RunHeader) -> Any: ...


class _Ok:
    def __init__(self, ok: bool) -> None:
        self.ok = ok


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, settings: Any) -> None:
        check_folder(self.folder, settings)

    def open(self, header: RunHeader) -> Any:
        content = json.loads(json.dumps(header.model_dump()))
        content["versions"] = {k: content["environment"][k] for k in ("vleak", "torch")}
        content["settings"].pop("metrics")
        self.store = Store(self.folder, content)
        return self

    @property
    def cells(self) -> Any:
        return {k: _Ok(c["status"] == "ok") for k, c in self.store.cells.items()}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *a: Any) -> None:
        self.store.__exit__(*a)

    def add_clips(self, clips: Tensor) -> None:
        write_clips(self.folder / "clips.npy", clips)

    def add(self, cell: Cell, picture: Tensor | None = None, enhanced: Tensor | None = None) -> None:
        record = json.loads(json.dumps(cell.model_dump()))
        if record["scores"] is not None:
            record["scores"] = _renamed(record["scores"])
            record["scores"].pop("metrics")
        if picture is None:
            self.store.add_without_picture(record)
        else:
            self.store.add(record, picture, enhanced)

    def finish(self, order: Sequence[str]) -> Any:
        results = self.store.results(list(order))
        mark(results["cells"])
        self.store.write_results(results)
        return results


class MemoryStore(FolderStore):
    def __init__(self) -> None:
        raise NotImplementedError
