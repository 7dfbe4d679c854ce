"""The one door for images and labels from Python: `from_arrays` checks them and makes a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from curvact.data import pictures
from curvact.data.checks import (
    Array,
    Look,
    as_tensor,
    channels_first,
    check_labels,
    names_of,
    numbered_classes,
    stored_as,
    whole_images,
    whole_labels,
)
from curvact.data.dataset import Dataset, Splits, content_hash, cut, moments
from curvact.data.images import Images, LazyImages, at_once, read_rows
from curvact.errors import CurvactError

MEMORY = 2**32
"""Bytes of images that are kept in memory, by default."""

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "target")

Pair = tuple[Any, Any]
"""Images and labels."""


@overload
def from_arrays(
    images: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] | int | None = None,
    name: str = "arrays",
    memory: int = MEMORY,
) -> Dataset: ...
@overload
def from_arrays(
    images: Any,
    labels: Any = None,
    *,
    test: Any,
    validation: Any = 0.1,
    classes: Sequence[str] | int | None = None,
    name: str = "arrays",
    memory: int = MEMORY,
) -> Splits: ...
def from_arrays(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    validation: Any = None,
    classes: Sequence[str] | int | None = None,
    name: str = "arrays",
    memory: int = MEMORY,
) -> Dataset | Splits:
    """A data set, or its three splits, of images and labels that Python holds.

    images: numpy array or tensor, uint8 or floats in [0, 1]; N×H×W, N×C×H×W or N×H×W×C, with 1 or 3
        channels. Or a torch `Dataset` of (image, label), or a `DataLoader` of one, in the order of
        the data set, without labels beside it. Its transform must not be random. Likewise a data
        set of Hugging Face, and whatever else has items (image, label) by index.
    labels: N whole numbers from 0, of any integer type.
    test: None for one `Dataset`. For `Splits`: a fraction of the images; or test images, as
        (images, labels), a torch `Dataset`, a `DataLoader`, or a `Dataset` of curvact.
    validation: for `Splits`, the same; a tenth by default.
    classes: the name of each class, or their number. None: the `classes` of a torch `Dataset`, else
        0, 1, …, and each must have an image.
    name: for messages and records.
    memory: bytes of images that are kept in memory. More of them, of a `np.memmap` or a torch
        `Dataset`, stay where they are, and are read batch by batch.

    Images are kept exactly. They become uint8 where all are multiples of 1/255, so that the same
    images have the same hash in either form. Other floats are kept as float32.
    Raises CurvactError, in one line, for images of other types, shapes or ranges, for NaN, for labels
    that are no whole numbers, negative or too large, and where the numbers of images and labels
    differ.

    >>> images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    >>> data = from_arrays(images, np.arange(60) % 3)
    >>> len(data), data.images.shape, data.classes
    (60, torch.Size([60, 3, 8, 8]), ('0', '1', '2'))
    >>> from_arrays(images / 255, np.arange(60) % 3).sha256 == data.sha256
    True
    >>> splits = from_arrays(images, np.arange(60) % 3, test=0.2)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (42, 6, 12)
    """
    if not isinstance(name, str) or not name:
        raise CurvactError(f"name={name!r} of from_arrays: a text of at least one letter")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise CurvactError(f"memory={memory!r} of from_arrays: a whole number of bytes >= 0")
    if test is None and validation is not None:
        raise CurvactError(
            f"validation={_shown(validation)} of {name} without test: give test too, such as test=0.2"
        )
    whole = _source(name, images, labels, memory)
    parts: dict[str, Any] = {"validation": 0.1 if validation is None else validation, "test": test}
    for label, given in parts.items():
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            parts[label] = _of_its_own(f"{name}/{label}", given, memory)
            theirs, ours = tuple(parts[label][0].shape[1:]), tuple(whole[0].shape[1:])
            if theirs != ours:
                raise CurvactError(f"{name}/{label} has images of shape {theirs}, {name} of {ours}")
    pairs = [given for given in parts.values() if isinstance(given, tuple)]
    if classes is None:
        classes = _classes_of(images)
    if classes is None:
        names = numbered_classes(name, whole[1], *(labels for _, labels in pairs))
    else:
        names = names_of(classes, name)
        for where, (_, given_labels) in ((name, whole), *((f"{name}/test or validation", p) for p in pairs)):
            check_labels(where, given_labels, len(names))
    if len(names) < 2:
        raise CurvactError(f"{name} has images of one class: at least 2 are needed, or give classes=")
    if test is not None:
        return cut(name, whole, names, **parts)
    mean, std = moments(whole[0])
    return Dataset(name, *whole, names, mean, std, content_hash(*whole))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float, str)) else type(value).__name__


def _of_its_own(where: str, given: Any, memory: int) -> tuple[Images, Tensor]:
    """Test or validation images that are given beside the training images."""
    if isinstance(given, Dataset):
        return given.images, given.labels
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return _source(where, given[0], given[1], memory)
    if isinstance(given, (torch_data.Dataset, torch_data.DataLoader)) or _map_style(given):
        return _source(where, given, None, memory)
    raise CurvactError(
        f"{where} is {_shown(given)}: a fraction in (0, 1), (images, labels), a torch Dataset or a DataLoader"
    )


def _source(where: str, images: Any, labels: Any, memory: int) -> tuple[Images, Tensor]:
    """Checked images and labels of any kind that `from_arrays` takes."""
    if isinstance(images, (torch_data.Dataset, torch_data.DataLoader)):
        if labels is not None:
            raise CurvactError(
                f"{where}: a {type(images).__name__} gives its labels itself: leave out labels"
            )
        return _of_torch(where, images, memory)
    if isinstance(images, Dataset):
        raise CurvactError(
            f"{where}: these images are a Dataset of curvact already; `split` makes its splits"
        )
    if labels is None and _map_style(images):
        return _of_torch(where, images, memory)
    if isinstance(images, list):
        images = _array(where, "images", images)
    if not isinstance(images, (np.ndarray, Tensor)):
        raise CurvactError(
            f"{where}: images are a {type(images).__name__}; a numpy array, a tensor, a torch Dataset or a "
            "DataLoader is needed"
        )
    _check_held(where, "images", images)
    if labels is None:
        raise CurvactError(f"{where}: images without labels: one whole number an image is needed")
    targets = _labels(where, labels, len(images) if images.ndim else 0)
    if isinstance(images, np.memmap) and images.nbytes > memory:
        return _of_map(where, images), targets
    tensor = as_tensor(where, images)
    found = whole_images(where, channels_first(where, tensor.cpu()))
    # The data set has a hash. What happens to the array later must not change its images.
    shared = found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return (found.clone() if shared else found), targets


def _map_style(images: Any) -> bool:
    """Whether this is a data set that is read by index, such as one of Hugging Face."""
    plain = (np.ndarray, Tensor, Mapping, Sequence)
    return hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, plain)


def _check_held(where: str, what: str, values: Any) -> None:
    """CurvactError for arrays that do not hold a value in each place."""
    kind = ""
    if isinstance(values, np.ma.MaskedArray):
        kind = "a masked array"
    elif isinstance(values, Tensor) and (values.layout != torch.strided or values.is_meta):
        kind = "a tensor on the meta device" if values.is_meta else "a sparse tensor"
    if kind:
        raise CurvactError(f"{where}: {what} are {kind}, which does not hold a value in each place")


def _array(where: str, what: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        raise CurvactError(f"{where}: the list of {what} is no array of one shape and type") from None


def _labels(where: str, labels: Any, count: int) -> Tensor:
    _check_held(where, "labels", labels)
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels
        labels = labels.numpy()
    return whole_labels(where, _array(where, "labels", labels), count, where)


def _of_map(where: str, images: Array) -> LazyImages:
    """Images of a mapped file, which stay there. Each is looked at once."""

    def rows(index: Tensor) -> Tensor:
        return channels_first(where, as_tensor(where, read_rows(images, index)))

    places = torch.arange(len(images))
    look = Look(where)
    shape: tuple[int, ...] = ()
    for part in places.split(at_once(images.shape[1:])):  # type: ignore[no-untyped-call]
        found = rows(part)
        look.at(found)
        shape = tuple(found.shape[1:])
    return _lazy(rows, places, shape, look.dtype())


def _lazy(
    rows: Callable[[Tensor], Tensor], places: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> LazyImages:
    def read(index: Tensor) -> Tensor:
        return stored_as(rows(index), dtype).contiguous()

    channels, height, width = shape
    return LazyImages(read, places, (channels, height, width), dtype)


# ---- torch's data sets ----


def _classes_of(images: Any) -> Sequence[str] | None:
    """The names of the classes that a torch `Dataset` carries, or the one that it is a part of."""
    while isinstance(images, (torch_data.DataLoader, torch_data.Subset)):
        images = images.dataset
    found = getattr(images, "classes", None) if isinstance(images, torch_data.Dataset) else None
    features = getattr(images, "features", None)
    if found is None and isinstance(features, Mapping):
        found = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    return [str(name) for name in found] if isinstance(found, (list, tuple)) and found else None


def _of_torch(where: str, source: Any, memory: int) -> tuple[Images, Tensor]:
    """Images and labels of a torch `Dataset`. Each item is read once, and some of them twice."""
    dataset, places, collate = _items_of(where, source)
    fetch = partial(_fetch, where, dataset, collate)
    look, labels, kept = Look(where), [], []
    shape: tuple[int, ...] = ()
    size = 0
    some = set(places[:: max(1, len(places) // 4)].tolist())
    first: dict[int, Tensor] = {}
    for part in places.split(256):  # type: ignore[no-untyped-call]
        images, found = fetch(part)
        if shape and tuple(images.shape[1:]) != shape:
            raise CurvactError(
                f"{where}: the images from {int(part[0])} on have shape {tuple(images.shape[1:])}, those "
                f"before {shape}"
            )
        shape = tuple(images.shape[1:])
        look.at(images)
        labels.append(found)
        first.update({p: images[i].clone() for i, p in enumerate(part.tolist()) if p in some})
        size += images.nbytes
        if size <= memory:
            kept.append(images)
        else:
            kept.clear()
    again, _ = fetch(torch.tensor(list(first)))
    for place, image in zip(first, again, strict=True):
        if not torch.equal(image, first[place]):
            raise CurvactError(
                f"{where}: image {place} differs from one reading to the next: its transform is random; give "
                "the data without augmentation (a Recipe has crop, flip and cutout)"
            )
    dtype = look.dtype()
    if size <= memory:
        return torch.cat([stored_as(part, dtype) for part in kept]).contiguous(), torch.cat(labels)
    return _lazy(lambda index: fetch(index)[0], places, shape, dtype), torch.cat(labels)


def _items_of(where: str, source: Any) -> tuple[Any, Tensor, Callable[[list[Any]], Any] | None]:
    """The data set, the items of it in use, and how a `DataLoader` puts them together."""
    dataset, collate, sampler = source, None, None
    if isinstance(source, torch_data.DataLoader):
        dataset, sampler = source.dataset, source.sampler
        default = torch_data.default_collate
        collate = None if source.collate_fn is default else source.collate_fn
        if type(source.batch_sampler) is not torch_data.BatchSampler:
            raise CurvactError(f"{where}: a DataLoader with a batch_sampler of its own: give its Dataset")
    if isinstance(dataset, torch_data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise CurvactError(
            f"{where}: {type(dataset).__name__} cannot be read by index: a Dataset with __getitem__ and "
            "__len__ is needed"
        )
    count = len(dataset)
    if count == 0:
        raise CurvactError(f"{where} holds no images")
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        chosen = sorted(int(i) for i in sampler.indices)
        if len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
            raise CurvactError(f"{where}: the sampler's indices must lie in 0 … {count - 1}, each once")
        return dataset, torch.tensor(chosen), collate
    whole = (
        isinstance(sampler, torch_data.RandomSampler) and not sampler.replacement and len(sampler) == count
    )
    if sampler is not None and not whole and type(sampler) is not torch_data.SequentialSampler:
        raise CurvactError(
            f"{where}: the DataLoader's {type(sampler).__name__} does not give each image once: give its "
            "Dataset, or a torch.utils.data.Subset of it"
        )
    return dataset, torch.arange(count), collate


def _fetch(
    where: str, dataset: Any, collate: Callable[[list[Any]], Any] | None, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Images, N×C×H×W, and labels of these items."""
    places = index.tolist()
    items = dataset.__getitems__(places) if hasattr(dataset, "__getitems__") else [dataset[p] for p in places]
    if collate is not None:
        images, labels = _pair(f"{where}, a batch", collate(items))
        images = images if isinstance(images, Tensor) else _array(where, "images", images)
        return channels_first(where, as_tensor(where, images)), _labels(where, labels, len(places))
    images, labels = [], []
    for place, item in zip(places, items, strict=True):
        image, label = _pair(f"{where}, item {place}", item)
        images.append(_image(f"{where}, item {place}", image))
        labels.append(_label(f"{where}, item {place}", label))
        if images[-1].shape != images[0].shape or images[-1].dtype != images[0].dtype:
            raise CurvactError(
                f"{where}: item {place} is {images[-1].dtype} of shape {tuple(images[-1].shape)}, item "
                f"{places[0]} is {images[0].dtype} of {tuple(images[0].shape)}"
            )
    return channels_first(where, torch.stack(images)), whole_labels(
        where, np.array(labels), len(places), where
    )


def _pair(where: str, item: Any) -> Pair:
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is not None and label is not None:
            return image, label
    raise CurvactError(f"{where} is a {type(item).__name__}: (image, label) is needed")


def _image(where: str, image: Any) -> Tensor:
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a picture of PIL
        pictures.check(image, where)
        image = np.asarray(pictures.plain(image, grey=pictures.is_grey(image)))
    if not isinstance(image, Tensor):
        image = _array(where, "pixels", image)
    return as_tensor(where, image).cpu()


def _label(where: str, label: Any) -> int:
    if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        shape = f" of shape {tuple(label.shape)}" if hasattr(label, "shape") else ""
        raise CurvactError(
            f"{where}: the label is a {type(label).__name__}{shape}; one whole number an image is needed"
        )
    return int(label)
