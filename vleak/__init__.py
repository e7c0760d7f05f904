"""vleak: the red team for federated video learning.

A client sends a model update instead of its video; vleak rebuilds what it can from the update,
with each defense in place, and reports what still leaks. Names load on first use, so that
``import vleak`` is quick and the command line can answer Ctrl-C from its first moment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vleak.attacks import ATTACKS, Attack, Knowledge, Observation, Reconstruction
    from vleak.data import ClipSet, load_clips
    from vleak.defenses import DEFENSES
    from vleak.evaluation import Settings, evaluate
    from vleak.federated import Client, Defense, Update
    from vleak.models import MODELS, build_model
    from vleak.report import write_report

    __version__: str

_HOMES = {
    "ATTACKS": "attacks",
    "Attack": "attacks",
    "Knowledge": "attacks",
    "Observation": "attacks",
    "Reconstruction": "attacks",
    "ClipSet": "data",
    "load_clips": "data",
    "DEFENSES": "defenses",
    "Settings": "evaluation",
    "evaluate": "evaluation",
    "Client": "federated",
    "Defense": "federated",
    "Update": "federated",
    "MODELS": "models",
    "build_model": "models",
    "write_report": "report",
}

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "MODELS",
    "Attack",
    "Client",
    "ClipSet",
    "Defense",
    "Knowledge",
    "Observation",
    "Reconstruction",
    "Settings",
    "Update",
    "build_model",
    "evaluate",
    "load_clips",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'vleak' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vleak.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vleak")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
