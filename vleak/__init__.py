"""vleak: the red team for federated video learning.

A client sends a model update instead of its video; vleak rebuilds what it can from the update,
with each defense in place, and reports what still leaks. Names load on first use, so that
``import vleak`` is quick and the command line can answer Ctrl-C from its first moment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vleak.api import Run, evaluate, load_run
    from vleak.attacks import ATTACKS, Attack, FeatureInversion, Knowledge, Observation, Reconstruction
    from vleak.data import ClipSet, FeatureSet, clip_set, load_clips, load_data
    from vleak.defenses import DEFENSES
    from vleak.enhance import enhance
    from vleak.evaluation import Settings
    from vleak.federated import Client, Defense, LocalTraining, PublicFacts, Update, load_update
    from vleak.frameworks import Watch, watch
    from vleak.guarding import Decision, guard, inspect_model
    from vleak.models import EXTRACTORS, HEADS, MODELS, build_extractor, build_head, build_model
    from vleak.objects import named
    from vleak.regression import Baseline, Night, make_baseline, read_baseline, regress, write_baseline
    from vleak.report import write_audit, write_report, write_study
    from vleak.study import Study, run_study
    from vleak.update_audit import Audit, audit

    __version__: str

_HOMES = {
    "ATTACKS": "attacks",
    "Attack": "attacks",
    "Baseline": "regression",
    "Audit": "update_audit",
    "FeatureInversion": "attacks",
    "Knowledge": "attacks",
    "Observation": "attacks",
    "Reconstruction": "attacks",
    "ClipSet": "data",
    "FeatureSet": "data",
    "clip_set": "data",
    "load_clips": "data",
    "load_data": "data",
    "DEFENSES": "defenses",
    "enhance": "enhance",
    "Settings": "evaluation",
    "Study": "study",
    "Run": "api",
    "Night": "regression",
    "evaluate": "api",
    "load_run": "api",
    "make_baseline": "regression",
    "named": "objects",
    "read_baseline": "regression",
    "regress": "regression",
    "run_study": "study",
    "Client": "federated",
    "Defense": "federated",
    "LocalTraining": "federated",
    "PublicFacts": "federated",
    "Update": "federated",
    "load_update": "federated",
    "Decision": "guarding",
    "guard": "guarding",
    "inspect_model": "guarding",
    "EXTRACTORS": "models",
    "HEADS": "models",
    "MODELS": "models",
    "build_extractor": "models",
    "build_head": "models",
    "build_model": "models",
    "write_baseline": "regression",
    "Watch": "frameworks",
    "audit": "update_audit",
    "watch": "frameworks",
    "write_audit": "report",
    "write_report": "report",
    "write_study": "report",
}

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "EXTRACTORS",
    "HEADS",
    "MODELS",
    "Attack",
    "Audit",
    "Baseline",
    "Client",
    "ClipSet",
    "Decision",
    "Defense",
    "FeatureInversion",
    "FeatureSet",
    "Knowledge",
    "LocalTraining",
    "Night",
    "Observation",
    "PublicFacts",
    "Reconstruction",
    "Run",
    "Settings",
    "Study",
    "Update",
    "Watch",
    "audit",
    "build_extractor",
    "build_head",
    "build_model",
    "clip_set",
    "enhance",
    "evaluate",
    "guard",
    "inspect_model",
    "load_clips",
    "load_data",
    "load_run",
    "load_update",
    "make_baseline",
    "named",
    "read_baseline",
    "regress",
    "run_study",
    "watch",
    "write_audit",
    "write_baseline",
    "write_report",
    "write_study",
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
