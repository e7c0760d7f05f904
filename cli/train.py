"""`vleak train`: training of the weights that are not shipped: extractors and the enhancement network."""

from __future__ import annotations

from typing import Annotated

import typer

from vleak.cli import output, streams
from vleak.errors import unknown_name

Name = Annotated[str, typer.Argument(help="c3d_small, frame_cnn, network, or all.")]
Data = Annotated[str, typer.Option(help="Whose public clips the network is trained on, as of `evaluate`.")]
Clips = Annotated[int | None, typer.Option(help="Clips that are attacked, which are not public.")]
Frames = Annotated[int, typer.Option(help="Frames of a clip.")]
Size = Annotated[int, typer.Option(help="Height and width of a clip in pixels.")]
Stride = Annotated[int, typer.Option(help="Video frames from one frame of a clip to the next.")]
Seed = Annotated[int, typer.Option(help="As of `evaluate`: it draws the public clips.")]
Again = Annotated[bool, typer.Option("--again", help="Train also what the cache has.")]


def train(
    name: Name = "all",
    data: Data = "synthetic",
    clips: Clips = None,
    frames: Frames = 8,
    size: Size = 32,
    stride: Stride = 2,
    seed: Seed = 0,
    again: Again = False,
) -> None:
    """Train extractors and the enhancement network, and keep them in the user's cache.

    `evaluate` and `study` do the same when they need one that is not there.
    """
    from vleak.evaluation import TRAINABLE, train_weights

    if name not in (*TRAINABLE, "all"):
        raise unknown_name("weights", name, [*TRAINABLE, "all"])
    names = TRAINABLE if name == "all" else (name,)
    with streams.plugins_on_stderr(), output.progress_bar() as bar:
        task = bar.add_task("training", total=len(names))
        for weights in names:
            bar.update(task, description=f"training {weights}")
            message = train_weights(
                weights,
                again=again,
                source=data,
                clips=clips,
                frames=frames,
                size=size,
                stride=stride,
                seed=seed,
            )
            output.say(message)
            bar.advance(task)
