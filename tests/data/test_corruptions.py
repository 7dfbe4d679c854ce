"""Corruptions against closed forms, scipy and pillow; the same draws in any batch."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from curvact.attacks import corruption_accuracy
from curvact.data import class_map, load, pseudo_label, split
from curvact.data.corruptions import (
    CORRUPTIONS,
    _plasma,
    corrupt,
    corrupted,
    stored_corruption,
    stored_corruptions,
    suitable,
)
from curvact.errors import CurvactError
from curvact.models import MiniResNet

COLOUR = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
FLAT = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)


def values(x: torch.Tensor) -> torch.Tensor:
    return x.double() / 255


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_brightness_and_saturation_are_those_of_hsv(severity: int) -> None:
    """The standard library's HSV, pixel by pixel. Grey pixels have the hue of red."""
    x = COLOUR[:1, :, :8, :8].clone()
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 77
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    factor, plus = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    for name in ("brightness", "saturate"):
        found = corrupt(x, name, severity)
        for row in range(8):
            for column in range(8):
                h, s, v = colorsys.rgb_to_hsv(*values(x[0, :, row, column]).tolist())
                if name == "brightness":
                    v = min(1, v + more)
                else:
                    s = min(1, max(0, s * factor + plus))
                wanted = np.array(colorsys.hsv_to_rgb(h, s, v)) * 255
                assert np.abs(found[0, :, row, column].numpy() - wanted).max() <= 0.51


def test_brightness_of_grey_images_is_a_sum() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(corrupt(x, "brightness", 4)[0], (x[0].int() + 51).clamp_max(255).to(torch.uint8))


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (2, 0.5), (5, 0.15)])
def test_contrast_is_a_contraction_to_the_mean(severity: int, factor: float) -> None:
    x = values(COLOUR)
    means = x.mean((2, 3), keepdim=True)
    wanted = 255 * (means + factor * (x - means))
    assert float((corrupt(COLOUR, "contrast", severity).double() - wanted).abs().max()) <= 0.501


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_has_the_moments_of_its_law(severity: int) -> None:
    """150,000 values of grey 128/255: mean and deviation, each within five standard errors."""
    level = 128 / 255
    sigma = (0.04, 0.1)[severity == 5]
    speckle = (0.06, 0.2)[severity == 5] * level
    shot = (level / (500, 50)[severity == 5]) ** 0.5
    for name, deviation in (("gaussian_noise", sigma), ("speckle_noise", speckle), ("shot_noise", shot)):
        found = values(corrupt(FLAT, name, severity))
        error = deviation / found.numel() ** 0.5
        assert abs(float(found.mean()) - level) < 5 * error
        assert abs(float(found.std()) - deviation) < 5 * error + 1e-3 * deviation + 1e-5


def test_impulse_noise_is_half_salt_half_pepper() -> None:
    found = corrupt(FLAT, "impulse_noise", 5)
    count = found.numel()
    for value in (0, 255):
        part = int((found == value).sum()) / count
        assert abs(part - 0.035) < 5 * (0.035 * 0.965 / count) ** 0.5
    assert set(found.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (3, 0.7), (5, 1.0)])
def test_gaussian_blur_is_that_of_scipy(severity: int, sigma: float) -> None:
    for x, scale in ((COLOUR[0], 1.0), (COLOUR[0].repeat(1, 2, 2), 2.0)):
        found = corrupt(x[None], "gaussian_blur", severity)[0]
        wanted = np.stack([gaussian_filter(c.numpy() / 255, sigma * scale, mode="nearest") for c in x]) * 255
        assert np.abs(found.numpy() - wanted).max() <= 0.51


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"])
def test_blurs_keep_constants_and_lower_the_deviation(name: str) -> None:
    for severity in (1, 5):
        assert corrupt(FLAT[:2], name, severity).unique().tolist() == [128]
    deviations = [float(values(corrupt(COLOUR, name, s)).std()) for s in (1, 5)]
    assert float(values(COLOUR).std()) > deviations[0] > deviations[1]


def test_a_point_under_motion_blur_becomes_a_half_line() -> None:
    x = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    x[:, :, 16, 16] = 255
    found = values(corrupt(x, "motion_blur", 5))[:, 0]
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    mass = found.sum((1, 2))
    across = (found * (columns - 16)).sum((1, 2)) / mass
    down = (found * (rows - 16)).sum((1, 2)) / mass
    assert float((mass - 1).abs().max()) < 0.1
    assert float((across.square() + down.square()).sqrt().min()) > 1
    assert len({round(float(d), 2) for d in down}) > 4


def test_pixelate_and_jpeg_are_those_of_pillow(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOUR[0].permute(1, 2, 0).numpy())
    small = picture.resize((24, 24), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(corrupt(COLOUR, "pixelate", 4)[0].permute(1, 2, 0).numpy(), np.asarray(small))
    picture.save(tmp_path / "x.jpg", quality=58)
    with Image.open(tmp_path / "x.jpg") as stored:
        assert np.array_equal(
            corrupt(COLOUR, "jpeg_compression", 3)[0].permute(1, 2, 0).numpy(), np.asarray(stored)
        )


def test_fog_mixes_in_clouds_that_depend_on_the_severity_alone() -> None:
    """fog(x) = (x + c·clouds)·m/(m + c), m the highest value: on a black and white image, exactly."""
    x = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    x[..., 8:] = 255
    found = values(corrupt(x, "fog", 4))[0, 0]
    clouds = 2 * found[:, :8]
    other = 2 * found[:, 8:] - 1
    both = torch.cat([clouds, other], 1)
    assert float(both.min()) > -0.01
    assert float(both.max()) < 1.01
    assert float(both.max() - both.min()) > 0.9


def test_clouds_are_those_of_the_published_program() -> None:
    """The diamond-square of the paper's program, written with loops, fed the same random numbers."""
    size, decay = 8, 2.5
    random, again = (torch.Generator().manual_seed(3) for _ in range(2))
    clouds = np.zeros((size, size))
    step, wibble = size, 100.0

    def noise(count: int, wibble: float) -> Any:
        drawn = torch.rand((count, count), generator=again, dtype=torch.float64)
        return (drawn * 2 - 1).numpy() * wibble**2

    def at(row: int, column: int) -> float:
        return float(clouds[row % size, column % size])

    while step >= 2:
        half = step // 2
        count = size // step

        draws = noise(count, wibble)
        for i in range(count):
            for j in range(count):
                r, c = i * step, j * step
                total = at(r, c) + at(r + step, c) + at(r, c + step) + at(r + step, c + step)
                clouds[r + half, c + half] = total / 4 + draws[i, j]
        for down, across in ((0, half), (half, 0)):
            draws = noise(count, wibble)
            for i in range(count):
                for j in range(count):
                    r, c = i * step + down, j * step + across
                    total = at(r - half, c) + at(r + half, c) + at(r, c - half) + at(r, c + half)
                    clouds[r, c] = total / 4 + draws[i, j]
        step, wibble = half, wibble / decay
    clouds -= clouds.min()
    assert np.allclose(_plasma(size, decay, [random])[0].numpy(), clouds / clouds.max(), atol=1e-6)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 9, 14), (1, 8, 8), (1, 1, 5)])
def test_any_size_and_the_same_draws_in_any_batch(name: str, shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *shape), np.uint8))
    if CORRUPTIONS[name].colour and shape[0] == 1:
        assert name not in suitable(1)
        with pytest.raises(CurvactError, match="three channels"):
            corrupt(x, name, 1)
        return
    whole = corrupt(x, name, 5, seed=7)
    assert whole.dtype == torch.uint8
    assert whole.shape == x.shape
    assert torch.equal(corrupt(x[2:], name, 5, seed=7, places=torch.tensor([2])), whole[2:])
    assert torch.equal(corrupt(x.float() / 255, name, 5, seed=7), whole)
    if name.endswith("_noise") and shape[1] > 1:
        assert not torch.equal(corrupt(x, name, 5, seed=8), whole)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((COLOUR, "fogg", 1), "did you mean 'fog'"),
        ((COLOUR, "fog", 0), "severity=0"),
        ((COLOUR, "fog", True), "severity=True"),
        ((COLOUR[0], "fog", 1), "shape (3, 32, 32)"),
        ((COLOUR.long(), "fog", 1), "int64"),
    ],
)
def test_what_is_refused(arguments: Any, part: str) -> None:
    with pytest.raises(CurvactError) as caught:
        corrupt(*arguments)
    assert part in str(caught.value)


def test_accuracy_by_corruption_and_severity() -> None:
    """Against a loop over corrupted data sets; the mode of the model comes back."""
    model, data = MiniResNet(channels=1, width=4).train(), load("digits").test.first(60)
    done = []
    found = corruption_accuracy(
        model, data, corruptions=["shot_noise", "contrast"], severities=[2, 5], batch_size=7, seed=3,
        on_done=lambda *what: done.append(what),
    )  # fmt: skip
    assert model.training
    model.eval()
    values = []
    for name in ("shot_noise", "contrast"):
        for place, severity in enumerate((2, 5)):
            part = corrupted(data, name, severity, seed=3)
            right = (model(part.inputs()).argmax(1) == part.labels).double().mean()
            assert found.by[name][place] == float(right)
            values.append(float(right))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.clean == float((model(data.inputs()).argmax(1) == data.labels).double().mean())
    assert [what[:2] for what in done] == [
        ("shot_noise", 2),
        ("shot_noise", 5),
        ("contrast", 2),
        ("contrast", 5),
    ]
    with pytest.raises(CurvactError, match="labels of corruption_accuracy go up to 9"):
        corruption_accuracy(MiniResNet(channels=1, width=2, classes=5), data)


def test_a_folder_such_as_cifar_10_c(tmp_path: Path) -> None:
    data = load("digits").test.first(40)
    parts = [corrupted(data, "fog", severity) for severity in range(1, 6)]
    np.save(tmp_path / "fog.npy", torch.cat([p.images for p in parts]).permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "labels.npy", data.labels.repeat(5).numpy().astype(np.uint8))
    assert stored_corruptions(tmp_path) == ("fog",)
    for severity, wanted in enumerate(parts, 1):
        found = stored_corruption(tmp_path, "fog", severity)
        assert found.sha256 == wanted.sha256
        assert found.name == f"{tmp_path.name}, fog {severity}"
    model = MiniResNet(channels=1, width=2)
    stored = corruption_accuracy(model, tmp_path, severities=[1, 5])
    assert (
        stored.by["fog"] == corruption_accuracy(model, data, corruptions=["fog"], severities=[1, 5]).by["fog"]
    )
    assert stored.clean is None
    for name, message in (("snow", "no snow.npy"), ("fog", "five equal parts")):
        if name == "fog":
            np.save(tmp_path / "labels.npy", data.labels.numpy())
        with pytest.raises(CurvactError, match=message):
            stored_corruption(tmp_path, name, 1)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(CurvactError, match=r"no labels\.npy"):
        corruption_accuracy(model, tmp_path)


def test_wrong_arguments_are_one_line() -> None:
    """Splits in place of a data set, and one name in place of a list."""
    splits, model = load("digits"), MiniResNet(channels=1, width=2)
    for wrong in (splits, (splits.test.images, splits.test.labels), None):
        with pytest.raises(
            CurvactError, match=r"data=.* of corruption_accuracy: a Dataset of curvact"
        ) as caught:
            corruption_accuracy(model, wrong)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        with pytest.raises(CurvactError, match=r"split got a .*: a Dataset"):
            split(wrong)  # type: ignore[arg-type]
        with pytest.raises(CurvactError, match=r"pseudo_label got a .*: ExtraImages"):
            pseudo_label(model, wrong, "labels.npy")  # type: ignore[arg-type]
    alone = corruption_accuracy(model, splits.test.first(9), corruptions="fog", severities=2)
    assert alone == corruption_accuracy(model, splits.test.first(9), corruptions=["fog"], severities=[2])
    with pytest.raises(CurvactError, match="classes of class_map are a str: a list of names"):
        class_map("ab", ["a", "b"])
