"""Synthetic motion: textured objects over photographs, labelled by how the object moves.

The photographs are those inside the scikit-image wheel, so nothing is downloaded. Only the motion depends
on the class: background, texture, shape, and the object's position, size and angle at the middle of the clip
are drawn without the class and have the same distribution for every class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import skimage.data
import torch
from torch import Tensor
from torch.nn import functional

from vleak.data.clipset import ClipSet
from vleak.data.request import ClipRequest
from vleak.seeds import generator

Thing = TypeVar("Thing")
MOTIONS = ("left", "right", "up", "down", "approach", "rotate")
# Name in skimage.data: smallest and largest side of a crop, as a share of the photograph's shorter side.
# Crops of fine textures are smaller; larger ones would be noise at 32x32 pixels.
PHOTOS = {
    "astronaut": (0.4, 0.9),
    "brick": (0.12, 0.3),
    "camera": (0.4, 0.9),
    "chelsea": (0.4, 0.9),
    "coffee": (0.4, 0.9),
    "coins": (0.3, 0.7),
    "grass": (0.1, 0.2),
    "gravel": (0.1, 0.22),
    "immunohistochemistry": (0.15, 0.5),
    "retina": (0.2, 0.5),
    "rocket": (0.4, 0.9),
    "stereo_motorcycle": (0.4, 0.9),
}
OTHER_SEEDS = "other seeds"
"""Origin of the public clips; no files are named so, and pages tell drawn clips by it."""
OVERSAMPLING = 2  # frames are drawn at twice the size and averaged, which keeps edges smooth at 32x32
COAST = 1.5  # largest distance the object moves outside the clip, in halves of its path within the clip


@dataclass(frozen=True)
class Scene:
    """Scene of a clip, without its class. Lengths are in frame sides, from -0.5 to 0.5; angles in radians."""

    background: Tensor  # (3, K, K), K = OVERSAMPLING * size
    texture: Tensor  # (3, L, L)
    half_axes: tuple[float, float]
    exponent: float  # of the superellipse: 2 is an ellipse, 6 nearly a rectangle
    centre: tuple[float, float]  # x and y at the middle of the clip
    angle: float
    travel: float  # half of the path length of the classes that translate
    growth: float  # half of the logarithm of the growth of "approach"
    turn: float  # half of the angle of "rotate"
    ease: float  # change of the speed over time: below 0 fast in the middle, above 0 slow there
    wobble: tuple[float, float, float, float]  # small motion in x, y, log scale and angle, in every class


@dataclass(frozen=True)
class Drawn:
    """Scene with its motion, from which a clip, its fine version and its references are rendered."""

    scene: Scene
    label: int  # index into MOTIONS
    frames: int

    def clip(self) -> Tensor:
        """Return the clip, (3, T, H, W)."""
        return _render(self.scene, MOTIONS[self.label], self.frames)

    def fine(self) -> Tensor:
        """Return the clip at twice the resolution, before averaging, (3, T, 2H, 2W)."""
        return _ordered(_image(self.scene, MOTIONS[self.label], torch.linspace(-1, 1, self.frames)))

    def references(self, count: int) -> Tensor:
        """Return frames of the scene from before and after the clip, (3, count, H, W)."""
        return _pooled(_image(self.scene, MOTIONS[self.label], _outside(self.frames, count)))


def load_synthetic(request: ClipRequest) -> ClipSet:
    """Return a ClipSet of synthetic clips, of shape (3, frames, size, size).

    The clips are the same with and without references and fine clips. The references of a clip show its
    scene before and after it, see ``_outside``.
    """
    frames, size, seed = request.frames, request.size, request.seed
    indices = [("clips", i) for i in range(request.attacked)] + [("public", i) for i in range(request.public)]
    drawings = [_draw(*one, frames, size, seed) for one in _told("drawing scenes", indices, request)]
    attacked, public = drawings[: request.attacked], drawings[request.attacked :]
    empty = torch.empty(0, 3, frames, OVERSAMPLING * size, OVERSAMPLING * size)
    clips = [drawn.clip() for drawn in _told("drawing clips", drawings, request)]
    fine, public_fine = (
        torch.stack([drawn.fine() for drawn in _told("drawing fine clips", part, request)])
        if request.fine and part
        else empty
        for part in (attacked, public)
    )
    references = request.references
    return ClipSet(
        name="synthetic",
        clips=torch.stack(clips[: len(attacked)]),
        labels=torch.tensor([drawn.label for drawn in attacked], dtype=torch.int64),
        names=tuple(f"synthetic{index}@0" for index in range(len(attacked))),
        public_clips=torch.stack(clips[len(attacked) :]) if public else empty[..., :size, :size],
        public_labels=torch.tensor([drawn.label for drawn in public], dtype=torch.int64),
        classes=MOTIONS,
        public_source=OTHER_SEEDS,
        notes=("synthetic clips: objects moving over photographs, labelled by the kind of motion",),
        references=torch.stack([drawn.references(references) for drawn in attacked]) if references else None,
        fine=fine if request.fine else None,
        public_fine=public_fine if request.fine else None,
        public_from="other-files" if public else None,  # every clip is a scene of its own
        public_groups=torch.arange(len(public)),
    )


def _told(what: str, things: Sequence[Thing], request: ClipRequest) -> Iterator[Thing]:
    """Yield things one by one, and report how many are done."""
    for number, thing in enumerate(things):
        request.tell(what, number, len(things))
        yield thing


def synthetic_clip(
    index: int, *, frames: int, size: int, seed: int, stream: str = "clips"
) -> tuple[Tensor, int]:
    """Draw clip ``index`` of a stream: float32 (3, frames, size, size) in [0, 1] and its index in MOTIONS.

    The clip depends on these arguments alone. Six consecutive clips, from a multiple of six on, show all
    six motions.
    """
    drawn = _draw(stream, index, frames, size, seed)
    return drawn.clip(), drawn.label


def _draw(stream: str, index: int, frames: int, size: int, seed: int) -> Drawn:
    block, position = divmod(index, len(MOTIONS))
    order = torch.randperm(len(MOTIONS), generator=generator("synthetic", seed, stream, "labels", block))
    label = int(order[position])
    return Drawn(_scene(seed, stream, index, size * OVERSAMPLING), label, frames)


@lru_cache(maxsize=64)  # the clips of a run and its public ones, which several runs of one process share
def _scene(seed: int, stream: str, index: int, side: int) -> Scene:
    """Return scene ``index`` of a stream, which depends on these arguments alone; nobody writes into it."""
    return _draw_scene(generator("synthetic", seed, stream, index), side)


@lru_cache(maxsize=len(PHOTOS))
def _photo(name: str) -> Tensor:
    """Return a photograph as uint8 (3, H, W); grey ones get three equal channels."""
    loaded = getattr(skimage.data, name)()
    image = torch.from_numpy(loaded[0] if isinstance(loaded, tuple) else loaded)
    return (image[..., None].expand(-1, -1, 3) if image.dim() == 2 else image).permute(2, 0, 1).contiguous()


def _uniform(low: float, high: float, source: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=source))


def _sign(source: torch.Generator) -> float:
    return 1.0 if _uniform(0, 1, source) < 0.5 else -1.0


def _draw_crop(name: str, side: int, source: torch.Generator) -> Tensor:
    """Return a random square of a photograph, tinted and scaled: float32 (3, side, side) in [0, 1]."""
    photo = _photo(name)
    _, height, width = photo.shape
    extent = int(min(height, width) * _uniform(*PHOTOS[name], source))
    top = int(_uniform(0, height - extent, source))
    left = int(_uniform(0, width - extent, source))
    crop = photo[None, :, top : top + extent, left : left + extent].float() / 255
    crop = functional.interpolate(crop, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)
    crop = crop.flip(2) if _sign(source) < 0 else crop
    exponents = torch.tensor([_uniform(-0.2, 0.2, source) for _ in range(3)]).exp()
    return crop ** (exponents[:, None, None] * math.exp(_uniform(-0.25, 0.25, source)))


def _draw_scene(source: torch.Generator, side: int) -> Scene:
    names = list(PHOTOS)
    behind, front = torch.randperm(len(names), generator=source)[:2].tolist()
    background = _draw_crop(names[behind], side, source)
    area, aspect, exponent = _uniform(0.15, 0.3, source), _uniform(0.65, 1.5, source), _uniform(2, 6, source)
    # Area of a superellipse with half axes a and b: 4 a b gamma(1 + 1/p)^2 / gamma(1 + 2/p).
    filling = math.gamma(1 + 1 / exponent) ** 2 / math.gamma(1 + 2 / exponent)
    half = math.sqrt(area / (4 * filling))
    half_axes = (half * math.sqrt(aspect), half / math.sqrt(aspect))
    texture = _draw_crop(names[front], max(8, round(2 * max(half_axes) * side)), source)
    return Scene(
        background=background,
        texture=_stand_out(texture, background),
        half_axes=half_axes,
        exponent=exponent,
        centre=(_uniform(-0.15, 0.15, source), _uniform(-0.15, 0.15, source)),
        angle=_uniform(-math.pi, math.pi, source),
        travel=_uniform(0.17, 0.25, source),
        growth=_uniform(0.22, 0.32, source),
        turn=_uniform(0.55, 0.9, source) * _sign(source),
        ease=_uniform(-0.3, 0.3, source),
        wobble=(
            _uniform(-0.02, 0.02, source),
            _uniform(-0.02, 0.02, source),
            _uniform(-0.03, 0.03, source),
            _uniform(-0.08, 0.08, source),
        ),
    )


def _stand_out(texture: Tensor, background: Tensor, gap: float = 0.2) -> Tensor:
    """Brighten or darken a texture whose mean is nearer than ``gap`` to that of the background."""
    difference = float(texture.mean() - background.mean())
    if abs(difference) >= gap:
        return texture
    target = float(background.mean()) + (gap if background.mean() < 0.5 else -gap)
    return (texture + (target - float(texture.mean()))).clamp(0, 1)


def _outside(frames: int, count: int) -> Tensor:
    """Return times outside [-1, 1]: just before the clip, just after it, a frame earlier, and so on."""
    step = 2 / (frames - 1)
    positions = torch.arange(count)
    return (1 + step * (1 + positions // 2)) * torch.where(positions % 2 == 0, -1.0, 1.0)


def _eased(time: Tensor, ease: float) -> Tensor:
    """Return the object's position on its path, -1 at the first and 1 at the last frame of the clip.

    Outside the clip it continues at the speed that it had at the first or last frame and slows down to rest
    at -1 - COAST and 1 + COAST, so that it neither turns back nor leaves or fills the frame.
    """
    inside = time * (1 + ease * (time.square() - 1))  # odd, so that the middle stays in the middle
    beyond = COAST * (1 - (-(1 + 2 * ease) / COAST * (time.abs() - 1)).exp())
    return torch.where(time.abs() > 1, time.sign() * (1 + beyond), inside)


def _path(scene: Scene, motion: str, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, y, scale and angle of the object at the times, four tensors (T,)."""
    time = _eased(time, scene.ease)
    x, y, growth, turn = scene.wobble
    x += scene.travel * ((motion == "right") - (motion == "left"))
    y += scene.travel * ((motion == "down") - (motion == "up"))
    growth += scene.growth * (motion == "approach")
    turn += scene.turn * (motion == "rotate")
    return (
        scene.centre[0] + x * time,
        scene.centre[1] + y * time,
        (growth * time).exp(),
        scene.angle + turn * time,
    )


def _render(scene: Scene, motion: str, frames: int) -> Tensor:
    """Draw the scene in motion: float32 (3, T, H, W) in [0, 1]."""
    return _pooled(_image(scene, motion, torch.linspace(-1, 1, frames)))


def _pooled(image: Tensor) -> Tensor:
    return _ordered(functional.avg_pool2d(image, OVERSAMPLING))


def _ordered(image: Tensor) -> Tensor:
    """Turn frames (T, 3, H, W) into a clip (3, T, H, W) in [0, 1]."""
    return image.transpose(0, 1).contiguous().clamp(0, 1)


def _image(scene: Scene, motion: str, time: Tensor) -> Tensor:
    """Draw the scene at the times (T,), at twice the size: (T, 3, K, K)."""
    side = scene.background.shape[-1]
    x, y, scale, angle = (value[:, None, None] for value in _path(scene, motion, time))
    axis = (torch.arange(side) + 0.5) / side - 0.5
    right, down = axis[None, None, :] - x, axis[None, :, None] - y
    across = (angle.cos() * right + angle.sin() * down) / scale
    along = (angle.cos() * down - angle.sin() * right) / scale
    mask = _coverage(across, along, scene, side)[:, None]
    grid = torch.stack((across, along), dim=-1) / max(scene.half_axes)
    texture = scene.texture.expand(len(time), -1, -1, -1)
    front = functional.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)
    return mask * front + (1 - mask) * scene.background


def _coverage(across: Tensor, along: Tensor, scene: Scene, side: int) -> Tensor:
    """Return the share of each pixel that the object covers, (T, K, K), with an edge about a pixel wide."""
    a, b = scene.half_axes
    p = scene.exponent
    radius = ((across / a).abs().pow(p) + (along / b).abs().pow(p)).pow(1 / p)
    return torch.sigmoid((1 - radius) * min(a, b) * side * 2)
