"""Reading of older records: one explicit step from each schema version to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vleak.errors import InputError
from vleak.results.base import JsonObject
from vleak.results.records import SCHEMA_VERSION

__all__ = ["migrate"]

_BASELINES = ("grey", "public_mean", "reference_still", "reference_mean")
"""Names of the baselines of version 1, whose records did not say which attackers are baselines."""
_COUNTERPARTS = {"matching_blind": "matching"}
"""Non-adaptive attacks of version 1, each with its adaptive form."""
_FLAGS = {"no better than the prior": "no better than the best baseline"}
"""Flags of version 1 by what they are called now."""
_SETTINGS: JsonObject = {
    "pipeline": "raw", "extractor": "c3d_small", "head": "mlp", "loss": "bce", "stride": 2, "segments": 32,
    "reference_frames": [0], "enhance": "none",
}  # fmt: skip
"""Settings that version 1 did not always have, with what then ran."""
_MODEL: JsonObject = {"pipeline": "raw", "train_accuracy": None, "held_out_accuracy": None}


def migrate(content: JsonObject, source: str) -> JsonObject:
    """Return records of any known version as those of the current one.

    Args:
        content: a run, or the part of it that is known: header, cells, or both. It is not changed.
        source: file that it was read from, for messages.

    Raises:
        InputError: no version, or one that this vleak does not know.
    """
    version = content.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise InputError(
            f"{source}: schema_version is {version}, this vleak reads up to {SCHEMA_VERSION}; "
            "update vleak to read it"
        )
    if not isinstance(version, int) or version not in {*_STEPS, SCHEMA_VERSION}:
        raise InputError(
            f"{source}: schema_version is {version!r}, expected a number from {min(_STEPS)} to "
            f"{SCHEMA_VERSION}; give the folder of a run"
        )
    while version < SCHEMA_VERSION:
        content, version = _STEPS[version](content), version + 1
    return {**content, "schema_version": SCHEMA_VERSION}


def _from_1(content: JsonObject) -> JsonObject:
    """Name baselines and say by fields which attackers are baselines, and which do not know the defense."""
    content = dict(content)
    versions = content.pop("versions", None)
    if isinstance(versions, dict) and isinstance(content.get("environment"), dict):
        content["environment"] = versions | content["environment"]
    if isinstance(content.get("settings"), dict):
        content["settings"] = _SETTINGS | content["settings"]
    if isinstance(content.get("models"), list):
        content["models"] = [_MODEL | m if isinstance(m, dict) else m for m in content["models"]]
    if isinstance(cells := content.get("cells"), list):
        names = {*_BASELINES, *_named_baselines(cell for cell in cells if isinstance(cell, dict))}
        content["cells"] = [_cell_from_1(cell, names) if isinstance(cell, dict) else cell for cell in cells]
    return content


def _named_baselines(cells: Iterable[JsonObject]) -> Iterable[str]:
    """Names of the attackers whose answers stand in the scores as baselines."""
    for cell in cells:
        scores = cell.get("scores")
        baselines = scores.get("null") if isinstance(scores, dict) else None
        yield from baselines if isinstance(baselines, dict) else ()


def _cell_from_1(cell: JsonObject, baselines: set[str]) -> JsonObject:
    cell = {"pipeline": "raw"} | cell
    if isinstance(attack := cell.get("attack"), dict):
        name = attack.get("name")
        facts = {
            "baseline": name in baselines,
            "counterpart": _COUNTERPARTS.get(str(name)),
            "defense_knowledge": "channel" if attack.get("adaptive") is True else "none",
        }
        cell["attack"] = facts | attack
    if isinstance(flags := cell.get("flags"), list):
        cell["flags"] = [_FLAGS.get(str(flag), flag) for flag in flags]
    if isinstance(scores := cell.get("scores"), dict):
        scores = _renamed(scores, {"null": "baselines", "best_null": "best_baseline",
                                   "null_identified": "baseline_identified"})  # fmt: skip
        if isinstance(segments := scores.get("segments"), dict):
            names = {"null": "baselines", "best_null": "best_baseline", "null_exact": "baseline_exact"}
            scores["segments"] = _renamed(segments, names)
        cell["scores"] = scores
    return cell


def _renamed(record: JsonObject, names: dict[str, str]) -> JsonObject:
    return {names.get(key, key): value for key, value in record.items()}


_STEPS: dict[int, Callable[[JsonObject], JsonObject]] = {1: _from_1}
"""By version, the step to the next."""
