"""Defenses as text: ``dp`` is a sweep, ``dp:noise_multiplier=0.5`` one strength, ``dp+prune`` two of them."""

from __future__ import annotations

import inspect
import itertools
import re
from dataclasses import MISSING, Field, fields
from typing import Any

from vleak.defenses.censor import Censor
from vleak.defenses.composite import Composite
from vleak.defenses.compress import Compress
from vleak.defenses.data import HeldFrames, Mixup, MotionBlur
from vleak.defenses.dgc import Dgc
from vleak.defenses.dp import DpSgd
from vleak.defenses.dp_adaptive import DpAdaptive, DpClientAdaptive
from vleak.defenses.dp_client import DpClient
from vleak.defenses.dp_hooks import DpHooks
from vleak.defenses.dp_variants import DpLayers, DpVideo
from vleak.defenses.flower import FlowerClipping, FlowerLocalDp
from vleak.defenses.lookalikes import Lookalikes
from vleak.defenses.lowrank import PowerSgd
from vleak.defenses.noise import Noise, OptimalNoise, Outpost
from vleak.defenses.none import NoDefense
from vleak.defenses.nvflare import NvflarePercentile, NvflareSvt
from vleak.defenses.oasis import Oasis
from vleak.defenses.precode import Precode
from vleak.defenses.protocol import SecureSum, WeakMasks
from vleak.defenses.prune import Prune, PruneDual
from vleak.defenses.representation import Soteria
from vleak.errors import InputError, VleakError, first_line, interrupts, require
from vleak.federated import Defense
from vleak.registry import Entry, Registry, Setting, split_reference, write_reference

DEFENSES: Registry[Defense] = Registry(
    "defense",
    {
        kind.name: kind
        for kind in (
            NoDefense,
            DpSgd,
            DpClient,
            Prune,
            PruneDual,
            Dgc,
            Compress,
            PowerSgd,
            Noise,
            OptimalNoise,
            Outpost,
            Censor,
            NvflarePercentile,
            NvflareSvt,
            FlowerClipping,
            FlowerLocalDp,
            Mixup,
            HeldFrames,
            MotionBlur,
            Oasis,
            Soteria,
            Precode,
            Lookalikes,
            WeakMasks,
            SecureSum,
            DpLayers,
            DpVideo,
            DpHooks,
            DpAdaptive,
            DpClientAdaptive,
        )
    },
    base=Defense,
)
"""Every defense by the name that the command line takes."""
_JOINT = re.compile(r"\+(?=[^0-9])")
"""Between two defenses; 1e+16 is a number."""


def parse_defenses(defense: str | Defense) -> list[Defense]:
    """Return the strengths that a text asks for, weakest first, or the defense itself.

    Args:
        defense: ``NAME`` alone for the sweep of that defense, ``NAME:key=value,...`` for one strength, where
            settings left out have their defaults; NAME may be ``package.module:Class``; several joined by
            "+" act one after the other, and of names alone among them the first sweeps. Or an object.

    Raises:
        InputError: unknown name or setting (the nearest are named), a value that does not fit, a plug-in that
            cannot be used, or defenses that do not go together.
    """
    if isinstance(defense, Defense):
        return [defense]
    require("defense", defense, str, "a text such as 'dp:noise_multiplier=1', or an object of vleak.Defense")
    parts = _JOINT.split(defense)
    if len(parts) > 1:
        return _composites(parts)
    reference = DEFENSES.parse(defense)
    if defense != split_reference(defense)[0] or not inspect.isclass(reference.entry.factory):
        return [reference.build()]
    return _sweep(reference.entry)


def defense_text(defense: Defense) -> str:
    """Return the text that makes this defense again: its name and every setting that is not the default.

    A defense with settings always shows one, because its name alone asks for a sweep. One that no name of
    `DEFENSES` finds is called ``module:Class``.

    Raises:
        InputError: a setting is no number, word or switch, so that no text can give it.
    """
    if isinstance(defense, Composite):
        return "+".join(map(defense_text, defense.stages))
    values: dict[str, Setting] = {f.name: getattr(defense, f.name) for f in fields(defense)}
    for key, value in values.items():
        if type(value) not in (int, float, str, bool):
            raise InputError(
                f"defense {type(defense).__name__}: setting {key} is {type(value).__name__}, expected a "
                "number, a word, true or false, which a record can keep; make it of such settings"
            )
    shown = [f.name for f in fields(defense) if values[f.name] != _default(f)] or list(values)[:1]
    return write_reference(reference_name(type(defense)), {key: values[key] for key in shown})


def reference_name(kind: type[Defense]) -> str:
    """Return the name that finds a class of defenses: that of `DEFENSES`, else ``module:Class``.

    Raises:
        InputError: the class has the name of another defense.
    """
    if kind.name not in DEFENSES:
        return f"{kind.__module__}:{kind.__qualname__}"
    if DEFENSES.find(kind.name).factory is not kind:
        raise InputError(
            f"defense {kind.__name__} ({kind.__module__}:{kind.__qualname__}) has the name {kind.name!r} of "
            'another defense; set name = "..." in the class to one of its own'
        )
    return kind.name


def _composites(parts: list[str]) -> list[Defense]:
    """Return the strengths of defenses that act one after the other."""
    choices = [parse_defenses(part) for part in parts]
    sweeping = [place for place, strengths in enumerate(choices) if len(strengths) > 1]
    for place in sweeping[1:]:
        choices[place] = [DEFENSES.parse(parts[place]).build()]
    return [Composite(stages=stages) for stages in itertools.product(*choices)]


def _sweep(entry: Entry[Defense]) -> list[Defense]:
    kind: Any = entry.factory
    try:
        strengths = list(kind.sweep())
    except VleakError:
        raise
    except BaseException as error:
        if interrupts(error):
            raise
        line = first_line(error)
        raise InputError(
            f"defense {entry.name!r} ({entry.origin}): sweep raised {type(error).__name__}: {line}"
        ) from error
    if not strengths or not all(isinstance(strength, Defense) for strength in strengths):
        raise InputError(
            f"defense {entry.name!r} ({entry.origin}): sweep returned {strengths!r:.80}, expected defenses"
        )
    return strengths


def _default(field: Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default
