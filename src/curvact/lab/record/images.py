"""The images of an evaluation: clean and attacked, and what the model says of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curvact.attacks.losses import classes
from curvact.data import Dataset
from curvact.lab.record.record import write_file
from curvact.models.modes import mode

PICTURES = 8
"""Images of which the clean and the attacked one are written as pictures too."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """data: N images. adversarial: N×C×H×W in [0, 1]. prediction: the class that the model sees in
    each, N (-1 for NaN). rounded_correct: whether it is right after rounding to 8 bits, N."""

    data: Dataset
    adversarial: Tensor
    prediction: Tensor
    rounded_correct: list[bool]

    @staticmethod
    def of(model: nn.Module, data: Dataset, x_adv: Tensor, batch_size: int) -> Attacked:
        """The answers of a model to attacked images and to their roundings."""
        prediction, rounded = [], []
        with mode(model, training=False), torch.no_grad():
            for part in torch.split(x_adv, batch_size):
                prediction.append(classes(model(part)))
                rounded.append(classes(model((255 * part).round() / 255)))
        right = torch.cat(rounded) == data.labels
        return Attacked(data, x_adv, torch.cat(prediction), right.tolist())


def write_images(attacked: Attacked, path: Path) -> None:
    """Write `path` (.npz), and beside it a picture (.png) of the first images that the attack broke.

    The arrays: clean and adversarial (float32 in [0, 1], N×C×H×W), label and prediction (int64, N),
    index (of the image in its split, N). In the picture the clean images are above, the attacked
    ones below. Raises CurvactError where a file cannot be written.

    >>> import tempfile
    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> test, model = load("digits").test.first(3), MiniResNet(channels=1, width=2)
    >>> file = Path(tempfile.mkdtemp()) / "images.npz"
    >>> write_images(Attacked.of(model, test, test.inputs(), 3), file)
    >>> np.load(file)["adversarial"].shape, file.with_suffix(".png").is_file()
    ((3, 1, 8, 8), True)
    """
    arrays: dict[str, NDArray[np.generic]] = {
        "clean": attacked.data.inputs().cpu().numpy(),
        "adversarial": attacked.adversarial.float().cpu().numpy(),
        "label": attacked.data.labels.cpu().numpy(),
        "prediction": attacked.prediction.cpu().numpy(),
        "index": np.arange(len(attacked.data)),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_file(path, stream.getvalue())
    write_file(path.with_suffix(".png"), _picture(arrays))


def _picture(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    from matplotlib.figure import Figure

    from curvact.lab.report.style import to_png

    changed = (arrays["clean"] != arrays["adversarial"]).reshape(len(arrays["clean"]), -1).any(1)
    broken = changed & (arrays["prediction"] != arrays["label"])
    shown = np.argsort(~broken, kind="stable")[:PICTURES]
    figure = Figure(figsize=(1.1 * len(shown), 2.6), dpi=150, layout="constrained")
    rows = figure.subplots(2, len(shown), squeeze=False)
    for column, i in enumerate(shown):
        for row, (kind, said) in enumerate((("clean", "label"), ("adversarial", "prediction"))):
            axes, image = rows[row][column], np.moveaxis(arrays[kind][i], 0, -1)
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{said} {arrays[said][i]}", fontsize=7)
            axes.set_axis_off()
    return to_png(figure)
