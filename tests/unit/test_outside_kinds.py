"""Data sources, enhancers and metrics from outside: used by reference, and refused where they break."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vleak.data import SOURCES, ClipSet, load_clips, load_data, recognise
from vleak.enhance import Enhanced, Enhancer, build_enhancer, plain
from vleak.errors import InputError
from vleak.metrics import METRICS, Metric, measure, psnr

HERE = __name__


def stripes(clips: int, frames: int, size: int, *, period: int = 2) -> ClipSet:
    """Clips of stripes, of which none moves."""
    rows = (torch.arange(size) // period % 2).float()
    video = rows.expand(3, frames, size, size).clone()
    labels = torch.arange(clips) % 2
    return ClipSet(
        name="stripes", clips=torch.stack([video * (1 - i / 100) for i in range(clips)]), labels=labels,
        names=tuple(f"stripes@{i}" for i in range(clips)), public_clips=video[None].clone(),
        public_labels=labels[:1], classes=("even", "odd"), public_source="stripes", notes=(),
    )  # fmt: skip


SMALL: dict[str, Any] = {"clips": 3, "frames": 4, "size": 8}


def test_a_source_from_outside_gets_what_it_names() -> None:
    name = f"{HERE}:stripes"
    data = load_clips(f"{name}:period=4", **SMALL)
    assert torch.equal(data.clips, stripes(3, 4, 8, period=4).clips)
    loaded = load_data(name, **SMALL)
    assert isinstance(loaded, ClipSet)
    assert torch.equal(loaded.clips, stripes(3, 4, 8).clips)
    assert len(load_clips(name).clips) == 12
    assert (recognise(name), recognise("synthetic")) == ("clips", "synthetic")
    assert list(SOURCES) == ["synthetic"]


def broken(*, field: str = "", value: str = "") -> Any:
    """Stripes with one field changed."""
    changes: dict[str, Any] = {
        "none": None,
        "half": {"clips": stripes(3, 4, 8).clips.half()},
        "large": {"clips": stripes(3, 4, 8).clips * 2},
        "nan": {"public_clips": stripes(1, 4, 8).clips * math.nan},
        "short": {"clips": stripes(3, 2, 8).clips},
        "empty": {"clips": stripes(3, 4, 8).clips[:0], "labels": torch.zeros(0).long()},
        "labels": {"labels": torch.zeros(2).long()},
        "classes": {"labels": torch.tensor([0, 1, 2])},
        "names": {"names": ("a", "a", "b")},
        "paths": {"names": ("../a", "b", "c")},
    }
    if value == "raise":
        raise LookupError("no stripes")
    change = changes[value]
    return None if change is None else replace(stripes(3, 4, 8), **change)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("raise", "cannot be made: LookupError: no stripes"),
        ("none", "returned NoneType, expected vleak.data.ClipSet"),
        (
            "half",
            "returned clips of shape (3, 3, 4, 8, 8), torch.float16, expected (clip, 3, 4, 8, 8), float32",
        ),
        ("large", "returned clips with values outside [0, 1]"),
        ("nan", "returned public_clips with values outside [0, 1] or NaN"),
        ("short", "returned clips of shape (3, 3, 2, 8, 8)"),
        ("empty", "returned no clips to attack"),
        ("labels", "returned labels (2,), torch.int64, expected one int64 a clip"),
        ("classes", "returned labels outside 0 to 1, the number of classes"),
        ("names", "returned names that are not one a clip"),
        ("paths", "returned names that are not one a clip"),
    ],
)
def test_sources_that_break_are_named(value: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_clips(f"{HERE}:broken:value={value}", **SMALL)
    assert f"source '{HERE}:broken'" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"references": 2}, "returned no reference frames"), ({"fine": True}, "no clips at twice the size")],
)
def test_what_a_source_was_asked_for_has_to_come(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_clips(f"{HERE}:stripes", **SMALL, **more)


def test_a_path_stays_a_path() -> None:
    for source in ("nowhere", "nowhere/a:b", "./synthetic"):
        with pytest.raises(InputError, match=r"does not exist|no such"):
            load_clips(source, **SMALL)
    with pytest.raises(InputError, match="source 'no_module:clips': cannot import 'no_module'"):
        load_clips("no_module:clips", **SMALL)


def brighter(scale: int, *, gain: float = 1.5) -> Enhancer:
    """Enlarge and brighten."""
    return lambda clip: Enhanced(plain(clip, scale) * gain, 0.0, ("gain",))


def careless(scale: int, *, how: str = "raise") -> Enhancer:
    """Return what is no enhanced clip."""

    def enhance(clip: Tensor) -> Any:
        if how == "raise":
            raise LookupError("no weights")
        return {"clip": clip, "small": Enhanced(clip, 0.0, ()), "nan": Enhanced(plain(clip) / 0, 0.0, ())}[
            how
        ]

    return enhance


def test_an_enhancer_from_outside_is_clamped_and_gets_a_copy() -> None:
    clip = torch.full((3, 2, 4, 4), 0.5)
    assert torch.allclose(build_enhancer(f"{HERE}:brighter:gain=1.2")(clip).clip, torch.tensor(0.6))
    assert build_enhancer(f"{HERE}:brighter:gain=9")(clip).clip.max() == 1
    assert build_enhancer(f"{HERE}:brighter", scale=3)(clip).clip.shape == (3, 2, 12, 12)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "raised LookupError: no weights"),
        ("clip", "returned Tensor, expected vleak.enhance.Enhanced"),
        ("small", "returned a clip of shape (3, 2, 4, 4), expected (3, 2, 8, 8)"),
        ("nan", "expected (3, 2, 8, 8) of finite values"),
    ],
)
def test_enhancers_that_break_are_named(how: str, words: str) -> None:
    run = build_enhancer(f"{HERE}:careless:how={how}")
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        run(torch.full((3, 2, 4, 4), 0.5))
    assert f"enhancer '{HERE}:careless:how={how}'" in str(caught.value)


class Constant(Metric):
    """Returns what it is told, and writes into what it is given."""

    def __init__(self, *, value: float = 0.5) -> None:
        self.value = value

    def score(self, reconstruction: Tensor, truth: Tensor) -> Any:
        truth.zero_()
        if self.value < 0:
            raise LookupError("no reference")
        return None if self.value == 7 else torch.tensor(self.value)


def test_a_metric_gives_a_number_or_none_and_changes_no_clip() -> None:
    clip, truth = torch.rand(3, 2, 8, 8), torch.rand(3, 2, 8, 8)
    before = truth.clone()
    assert measure(METRICS.build("psnr"), clip, truth) == psnr(clip, truth)
    assert measure(METRICS.build(f"{HERE}:Constant:value=2"), clip, truth) == 2.0
    assert measure(Constant(value=7), clip, truth) is None
    assert torch.equal(truth, before)
    assert Constant.name == "Constant"


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "returned nan"), (math.inf, "inf"), (-1.0, "no reference")]
)
def test_metrics_that_break_are_named(value: float, words: str) -> None:
    clip = torch.rand(3, 2, 8, 8)
    with pytest.raises(InputError, match=words) as caught:
        measure(Constant(value=value), clip, clip)
    assert f"metric 'Constant' ({HERE}:Constant)" in str(caught.value)
