"""Enhancement: it helps where there is noise, leaves the truth alone, and needs nothing but the clip."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vleak.data.synthetic import synthetic_clip
from vleak.enhance import (
    build_enhancer,
    cached_network,
    enhance,
    estimate_noise,
    plain,
    train_network,
)
from vleak.enhance.base import pooled
from vleak.enhance.classical import CLEAN, back_project, classical, denoise, fuse
from vleak.enhance.network import fresh_weights
from vleak.errors import CapabilityError, InputError
from vleak.metrics import psnr
from vleak.seeds import generator

HELD_OUT = tuple(range(6))  # of seed 2000; the figures of `classical` were chosen on seed 1000


@lru_cache
def fine(index: int, seed: int = 2000, size: int = 64) -> Tensor:
    return synthetic_clip(index, frames=8, size=size, seed=seed)[0]


def coarse(index: int) -> Tensor:
    return pooled(fine(index), 2)


def noisy(clip: Tensor, sigma: float) -> Tensor:
    return (clip + sigma * torch.randn(clip.shape, generator=generator("noise", sigma))).clamp(0, 1)


def still(frames: int = 8) -> Tensor:
    return coarse(0)[:, :1].expand(-1, frames, -1, -1)


# --- before enhancement -----------------------------------------------------------------------------------


def test_plain_is_bicubic_frame_by_frame():
    clip = coarse(1)
    for scale in (1, 2, 3):
        got = plain(clip, scale)
        wanted = functional.interpolate(clip.transpose(0, 1), scale_factor=scale, mode="bicubic")
        assert got.shape == (3, 8, 32 * scale, 32 * scale)
        assert torch.allclose(got, wanted.transpose(0, 1).clamp(0, 1), atol=1e-6)
    assert torch.equal(plain(clip, 1), clip)


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1])
def test_noise_is_estimated(sigma: float):
    grey = torch.full((3, 8, 32, 32), 0.5)
    assert estimate_noise(noisy(grey, sigma)) == pytest.approx(sigma, rel=0.05)
    assert estimate_noise(noisy(grey[:, :1], sigma)) == pytest.approx(sigma, rel=0.1)
    for index in HELD_OUT:  # objects that move over photographs add little
        assert 0.9 * sigma < estimate_noise(noisy(coarse(index), sigma)) < sigma + 0.012


def test_noise_of_clean_clips_is_small():
    assert estimate_noise(torch.full((1, 4, 8, 8), 0.3)) == 0
    assert estimate_noise(torch.rand(1, 4, 1, 8, generator=generator(0))) == 0
    assert all(estimate_noise(coarse(index)) < CLEAN for index in HELD_OUT)


def test_fusion_averages_what_stands_still():
    clip = noisy(still(), 0.05)
    left = (fuse(clip, 0.05) - still()).std() / (clip - still()).std()
    assert left < 1.2 / 8**0.5  # eight frames averaged leave 0.35 of the noise


def test_fusion_leaves_what_moves():
    """A pixel that is like no other frame must stay as it is."""
    clip = still().clone()
    for t in range(8):
        clip[:, t, 4:12, 4 * t : 4 * t + 4] = 1 - clip[:, t, 4:12, 4 * t : 4 * t + 4].round()
    fused = fuse(clip, 0.02)
    inside = (slice(None), 3, slice(5, 11), slice(13, 15))
    assert (fused[inside] - clip[inside]).abs().max() < 1e-3
    assert (clip.mean(1)[:, 5:11, 13:15] - clip[inside]).abs().max() > 0.2  # ungated it would be smeared


def test_clean_clips_are_not_denoised():
    clip = coarse(0)
    quiet, steps = denoise(clip, CLEAN / 2)
    assert quiet is clip
    assert steps == ()
    assert denoise(clip, CLEAN)[1] == ("fusion", "nl_means")
    assert denoise(clip[:, :1], CLEAN)[1] == ("nl_means",)


def test_back_projection_pools_to_what_was_given():
    clip = coarse(2)
    begun = plain(clip)
    got = back_project(begun, clip, 2)
    assert (pooled(got, 2) - clip).abs().mean() < 0.2 * (pooled(begun, 2) - clip).abs().mean()


# --- classical --------------------------------------------------------------------------------------------


def change(index: int, given: Tensor) -> float:
    return psnr(classical(given).clip, fine(index)) - psnr(plain(given), fine(index))


@pytest.mark.parametrize(("sigma", "least"), [(0.0, 0.1), (0.02, 0.4), (0.05, 1.5), (0.1, 3.0)])
def test_it_beats_bicubic_clean_and_noisy(sigma: float, least: float):
    changes = [change(index, noisy(coarse(index), sigma)) for index in HELD_OUT]
    assert sum(changes) / len(changes) > least
    assert min(changes) > 0  # on no clip does it hurt


def test_still_grey_stays_grey():
    grey = torch.full((3, 8, 32, 32), 0.5)
    got = classical(grey)
    assert torch.allclose(got.clip, torch.full((3, 8, 64, 64), 0.5), atol=1e-6)
    assert got.noise == 0


def test_steps_follow_the_noise():
    assert classical(coarse(0)).steps == ("bicubic", "back_projection")
    much = classical(noisy(coarse(0), 0.05))
    assert much.steps[:3] == ("fusion", "nl_means", "bicubic")
    assert much.noise == pytest.approx(0.05, rel=0.4)
    assert classical(coarse(0), 1).steps == ("bicubic",)


def test_noise_that_is_left_is_not_sharpened():
    """Spots that non-local means take for detail: sharpening would add to them."""
    numbers = generator("spots")
    spots = torch.rand(coarse(0).shape, generator=numbers) < 0.1
    got = classical(torch.where(spots, 1 - coarse(0), coarse(0)))
    assert got.steps == ("fusion", "nl_means", "bicubic")


def test_any_channels_frames_and_sides():
    for shape in ((1, 1, 5, 7), (2, 3, 9, 8), (3, 2, 1, 1), (4, 8, 16, 12)):
        got = classical(torch.rand(shape, generator=generator(shape)))
        assert got.clip.shape == (*shape[:2], 2 * shape[2], 2 * shape[3])
        assert got.clip.dtype == torch.float32
        assert 0 <= got.clip.min() <= got.clip.max() <= 1


def test_the_given_clip_is_not_changed():
    clip = noisy(coarse(0), 0.05)
    kept = clip.clone()
    enhance(clip)
    assert torch.equal(clip, kept)


def test_threads_get_what_one_call_gets():
    run = build_enhancer("classical")
    clips = [noisy(coarse(index), 0.03) for index in HELD_OUT]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, clips))
    assert all(torch.equal(run(clip).clip, got.clip) for clip, got in zip(clips, together, strict=True))


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        (torch.rand(3, 32, 32), {}, "expected a clip of shape"),
        (torch.rand(3, 0, 32, 32), {}, "expected a clip of shape"),
        (torch.full((3, 2, 8, 8), torch.nan), {}, "NaN or infinity"),
        (torch.rand(3, 2, 8, 8), {"scale": 0}, "scale 0; expected a whole number from 1 to 4"),
        (torch.rand(3, 2, 8, 8), {"method": "classic"}, "unknown enhancer 'classic'; did you mean classical"),
        (torch.rand(3, 2, 8, 8), {"method": "network"}, "needs trained weights"),
        (torch.rand(3, 2, 8, 8), {"method": "network", "scale": 3}, "enlarges by 2, not by 3"),
        (torch.rand(3, 2, 8, 8), {"method": "network", "network": {}}, "not the weights of vleak's network"),
    ],
)
def test_bad_input_is_one_clear_line(clip: Tensor, options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message) as caught:
        enhance(clip, **options)
    assert len(str(caught.value).splitlines()) == 1


# --- the network ------------------------------------------------------------------------------------------


def bars(count: int, seed: str) -> Tensor:
    """Sharp bars that move, (count, 3, 2, 32, 32); a neighbour tells on which side an edge lies."""
    numbers = generator("bars", seed)
    axis = torch.arange(32)
    clips = []
    for _ in range(count):
        left, width = torch.randint(4, 20, (2,), generator=numbers).tolist()
        colours = torch.rand(2, 3, 1, 1, generator=numbers)
        begins = torch.tensor([[left], [left + 1]])
        inside = (axis >= begins) & (axis < begins + 3 + width // 3)
        clips.append(torch.where(inside, *colours)[:, :, None].expand(3, 2, 32, 32))
    return torch.stack(clips)


def test_the_network_learns_what_other_clips_show(monkeypatch: pytest.MonkeyPatch):
    """A short training on small, unspoiled crops: on clips that it never saw it beats where it started."""
    monkeypatch.setattr("vleak.enhance.network.CROP", (2, 8, 8))
    monkeypatch.setattr("vleak.enhance.network.BATCH", 12)
    monkeypatch.setattr("vleak.enhance.network.degrade", lambda clip, _: clip)
    weights = train_network(bars(24, "public"), generator("training"), steps=120, examples=24)
    start, trained = build_enhancer("classical"), build_enhancer("network", network=weights)
    won = []
    for truth in bars(8, "held out"):
        given = pooled(truth, 2)
        won.append(psnr(trained(given).clip, truth) - psnr(start(given).clip, truth))
    assert sum(won) / len(won) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.05, 0.1])
def test_as_shipped_it_beats_bicubic_on_clips_it_never_saw(sigma: float):
    run = build_enhancer("network", network=shipped())
    won = []
    for index in HELD_OUT:
        given = noisy(coarse(index), sigma)
        won.append(psnr(run(given).clip, fine(index)) - psnr(plain(given), fine(index)))
    assert min(won) > 0
    assert sum(won) / len(won) > 0.2


@lru_cache
def shipped() -> dict[str, Tensor]:
    public = torch.stack([fine(index, seed=1000) for index in range(32)])
    return train_network(public, generator("shipped"))


def test_an_untrained_network_adds_nothing():
    given = noisy(coarse(0), 0.05)
    begun = classical(given)
    got = enhance(given, "network", network=fresh_weights(3, generator(0)))
    assert torch.equal(got.clip, begun.clip)
    assert got.steps == (*begun.steps, "network")
    assert got.noise == begun.noise


def test_training_depends_on_clips_and_generator_alone():
    public = torch.stack([fine(index, size=16) for index in range(2)])
    first, second, other = (
        train_network(public, generator(seed), steps=2, examples=2) for seed in ("a", "a", "b")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["entry.weight"], other["entry.weight"])


def test_training_can_be_stopped_and_tells_how_far_it_is():
    public = fine(0, size=16)[None]
    told: list[int] = []
    train_network(public, generator(0), steps=40, examples=1, progress=told.append)
    assert told == [20, 40]
    stopped = train_network(public, generator(0), steps=40, examples=1, stop=lambda: True)
    assert not stopped["exit.weight"].any()


def test_a_network_of_grey_clips_refuses_colour():
    weights = fresh_weights(1, generator(0))
    assert enhance(torch.rand(1, 3, 8, 8), "network", network=weights).clip.shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="trained on clips of 1 channels, got 3"):
        enhance(torch.rand(3, 3, 8, 8), "network", network=weights)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.rand(0, 3, 8, 32, 32), "expected clips of shape"),
        (torch.rand(2, 3, 8, 31, 32), "even sides"),
        (torch.full((1, 3, 8, 16, 16), torch.inf), "NaN or infinity"),
    ],
)
def test_training_refuses_what_it_cannot_use(clips: Tensor, message: str):
    with pytest.raises(InputError, match=message):
        train_network(clips, generator(0), steps=1)


def test_the_cache_trains_once_for_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[int] = []

    def clips() -> Tensor:
        asked.append(1)
        return fine(0, size=16)[None]

    first = cached_network({"data": "synthetic"}, clips, steps=1, examples=1)
    second = cached_network({"data": "synthetic"}, clips, steps=1, examples=1)
    assert len(asked) == 1
    assert all(torch.equal(first[name], second[name]) for name in first)
    cached_network({"data": "other"}, clips, steps=1, examples=1)
    assert len(asked) == 2
    assert enhance(coarse(0), "network", network=first).clip.shape == (3, 8, 64, 64)


# --- checkpoints ------------------------------------------------------------------------------------------

needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="needs the extra vleak[spandrel]"
)
_KEPT: list[torch.library.Library] = []


@pytest.fixture(scope="module")
def spandrel() -> object:
    """Import it, also beside a torchvision built for another torch: nothing here uses its kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
            for name in ("nms", "qnms"):
                _KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import spandrel
    return spandrel


def checkpoint(folder: Path, scale: int, channels: int = 3) -> str:
    """A small checkpoint that enlarges by nearest neighbours and adds what random weights say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spandrel.architectures.Compact import Compact
    model = Compact(num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=1, upscale=scale)
    numbers = generator("checkpoint")
    state = {n: 0.05 * torch.randn(t.shape, generator=numbers) for n, t in model.state_dict().items()}
    path = folder / f"x{scale}.safetensors"
    save_file(state, path)
    return str(path)


@needs_spandrel
@pytest.mark.parametrize(("own", "resized"), [(1, True), (2, False), (4, True)])
def test_checkpoints_of_any_scale_give_the_scale_asked_for(
    own: int, resized: bool, tmp_path: Path, spandrel: object
):
    run = build_enhancer(f"spandrel:{checkpoint(tmp_path, own)}")
    given = coarse(0)[:, :3]
    got = run(given)
    assert got.clip.shape == (3, 3, 64, 64)
    assert 0 <= got.clip.min() <= got.clip.max() <= 1
    assert got.steps == ((f"spandrel RealESRGAN Compact x{own}", "bicubic")[: 1 + resized])
    assert psnr(got.clip, fine(0)[:, :3]) > 15  # the right frames, the right way round
    assert torch.equal(run(given).clip, got.clip)
    assert not got.clip.is_inference()


@needs_spandrel
def test_grey_models_and_grey_clips(tmp_path: Path, spandrel: object):
    colour, grey = coarse(0)[:, :2], coarse(0)[:1, :2]
    (tmp_path / "grey").mkdir()
    one = build_enhancer(f"spandrel:{checkpoint(tmp_path / 'grey', 2, 1)}")
    three = build_enhancer(f"spandrel:{checkpoint(tmp_path, 2)}")
    assert one(colour).clip.shape == three(colour).clip.shape == (3, 2, 64, 64)
    assert one(grey).clip.shape == three(grey).clip.shape == (1, 2, 64, 64)
    with pytest.raises(InputError, match="images of 3 channels, the clip has 2"):
        three(coarse(0)[:2])


@needs_spandrel
def test_checkpoints_that_cannot_be_used(tmp_path: Path, spandrel: object):
    def refused(name: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            build_enhancer(f"spandrel:{tmp_path / name}")
        assert len(str(caught.value).splitlines()) == 1

    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    refused("other.safetensors", "no architecture that spandrel knows")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08")
    refused("damaged.safetensors", "damaged or holds more than tensors")
    torch.save({"a": Path("x")}, tmp_path / "code.pth")  # unpickling it would run pathlib's code
    refused("code.pth", "damaged or holds more than tensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.pth", "there is no file"), ("script.pt", "does not end in"), ("picture.png", "does not end in")],
)
def test_checkpoints_that_are_none(name: str, message: str, tmp_path: Path):
    (tmp_path / "script.pt").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        build_enhancer(f"spandrel:{tmp_path / name}")


def test_without_spandrel_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(CapabilityError, match=r"pip install 'vleak\[spandrel\]'"):
        build_enhancer(f"spandrel:{tmp_path / 'x.pth'}")
