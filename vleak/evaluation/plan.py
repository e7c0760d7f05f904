"""Plan of a run: its cells in order, each with its id."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vleak.attacks import ATTACKS, NULL_ATTACKS, Attack
from vleak.defenses import Defense, spell
from vleak.evaluation.settings import Settings
from vleak.pipelines import Case, Pipeline
from vleak.results.records import Setting

__all__ = ["PlannedCell", "plan"]


@dataclass(frozen=True)
class PlannedCell:
    """One cell and the pipeline that it is of."""

    pipeline: Pipeline
    case: Case


@dataclass(frozen=True)
class _Attack:
    """An attack ready to run, the text that stands for it in ids, and its settings in records."""

    text: str
    name: str
    attack: Attack
    settings: Mapping[str, Setting] = field(default_factory=dict)
    baseline: bool = False


def plan(settings: Settings, pipelines: Sequence[Pipeline]) -> list[PlannedCell]:
    """Cells of a run: of every pipeline the baselines, then every defense and attack, clip by clip.

    Args:
        settings: of the run.
        pipelines: in the order in which they run.
    """
    return [cell for pipeline in pipelines for cell in _cells(settings, pipeline)]


def _cells(settings: Settings, pipeline: Pipeline) -> list[PlannedCell]:
    undefended = Defense()
    rows = [(undefended, attack, count) for attack, count in _baselines(settings, pipeline)]
    attacks = [_chosen(name, settings) for name in settings.attacks_on(pipeline.kind)]
    rows += [
        (defense, attack, count)
        for defense in settings.strengths()
        for attack in attacks
        for count in settings.reference_frames
    ]
    return [
        PlannedCell(pipeline, _case(pipeline, clip, *row))
        for row in rows
        for clip in range(len(pipeline.clip_names))
    ]


def _baselines(settings: Settings, pipeline: Pipeline) -> list[tuple[_Attack, int]]:
    """Baselines and numbers of reference frames; what does not depend on these frames runs once."""
    rows: list[tuple[_Attack, int]] = []
    known: set[str] = set()
    for count in settings.reference_frames:
        names = [name for name in pipeline.baselines(count) if name not in known]
        rows += [(_Attack(name, name, NULL_ATTACKS[name](), baseline=True), count) for name in names]
        known |= {name for name in names if not name.startswith("reference")}
    return rows


def _chosen(name: str, settings: Settings) -> _Attack:
    kind = ATTACKS[name]
    accepted = inspect.signature(kind).parameters  # an exact method has no iterations
    resolved = settings.resolved()
    shared = {key: getattr(resolved, key) for key in ("iterations", "restarts", "engine") if key in accepted}
    return _Attack(name, name, kind(**shared))


def _case(pipeline: Pipeline, clip: int, defense: Defense, attack: _Attack, references: int) -> Case:
    granted = f"+{references}ref" if references else ""
    name = pipeline.clip_names[clip]
    return Case(
        id=f"{pipeline.place}/{spell(defense)}/{attack.text}{granted}/{name}",
        clip=clip,
        defense=defense,
        attack=attack.attack,
        attack_name=attack.name,
        attack_settings=attack.settings,
        reference_frames=references,
        baseline=attack.baseline,
    )
