"""Files of entries: written whole, and checked in every respect when they are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from vleak.errors import InputError, argument
from vleak.files import check_output, write_atomic
from vleak.results.reading import read_json, validate
from vleak.suite.admission import refusals_of
from vleak.suite.frozen import PROTOCOLS
from vleak.suite.protocol import Protocol
from vleak.suite.records import ENTRY_VERSION, Entry, EntryContent

__all__ = ["entry_name", "finished_entry", "read_entries", "read_entry", "write_entry"]

_REMEDY = "give an entry, a file that `vleak suite --defense NAME` wrote"
_LONGEST = 120  # characters of a name, which every file system takes


def finished_entry(content: EntryContent) -> Entry:
    """Entry with its refusals and its digest."""
    fields = {name: getattr(content, name) for name in EntryContent.model_fields}
    refusals = refusals_of(content)
    entry = Entry(**fields, refusals=refusals, admitted=not refusals, content_sha256="")
    return entry.model_copy(update={"content_sha256": _digest(entry)})


def _digest(entry: Entry) -> str:
    """Digest of all fields but itself, to which optional fields of later versions add nothing."""
    content = entry.model_dump(mode="json", exclude_defaults=True, exclude={"content_sha256"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def entry_name(defense: str, attack: str | None = None) -> str:
    """Name of the file of an entry, such as ``dp-noise_multiplier-0.5.json``.

    Args:
        defense: text of the defense. attack: text of an attack from outside; None for that of the protocol.
    """
    parts = [re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") for text in (defense, attack) if text]
    return "--by-".join(parts)[:_LONGEST] + ".json"


def write_entry(entry: Entry, path: Path | str) -> Path:
    """Write an entry whole or not at all; return its path.

    Raises:
        InputError: the path is something else than a file, or its folder does not exist.
        VleakError: the disk is full or the folder cannot be written.
    """
    path = check_output("out", path)
    content = json.dumps(entry.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, content + "\n")
    return path


def read_entry(path: Path | str, protocols: Mapping[str, Protocol] = PROTOCOLS) -> Entry:
    """Read an entry and check it: schema, protocol, digest, and that its verdict follows from its figures.

    Args:
        path: of the file.
        protocols: that it may be of, by name.

    Raises:
        InputError: no such file, truncated or other JSON, another schema or protocol, or edited figures.
    """
    path = Path(path)
    content = read_json(path, _REMEDY)
    if content.get("kind") != "vleak suite entry":
        raise InputError(f"{path} holds no entry of the suite; {_REMEDY}")
    version = content.get("schema_version")
    if version != ENTRY_VERSION:
        newer = isinstance(version, int) and version > ENTRY_VERSION
        raise InputError(
            f"{path}: schema_version is {version!r}, this vleak reads {ENTRY_VERSION}; "
            + ("update vleak" if newer else "make it again")
        )
    entry = validate(Entry, content, str(path))
    _check_protocol(entry, path, protocols)
    if entry.content_sha256 != _digest(entry):
        raise InputError(f"{path}: its figures are not those of its digest, it was edited; make it again")
    if entry.refusals != refusals_of(entry) or entry.admitted != (not entry.refusals):
        raise InputError(
            f"{path}: whether it is admitted does not follow from its figures by the rules of this vleak; "
            "make it again"
        )
    return entry


def _check_protocol(entry: Entry, path: Path, protocols: Mapping[str, Protocol]) -> None:
    protocol = protocols.get(entry.protocol)
    if protocol is None:
        raise InputError(
            f"{path}: is of the protocol {entry.protocol!r}, expected {' or '.join(protocols)}; make it "
            "again, or take the vleak that has this protocol"
        )
    if entry.protocol_sha256 != protocol.sha256:
        raise InputError(
            f"{path}: was made with another version of {entry.protocol} than this vleak has; make it again"
        )
    names = tuple(situation.name for situation in protocol.situations)
    if tuple(figures.name for figures in entry.situations) != names or len(entry.clips) != protocol.clips:
        raise InputError(
            f"{path}: expected the situations {', '.join(names)} of {protocol.clips} clips; make it again"
        )


def read_entries(folder: Path | str, protocol: Protocol) -> list[Entry]:
    """Read all entries of a folder, in the order of their file names.

    One that cannot be read ends it: a leaderboard without it would say that nobody made it.

    Raises:
        InputError: no folder, no entry in it, or one that `read_entry` refuses; names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{argument('leaderboard', folder)}: is no folder; give that of the entries")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(
            f"{argument('leaderboard', folder)}: holds no entry, no file *.json; make one with "
            "`vleak suite --defense NAME -o FILE`"
        )
    return [read_entry(path, {protocol.name: protocol}) for path in paths]
