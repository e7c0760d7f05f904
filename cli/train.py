"""`vleak train`: make the weights that ship with nobody: extractors and the enhancer, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from vleak.cli import output
from vleak.errors import unknown_name

Name = Annotated[str, typer.Argument(help="An extractor, network (the enhancer), or all.")]
Again = Annotated[bool, typer.Option("--again", help="Train also what the cache has.")]


def train(name: Name = "all", again: Again = False) -> None:
    """Train extractors and the enhancement network on the embedded data and keep them in the user's cache."""
    from vleak.evaluation import TRAINABLE, train_weights

    names = list(TRAINABLE) if name == "all" else [name]
    if names[0] not in TRAINABLE:
        raise unknown_name("weights", name, [*TRAINABLE, "all"])
    with output.progress_bar() as bar:
        task = bar.add_task("training", total=len(names))
        for each in names:
            bar.update(task, description=f"training {each}")
            for line in train_weights(each, again=again):
                output.say(line)
            bar.advance(task)
