"""Plan of a run: its cells in order, each with its id."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vleak.attacks import BASELINES
from vleak.defenses import Defense, NoDefense, defense_text
from vleak.evaluation.chosen import ChosenAttack
from vleak.evaluation.settings import Settings
from vleak.pipelines import Case, ClientSettings, Pipeline

__all__ = ["PlannedCell", "by_client", "plan"]


@dataclass(frozen=True)
class PlannedCell:
    """One cell and the pipeline that it is of."""

    pipeline: Pipeline
    case: Case

    @property
    def kind(self) -> str:
        """Its id without its clip, which cells share that differ in their clips only."""
        return self.case.id.removesuffix(self.pipeline.clip_names[self.case.clip])


def plan(settings: Settings, pipelines: Sequence[Pipeline]) -> list[PlannedCell]:
    """Cells of a run: of every pipeline the baselines, then every defense and attack, clip by clip.

    Args:
        settings: of the run.
        pipelines: in the order in which they run.
    """
    return [cell for pipeline in pipelines for cell in _cells(settings, pipeline)]


def by_client(cells: Sequence[PlannedCell]) -> list[tuple[PlannedCell, ...]]:
    """Cells by client, in order: those of one batch under one defense and attack are one attack's."""
    clients: dict[object, list[PlannedCell]] = {}
    for cell in cells:
        clients.setdefault((cell.kind, cell.case.batch), []).append(cell)
    return [tuple(cells) for cells in clients.values()]


def _cells(settings: Settings, pipeline: Pipeline) -> list[PlannedCell]:
    everyone = range(len(pipeline.clip_names))
    planned = [
        PlannedCell(pipeline, _case(pipeline, clip, NoDefense(), attack, count, ClientSettings(), (clip,)))
        for attack, count in _baselines(settings, pipeline)
        for clip in everyone
    ]
    rows = [
        (defense, attack, count, client)
        for client in settings.clients()
        for defense in settings.strengths()
        for attack in settings.attacks_on(pipeline.kind)
        for count in settings.reference_frames
    ]
    for row in rows:
        batches = _batches(len(everyone), row[-1].batch_size)
        beside = _also_non_adaptive(settings.non_adaptive, row[0], row[1], batches)
        for batch in batches:
            cases = (_case(pipeline, clip, *row, batch) for clip in batch)
            planned += [PlannedCell(pipeline, replace(case, non_adaptive=batch in beside)) for case in cases]
    return planned


def _also_non_adaptive(
    clips: int, defense: Defense, attack: ChosenAttack, batches: Sequence[tuple[int, ...]]
) -> set[tuple[int, ...]]:
    """Return the batches on which an attack also runs without knowledge of the defense.

    They are spread evenly over the data, in which neighbours may be of one video.
    """
    if isinstance(defense, NoDefense) or not attack.attack.adaptive or not batches:
        return set()
    count = min(len(batches), math.ceil(clips / len(batches[0])))
    return {batches[place * len(batches) // count] for place in range(count)}


def _batches(clips: int, size: int) -> list[tuple[int, ...]]:
    """Batches of clips in their order; clips that fill none are left out."""
    return [tuple(range(first, first + size)) for first in range(0, clips - size + 1, size)]


def _baselines(settings: Settings, pipeline: Pipeline) -> list[tuple[ChosenAttack, int]]:
    """Baselines and numbers of reference frames; what does not depend on these frames runs once."""
    rows: list[tuple[ChosenAttack, int]] = []
    known: set[str] = set()
    for count in settings.reference_frames:
        names = [name for name in pipeline.baselines(count) if name not in known]
        rows += [(ChosenAttack(name, name, BASELINES.build(name), {}), count) for name in names]
        known |= {name for name in names if not name.startswith("reference")}
    return rows


def _case(
    pipeline: Pipeline,
    clip: int,
    defense: Defense,
    attack: ChosenAttack,
    references: int,
    client: ClientSettings,
    batch: tuple[int, ...],
) -> Case:
    granted = f"+{references}ref" if references else ""
    granted += f"@{client.text}" if client.text else ""
    name = pipeline.clip_names[clip]
    return Case(
        id=f"{pipeline.id_prefix}/{defense_text(defense)}/{attack.text}{granted}/{name}",
        clip=clip,
        defense=defense,
        attack=attack.attack,
        attack_name=attack.name,
        attack_settings=attack.settings,
        counterpart=attack.counterpart,
        reference_frames=references,
        client=client,
        batch=batch,
    )
