"""Common corruptions of images at severities 1 to 5, as in CIFAR-10-C, for images of any size.

The formulas and their numbers are those of Hendrycks and Dietterich (arXiv 1903.12261, the CIFAR
code of github.com/hendrycks/robustness) [paper], but for what the table `CORRUPTIONS` and the
following say [ours]:

- Lengths in pixels are given for 32 pixels. They are scaled by min(height, width)/32.
- Values are rounded to the nearest of 0 … 255; the code of the paper cuts off the fraction.
- Random numbers depend on the seed, the corruption, the severity and the place of the image alone.
- Corruptions that need files or other programs (snow, frost, spatter, glass, elastic) are left out.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from curvact.data.arrays import from_arrays
from curvact.data.checks import as_bytes
from curvact.data.dataset import Dataset, content_hash
from curvact.data.extra import map_npy
from curvact.data.images import at_once
from curvact.errors import CurvactError, nearest
from curvact.random import generator

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE = 32
"""The side in pixels of the images that lengths are given for."""

Function = Callable[[Tensor, Any, Sequence[torch.Generator]], Tensor]
"""From images N×C×H×W in [0, 1], a severity's number and a generator an image to images."""


@dataclass(frozen=True)
class Corruption:
    """A corruption. settings: its number at each severity. source: [paper] or [ours], in words.

    colour: whether it needs three channels.
    """

    function: Function
    settings: tuple[Any, ...]
    source: str = "[paper]"
    colour: bool = False


def corrupt(
    images: Tensor, name: str, severity: int, *, seed: int = 0, places: Tensor | None = None
) -> Tensor:
    """Images with a corruption: uint8 N×C×H×W, on the CPU.

    images: N×C×H×W, uint8 or floats in [0, 1]. name: in `CORRUPTIONS`. severity: 1 to 5.
    seed: of all random numbers. places: int64, N, the place of each image in its data set; 0, 1, …
        if None. The same place gets the same random numbers in any batch.
    Raises CurvactError for an unknown name or severity, for images of another type or shape, and for
    grey images where the corruption changes colours.

    >>> x = torch.full((1, 1, 4, 4), 102, dtype=torch.uint8)
    >>> corrupt(x, "brightness", 2).unique()  # 102 + 0.1 · 255
    tensor([128], dtype=torch.uint8)
    """
    chosen = corruption_named(name)
    _check_severity(name, severity)
    if images.ndim != 4 or 0 in images.shape[1:] or images.shape[1] not in (1, 3):
        raise CurvactError(f"{name}: images of shape {tuple(images.shape)}; N×C×H×W, C of 1 or 3, is needed")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise CurvactError(f"{name}: images are {images.dtype}; uint8, or floats in [0, 1], are needed")
    if chosen.colour and images.shape[1] != 3:
        raise CurvactError(f"{name} changes colours: images of three channels are needed")
    x = images.cpu().float() / 255 if images.dtype == torch.uint8 else images.cpu().float()
    where = range(len(images)) if places is None else places.tolist()
    randoms = [generator(seed, f"corruption/{name}", severity, place) for place in where]
    if len(images) == 0:
        return images.to(torch.uint8)
    return as_bytes(chosen.function(x, chosen.settings[severity - 1], randoms).clamp(0, 1))


def _check_severity(name: str, severity: object) -> None:
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise CurvactError(f"severity={severity!r} of {name}: 1, 2, 3, 4 or 5")


def corruption_named(name: str) -> Corruption:
    """The corruption of this name. Raises CurvactError for an unknown one."""
    if name not in CORRUPTIONS:
        raise CurvactError(
            f"unknown corruption '{name}'{nearest(name, CORRUPTIONS)}; known are {', '.join(CORRUPTIONS)}"
        )
    return CORRUPTIONS[name]


def suitable(channels: int) -> tuple[str, ...]:
    """The names of the corruptions that suit images of so many channels."""
    return tuple(name for name, c in CORRUPTIONS.items() if channels == 3 or not c.colour)


def corrupted(data: Dataset, name: str, severity: int, *, seed: int = 0) -> Dataset:
    """A data set with a corruption, such as "cifar10/test, fog 3", to attack or to evaluate on.

    >>> from curvact.data import load
    >>> corrupted(load("digits").test, "contrast", 5).name
    'digits/test, contrast 5'
    """
    parts = [
        corrupt(data.images[places], name, severity, seed=seed, places=places)
        for places in torch.arange(len(data)).split(at_once(data.images.shape[1:]))  # type: ignore[no-untyped-call]
    ]
    images, labels = torch.cat(parts), data.labels.cpu()
    sha256 = content_hash(images, labels)
    return replace(data, name=f"{data.name}, {name} {severity}", images=images, labels=labels, sha256=sha256)


# ---- CIFAR-10-C and its like on disk ----


def stored_corruptions(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the corruptions in a folder such as CIFAR-10-C: NAME.npy, and labels.npy."""
    place = Path(folder)
    if not (place / "labels.npy").exists():
        raise CurvactError(f"{place} is no folder such as CIFAR-10-C: it has no labels.npy")
    names = tuple(sorted(p.stem for p in place.glob("*.npy") if p.stem != "labels" and p.name[0] != "."))
    if not names:
        raise CurvactError(f"{place} holds no corruption, such as fog.npy")
    return names


def stored_corruption(
    folder: str | os.PathLike[str], name: str, severity: int, classes: Sequence[str] | int | None = None
) -> Dataset:
    """One severity of a corruption in a folder such as CIFAR-10-C.

    The folder holds NAME.npy, uint8, five equal parts one after the other, of severities 1 to 5; and
    labels.npy for all of them. classes: as in `from_arrays`.
    Raises CurvactError, with the name of the file, for what is missing, damaged or of another form.
    """
    known = stored_corruptions(folder)
    if name not in known:
        raise CurvactError(f"{folder} has no {name}.npy{nearest(name, known)}; it has {', '.join(known)}")
    _check_severity(name, severity)
    path = Path(folder) / f"{name}.npy"
    images, labels = map_npy(path), map_npy(Path(folder) / "labels.npy")
    if len(images) % len(SEVERITIES) or len(labels) != len(images):
        raise CurvactError(
            f"{path} holds {len(images):,} images, and labels.npy {len(labels):,} labels: five equal parts"
        )
    count = len(images) // len(SEVERITIES)
    rows = slice((severity - 1) * count, severity * count)
    text = f"{Path(folder).absolute().name}, {name} {severity}"
    return from_arrays(np.array(images[rows]), np.array(labels[rows]), classes=classes, name=text)


# ---- the formulas ----


def _scale(x: Tensor) -> float:
    return min(x.shape[-2:]) / REFERENCE


def _normal(x: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(x.shape[1:], generator=r) for r in randoms])


def _gaussian_noise(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    return x + c * _normal(x, randoms)


def _speckle_noise(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    return x + x * c * _normal(x, randoms)


def _shot_noise(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.poisson(i * c, generator=r) for i, r in zip(x, randoms, strict=True)]) / c


def _impulse_noise(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """A part c of all values: half of them become 1, half of them 0."""
    drawn = torch.stack([torch.rand(x.shape[1:], generator=r) for r in randoms])
    return torch.where(drawn < c / 2, 0.0, torch.where(drawn < c, 1.0, x))


def _filtered(x: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """Each channel filtered by one kernel, or by one for each image (N×h×w)."""
    kernels = kernel.expand(len(x), *kernel.shape[-2:]).repeat_interleave(x.shape[1], 0)[:, None]
    down, across = (side // 2 for side in kernel.shape[-2:])
    padded = _padded(x, down, across, mode)
    flat = padded.reshape(1, -1, *padded.shape[-2:])
    return F.conv2d(flat, kernels, groups=flat.shape[1]).view(x.shape)


def _padded(x: Tensor, down: int, across: int, mode: str) -> Tensor:
    """Padding of any width: `reflect` in steps that torch allows."""
    while down or across:
        now_down, now_across = down, across
        if mode == "reflect":
            now_down, now_across = min(down, x.shape[-2] - 1), min(across, x.shape[-1] - 1)
            if now_down + now_across == 0:
                mode = "replicate"
                continue
        x = F.pad(x, (now_across, now_across, now_down, now_down), mode=mode)
        down, across = down - now_down, across - now_across
    return x


def _gauss(sigma: float, radius: int) -> Tensor:
    at = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-at.square() / (2 * max(sigma, 1e-6) ** 2))
    return weights / weights.sum()


def _gaussian_blur(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    sigma = c * _scale(x)
    line = _gauss(sigma, max(1, int(4 * sigma + 0.5)))
    return _filtered(x, torch.outer(line, line), "replicate")


def _defocus_blur(x: Tensor, c: tuple[float, float], randoms: Sequence[torch.Generator]) -> Tensor:
    """A disk, smoothed by a Gaussian on 3×3 pixels."""
    radius = c[0] * _scale(x)
    reach = max(1, math.ceil(radius)) + 1
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = ((at[:, None].square() + at.square()) <= radius**2).float()
    line = _gauss(c[1], 1)
    kernel = F.conv2d((disk / disk.sum())[None, None], torch.outer(line, line)[None, None], padding=1)[0, 0]
    return _filtered(x, kernel, "reflect")


def _motion_blur(x: Tensor, c: tuple[float, float], randoms: Sequence[torch.Generator]) -> Tensor:
    """Gaussian weights along a half-line whose angle is uniform in ±45°."""
    scale = _scale(x)
    taps = torch.arange(0, 2 * max(1, round(c[0] * scale)) + 1, dtype=torch.float32)
    weights = torch.exp(-taps.square() / (2 * (c[1] * scale) ** 2))
    weights = weights / weights.sum()
    angles = torch.tensor([float(torch.rand((), generator=r)) for r in randoms]) * math.pi / 2 - math.pi / 4
    out = torch.zeros_like(x)
    for tap, weight in zip(taps.tolist(), weights.tolist(), strict=True):
        out += weight * _sampled(x, 1.0, tap * angles.cos(), tap * angles.sin())
    return out


def _zoom_blur(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """The mean of the image and its zooms by 1, 1.01, … below c."""
    zooms = np.arange(1, c, 0.01).tolist()
    zero = torch.zeros(len(x))
    out = x.clone()
    for zoom in zooms:
        out += _sampled(x, zoom, zero, zero)
    return out / (len(zooms) + 1)


def _sampled(x: Tensor, zoom: float, across: Tensor, down: Tensor) -> Tensor:
    """The images, enlarged about their centre and shifted by pixels, bilinear, the edge repeated."""
    height, width = x.shape[-2:]
    move = torch.zeros(len(x), 2, 3)
    move[:, 0, 0] = move[:, 1, 1] = 1 / zoom
    move[:, 0, 2], move[:, 1, 2] = 2 * across / width, 2 * down / height
    grid = F.affine_grid(move, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _fog(x: Tensor, c: tuple[float, float], randoms: Sequence[torch.Generator]) -> Tensor:
    height, width = x.shape[-2:]
    size = 2 ** math.ceil(math.log2(max(height, width, 2)))
    clouds = _plasma(size, c[1], randoms)[:, None, :height, :width]
    highest = x.flatten(1).max(1).values.view(-1, 1, 1, 1)
    return (x + c[0] * clouds) * highest / (highest + c[0])


def _plasma(size: int, decay: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """Clouds in [0, 1] by the diamond-square algorithm, N×size×size (a power of two), wrapped
    around.
    """
    counts = [2**level for level in range(size.bit_length() - 1)]
    drawn = sum(3 * count**2 for count in counts)
    noise = torch.stack([torch.rand(drawn, generator=r, dtype=torch.float64) for r in randoms]) * 2 - 1
    clouds = torch.zeros(len(noise), size, size, dtype=torch.float64)
    wibble = 100.0
    for count in counts:
        step, half = size // count, size // count // 2
        squares, rows, columns = noise[:, : 3 * count**2].reshape(-1, 3, count, count).unbind(1)
        noise = noise[:, 3 * count**2 :]
        corners = clouds[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        middles = (total + total.roll(-1, 2)) / 4 + wibble**2 * squares
        across = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        down = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        clouds[:, half::step, half::step] = middles
        clouds[:, ::step, half::step] = across / 4 + wibble**2 * rows
        clouds[:, half::step, ::step] = down / 4 + wibble**2 * columns
        wibble /= decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    return (clouds / clouds.amax((1, 2), keepdim=True).clamp_min(1e-12)).float()


def _brightness(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """c is added to the value of HSV; hue and saturation stay."""
    value = x.max(1, keepdim=True).values
    brighter = (value + c).clamp_max(1)
    return torch.where(value > 0, x * brighter / value.clamp_min(1e-12), brighter)


def _contrast(x: Tensor, c: float, randoms: Sequence[torch.Generator]) -> Tensor:
    means = x.mean((2, 3), keepdim=True)
    return (x - means) * c + means


def _saturate(x: Tensor, c: tuple[float, float], randoms: Sequence[torch.Generator]) -> Tensor:
    """The saturation s of HSV becomes s·c₀ + c₁. Grey has the hue of red, as in scikit-image."""
    value, low = x.max(1, keepdim=True).values, x.min(1, keepdim=True).values
    saturation = (value - low) / value.clamp_min(1e-12)
    wanted = (saturation * c[0] + c[1]).clamp(0, 1)
    coloured = value - (value - x) * wanted / saturation.clamp_min(1e-12)
    red = torch.cat([value, value * (1 - wanted), value * (1 - wanted)], 1)
    return torch.where(saturation > 0, coloured, red)


def _by_pillow(change: Callable[[Any, Any], Any]) -> Function:
    """A corruption of one picture of PIL as a function of a batch."""

    def corrupted(x: Tensor, c: Any, randoms: Sequence[torch.Generator]) -> Tensor:
        from PIL import Image

        out = []
        for image in as_bytes(x.clamp(0, 1)).permute(0, 2, 3, 1).numpy():
            picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
            out.append(np.asarray(change(picture, c)).reshape(image.shape))
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255

    return corrupted


def _pixelated(picture: Any, c: float) -> Any:
    from PIL import Image

    small = tuple(max(1, int(side * c)) for side in picture.size)
    return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)


def _as_jpeg(picture: Any, quality: int) -> Any:
    from PIL import Image

    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=quality)
    with Image.open(packed) as unpacked:
        return unpacked.convert(picture.mode)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "motion_blur": Corruption(
        _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "numbers [paper], kernel [ours] in place of ImageMagick's",
    ),
    "zoom_blur": Corruption(
        _zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26), "[paper], zooms about the exact centre [ours]"
    ),
    "fog": Corruption(_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), colour=True),
    "pixelate": Corruption(_by_pillow(_pixelated), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(_by_pillow(_as_jpeg), (80, 65, 58, 50, 40)),
}
"""The corruptions by name."""
