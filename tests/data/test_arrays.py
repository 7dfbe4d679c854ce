"""`from_arrays`: the same data set from every form, exactly; everything else is one line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data import Dataset as TorchDataset

from curvact.attacks import PGD, ThreatModel, accuracy
from curvact.data import Dataset, LazyImages, Splits, epoch_batches, from_arrays, load, split
from curvact.data.pipeline import Augmentation
from curvact.errors import CurvactError
from curvact.lab.record import evaluate
from curvact.models import MiniResNet
from curvact.training import Recipe, fit
from fake_data import memory_limit

DIGITS = load("digits").train.first(200)
BYTES, LABELS = DIGITS.images.numpy(), DIGITS.labels.numpy()
THREAT = ThreatModel("linf", 0.1)


class Items(TorchDataset[Any]):
    """A map-style data set of (image, label)."""

    classes = tuple("abcdefghij")

    def __init__(
        self, images: Any = BYTES, labels: Any = LABELS, change: Any = lambda i, x, y: (x, y)
    ) -> None:
        self.images, self.labels, self.change = images, labels, change
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.change(index, self.images[index], int(self.labels[index]))


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap[Any, Any]:
    np.save(tmp_path / "x.npy", BYTES)
    found = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(found, np.memmap)
    return found


def forms(mapped: Any) -> dict[str, Any]:
    x = torch.from_numpy(BYTES)
    pil = Items(change=lambda i, x, y: (Image.fromarray(x[0]), y))
    return {
        "numpy": (BYTES, LABELS),
        "tensor": (x, DIGITS.labels),
        "last": (BYTES.transpose(0, 2, 3, 1), LABELS),
        "no channels": (BYTES[:, 0], LABELS),
        "float32": (BYTES.astype(np.float32) / 255, LABELS.astype(np.int8)),
        "float64": (BYTES / 255, LABELS.astype(np.uint64)),
        "big endian": ((BYTES / 255).astype(">f4"), LABELS.tolist()),
        "to tensor": (x.float() / 255, DIGITS.labels.to(torch.int16)),
        "mapped": (mapped, LABELS),
        "items": (Items(),),
        "pictures": (pil,),
        "tensors": (TensorDataset(x.float() / 255, DIGITS.labels),),
        "loader": (DataLoader(Items(change=lambda i, x, y: (torch.from_numpy(x), y)), 32, shuffle=True),),
        "own collate": (
            DataLoader(
                Items(),
                8,
                collate_fn=lambda items: {
                    "image": np.stack([x for x, _ in items]),
                    "label": [y for _, y in items],
                },
            ),
        ),
    }


FORMS = tuple(forms(BYTES))


@pytest.mark.parametrize("memory", [2**32, 0])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data_set(mapped: Any, form: str, memory: int) -> None:
    data = from_arrays(*forms(mapped)[form], memory=memory)
    assert data.sha256 == DIGITS.sha256
    lazy = memory == 0 and form in ("mapped", "items", "pictures", "tensors", "loader", "own collate")
    assert isinstance(data.images, LazyImages) == lazy
    index = torch.tensor([5, 199, 0, 5])
    assert torch.equal(data.images[index], DIGITS.images[index])
    assert torch.equal(data.inputs(slice(3, 9)), DIGITS.inputs(slice(3, 9)))
    assert torch.equal(data.labels, DIGITS.labels)
    assert data.images.shape == DIGITS.images.shape
    named = form in ("items", "pictures", "loader", "own collate")
    assert data.classes == (Items.classes if named else tuple("0123456789"))
    x = DIGITS.images.double() / 255
    assert data.mean[0] == pytest.approx(float(x.mean()), rel=1e-12)
    assert data.std[0] == pytest.approx(float(x.std()), rel=1e-12)
    assert torch.equal(data.first(7).images[:], DIGITS.images[:7])
    assert data.first(7).sha256 == DIGITS.first(7).sha256


def test_a_mapped_file_of_the_other_byte_order(tmp_path: Path) -> None:
    """torch takes arrays in the byte order of the machine alone."""
    np.save(tmp_path / "x.npy", (BYTES / 255).astype(">f4" if sys.byteorder == "little" else "<f4"))
    data = from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS, memory=0)
    assert isinstance(data.images, LazyImages)
    assert data.sha256 == DIGITS.sha256
    index = torch.tensor([5, 199, 0, 5])
    assert torch.equal(data.images[index], DIGITS.images[index])


def test_floats_that_are_no_bytes_are_kept_exactly() -> None:
    images = np.random.default_rng(0).random((50, 3, 6, 9), np.float32)
    data = from_arrays(images, np.arange(50) % 2)
    assert data.images.dtype == torch.float32
    assert np.array_equal(data.inputs().numpy(), images)
    assert data.mean == pytest.approx(images.mean((0, 2, 3), dtype=np.float64))
    assert data.std == pytest.approx(images.std((0, 2, 3), dtype=np.float64, ddof=1))
    data.inputs(slice(0, 5)).zero_()
    assert np.array_equal(data.inputs().numpy(), images)
    plain = next(epoch_batches(data, 50, seed=0, epoch=1))[0]
    assert sorted(plain.flatten(1).sum(1).tolist()) == sorted(data.inputs().flatten(1).sum(1).tolist())


def test_what_happens_to_the_array_later_changes_nothing() -> None:
    images, tensor = BYTES.copy(), torch.from_numpy(BYTES.copy())
    for given in (images, tensor):
        data = from_arrays(given, LABELS)
        given[:] = 0
        assert torch.equal(data.images, DIGITS.images)


def test_splits_are_those_of_the_named_data_set(mapped: Any) -> None:
    """The permutation depends on the number of images alone; lazy images are split without reading."""
    whole = from_arrays(BYTES, LABELS)
    wanted = split(whole)
    for memory in (2**32, 0):
        found = from_arrays(mapped, LABELS, test=0.2, memory=memory)
        assert isinstance(found, Splits)
        for name in ("train", "validation", "test"):
            mine, theirs = getattr(found, name), getattr(wanted, name)
            assert (mine.sha256, mine.mean, mine.std) == (theirs.sha256, theirs.mean, theirs.std)
    assert [len(s) for s in (wanted.train, wanted.validation, wanted.test)] == [140, 20, 40]
    both = torch.cat([wanted.train.labels, wanted.validation.labels, wanted.test.labels])
    assert sorted(both.tolist()) == sorted(LABELS.tolist())


def test_test_and_validation_images_of_their_own() -> None:
    tests = BYTES[:30], LABELS[:30]
    for test in (
        tests,
        from_arrays(*tests, classes=10),
        Items(*tests),
        DataLoader(TensorDataset(torch.from_numpy(tests[0]), torch.from_numpy(tests[1]))),
    ):
        found = from_arrays(BYTES, LABELS, test=test, validation=(BYTES[30:50], LABELS[30:50]), classes=10)
        assert torch.equal(found.test.images[:], DIGITS.images[:30])
        assert torch.equal(found.validation.labels, DIGITS.labels[30:50])
        assert sorted(found.train.labels.tolist()) == sorted(LABELS.tolist())
        assert found.test.mean == found.train.mean
    again = split(from_arrays(BYTES, LABELS), test=from_arrays(*tests, classes=10))
    assert again.test.sha256 == found.test.sha256


FULL = np.full((200, 1, 8, 8), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ((BYTES, np.eye(10)[LABELS]), {}, "one-hot? write labels.argmax(1)"),
        ((BYTES, LABELS[:, None]), {}, "write labels[:, 0]"),
        ((BYTES, LABELS.astype(float)), {}, "labels are float64"),
        ((BYTES, LABELS > 3), {}, "labels are bool"),
        ((BYTES, np.where(LABELS == 3, -100, LABELS)), {}, "labels from -100 to 9"),
        (
            (BYTES, np.where(LABELS == 3, 10, LABELS)),
            {"classes": 10},
            "labels from 0 to 10; they must lie in 0 … 9",
        ),
        ((BYTES, np.where(LABELS == 3, 10, LABELS)), {}, "no image of class 3, but of class 10"),
        ((BYTES, LABELS[:7]), {}, "7 labels for 200 images"),
        ((BYTES, None), {}, "without labels"),
        ((BYTES, [[0], [1, 2]]), {}, "list of labels"),
        ((BYTES, ["cat"] * 200), {}, "one whole number an image"),
        ((BYTES.astype(int), LABELS), {}, "images are int64"),
        ((BYTES > 3, LABELS), {}, "masks?"),
        ((BYTES.astype(np.float32), LABELS), {}, "divide them by 255"),
        (((BYTES / 255 - 0.3) / 0.2, LABELS), {}, "normalized?"),
        ((np.where(BYTES > 3, np.nan, 0.5), LABELS), {}, "NaN"),
        ((np.zeros((200, 8, 8, 4)), LABELS), {}, "neither 1 nor 3 channels"),
        ((np.zeros((200, 64)), LABELS), {}, "shape (200, 64)"),
        ((BYTES[:0], LABELS[:0]), {}, "no images"),
        ((FULL, LABELS * 0), {}, "one class"),
        (("photos", LABELS), {}, "images are a str"),
        ((DIGITS,), {}, "a Dataset of curvact already"),
        ((Items(), LABELS), {}, "gives its labels itself"),
        ((BYTES, LABELS), {"validation": 0.1}, "give test too"),
        ((BYTES, LABELS), {"test": 1.5}, "test=1.5"),
        ((BYTES, LABELS), {"test": True}, "True"),
        ((BYTES, LABELS), {"test": 0.5, "validation": 0.5}, "no training images"),
        ((BYTES, LABELS), {"test": 0.001}, "no image is left"),
        ((BYTES, LABELS), {"test": (BYTES[:, :, :6], LABELS)}, "arrays/test has images of shape (1, 6, 8)"),
        ((BYTES, LABELS), {"test": (BYTES, LABELS + 1)}, "no image of class 10"),
        ((BYTES, LABELS), {"name": ""}, "name=''"),
        ((BYTES, LABELS), {"memory": -1}, "memory=-1"),
        ((BYTES, LABELS), {"classes": ["a"]}, "at least 2 names"),
        ((BYTES, LABELS), {"classes": 3.5}, "classes=3.5"),
        ((np.ma.masked_less(BYTES, 9), LABELS), {}, "images are a masked array"),
        ((BYTES, torch.from_numpy(LABELS).to_sparse()), {}, "labels are a sparse tensor"),
        ((torch.empty(200, 1, 8, 8, device="meta"), LABELS), {}, "meta device"),
    ],
)
def test_what_is_refused(arguments: Any, options: Any, part: str) -> None:
    with pytest.raises(CurvactError) as caught:
        from_arrays(*arguments, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def noisy(index: int, image: Any, label: int) -> Any:
    return torch.rand(1, 8, 8), label


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (Items(change=noisy), "its transform is random"),
        (Items(change=lambda i, x, y: (x, float(y))), "item 0: the label is a float"),
        (Items(change=lambda i, x, y: (x, np.eye(10)[y])), "ndarray of shape (10,)"),
        (Items(change=lambda i, x, y: x), "item 0 is a ndarray: (image, label)"),
        (Items(change=lambda i, x, y: (x[:, : 8 - (i == 7)], y)), "item 7 is torch.uint8 of shape (1, 7, 8)"),
        (Items(change=lambda i, x, y: ((x / 255 - 0.5) / 0.2, y)), "normalized?"),
        (Items(change=lambda i, x, y: (Image.new("I;16", (8, 8)), y)), "item 0 has more than 8 bits"),
        (Items(BYTES[:0]), "no images"),
        (Stream(), "cannot be read by index"),
        (DataLoader(Stream()), "cannot be read by index"),
        (DataLoader(Items(), sampler=WeightedRandomSampler([1.0] * 200, 200)), "WeightedRandomSampler"),
        (DataLoader(Items(), batch_sampler=[[0, 1]]), "batch_sampler of its own"),
        (DataLoader(Items(), batch_size=None), "batch_sampler of its own"),
    ],
)
def test_torch_data_that_is_refused(source: Any, part: str) -> None:
    with pytest.raises(CurvactError) as caught:
        from_arrays(source)
    assert part in str(caught.value)


def test_parts_of_torch_data_sets() -> None:
    places = [9, 3, 77]
    part = from_arrays(Subset(Items(), places))
    assert part.classes == Items.classes
    assert torch.equal(part.images, DIGITS.images[places])
    drawn = from_arrays(DataLoader(Items(), 2, sampler=SubsetRandomSampler(places)))
    assert torch.equal(drawn.images, DIGITS.images[sorted(places)])


class Rows:
    """As `datasets.Dataset`: rows by index, several at once by `__getitems__`, and features."""

    features: ClassVar[dict[str, Any]] = {"image": None, "label": SimpleNamespace(names=list("abcdefghij"))}

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        return {"image": Image.fromarray(BYTES[index, 0]), "label": int(LABELS[index])}

    def __getitems__(self, places: list[int]) -> list[Any]:
        return [self[place] for place in places]


def test_rows_of_hugging_face() -> None:
    data = from_arrays(Rows())
    assert data.sha256 == DIGITS.sha256
    assert data.classes == tuple("abcdefghij")
    assert len(from_arrays(Rows(), test=Rows()).test) == 200


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"images": DIGITS.images.float()}, "images lie in [0, 255]"),
        ({"images": DIGITS.images.double()}, "images are torch.float64"),
        ({"images": DIGITS.images[0]}, "shape (1, 8, 8)"),
        ({"labels": DIGITS.labels.int()}, "labels are torch.int32"),
        ({"labels": DIGITS.labels[:, None]}, "shape (200, 1)"),
        ({"labels": DIGITS.labels - 1}, "labels lie in -1 … 8 of 10 classes"),
        ({"classes": ("a", "b")}, "labels lie in 0 … 9 of 2 classes"),
    ],
)
def test_a_data_set_made_without_the_door_is_checked_too(change: Any, part: str) -> None:
    with pytest.raises(CurvactError) as caught:
        replace(DIGITS, **change)
    assert part in str(caught.value)


def test_fit_and_accuracy_take_lazy_images(mapped: Any) -> None:
    """Weights and accuracies are those of the same images in memory, bit for bit."""
    recipe = Recipe(epochs=1, batch_size=64, attack="pgd-1", crop=1, flip=True, cutout=2)
    results = []
    for memory in (2**32, 0):
        data = from_arrays(mapped, LABELS, test=0.2, memory=memory)
        model = MiniResNet("silu", channels=1, width=2, generator=torch.Generator().manual_seed(0))
        epochs = fit(model, data, recipe, THREAT)
        test = data.test
        found = accuracy(model, test.inputs(), test.labels, PGD(2, start="none").on(THREAT))
        results.append((epochs[0].validation_robust_accuracy, found.robust, model.state_dict()))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(results[1][2][name], value) for name, value in results[0][2].items())


def test_lazy_images_are_read_in_parts() -> None:
    items = Items()
    data: Dataset = from_arrays(items, memory=0)
    items.read.clear()
    parts = split(data)
    items.read.clear()
    next(epoch_batches(parts.train, 16, seed=0, epoch=1, augmentation=Augmentation(crop=1)))
    assert len(items.read) == 16


def test_an_evaluation_on_record_takes_lazy_images(mapped: Any) -> None:
    model = MiniResNet("silu", channels=1, width=2)
    records = [
        evaluate(
            model,
            from_arrays(mapped, LABELS, memory=memory).first(30),
            THREAT,
            attack="pgd-2",
            masking="none",
        )
        for memory in (2**32, 0)
    ]
    assert records[0].key == records[1].key
    assert records[0].robust_correct == records[1].robust_correct


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise elsewhere")
def test_a_file_larger_than_the_memory(tmp_path: Path) -> None:
    """100 MB of images, and 70 MB of memory: looked at, hashed, split and drawn from."""
    images = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1000, 3, 184, 184))
    images[:, :, 0, 0] = (np.arange(1000) % 251)[:, None]
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    del images
    labels = np.arange(1000) % 251 % 2
    with memory_limit(70):
        data = from_arrays(mapped, labels, test=0.2, memory=2**20)
        x, y = next(epoch_batches(data.train, 16, seed=0, epoch=1))
    assert x.shape == (16, 3, 184, 184)
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long() % 2, y)
