"""Pictures as pillow reads them: 8 bits a channel, grey or RGB, scaled and cut out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError

GREY_MODES = ("1", "L", "LA", "La")
"""PIL's modes of pictures that become grey (L). All others become RGB."""

PIXELS = 2**26
"""The most pixels of one picture, such as 8192×8192. A few kilobytes can claim to hold billions."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A picture of a file, of which only the header is read. Errors name the file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                check(image, str(path))
                yield image
    except CurvactError:
        raise
    except Exception as error:  # pillow raises many kinds for a damaged file
        raise CurvactError(f"{path} is truncated or no image: {short(error)}") from None


def check(image: Any, where: str) -> None:
    """CurvactError for a PIL image of too many pixels, or of more than 8 bits a channel.

    Such a picture does not say which of its values is white: 65,535, or 4,095 of a 12-bit camera.
    """
    width, height = image.size
    if width * height > PIXELS or min(width, height) < 1:
        raise CurvactError(f"{where} has {width}×{height} pixels: at least 1 and at most {PIXELS:,} are read")
    stored = [str(part) for tile in getattr(image, "tile", ()) for part in tile[3:] if isinstance(part, str)]
    deep = next((mode for mode in [image.mode, *stored] if mode[:1] in "IF" or ";16" in mode), None)
    if deep is not None:
        raise CurvactError(
            f"{where} has more than 8 bits a channel ({deep}): save it with 8 bits, or give "
            "curvact.data.from_arrays its values as floats in [0, 1]"
        )


def is_grey(image: Any) -> bool:
    """Whether a picture has one channel, an alpha channel not counted."""
    return image.mode in GREY_MODES


def plain(image: Any, *, grey: bool) -> Any:
    """The picture in grey (L) or in RGB, without its alpha channel."""
    image.load()  # a damaged picture has to fail here, where its place is known
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def fitted(image: Any, size: int) -> Any:
    """The centre, size×size pixels, of a PIL image whose shorter side is first scaled to `size`."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if width * height > PIXELS:
        raise CurvactError(
            f"an image of {image.size[0]}×{image.size[1]} pixels becomes {width}×{height} at size={size}: "
            f"at most {PIXELS:,} pixels"
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def short(error: BaseException) -> str:
    """The error's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
