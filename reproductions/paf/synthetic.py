"""Make synthetic digits for paf/synthetic-digits.yaml: a stand-in for the paper's images of a diffusion model.

    python reproductions/paf/synthetic.py runs/digits-mixture.npz

A mixture of Gaussians is fitted to the training images of each class, on their principal components. The
validation and test images have no part in it. Printed is how well a classifier that saw only the synthetic
images knows the real test images.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.svm import SVC

from curvact.data import load
from curvact.errors import CurvactError
from curvact.files import atomic_write

COMPONENTS, PARTS = 20, 4
"""Principal components of the images, and Gaussians of a class."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--images", type=int, default=10_000, help="how many, the same number of each class")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    data = load("digits")
    if options.images < len(data.train.classes):
        raise CurvactError(
            f"--images {options.images}: at least one of each class, {len(data.train.classes)}"
        )
    real, labels = flat(data.train.inputs().numpy()), data.train.labels.numpy()
    images, classes = sampled(real, labels, options.images // len(data.train.classes), options.seed)
    judge = SVC().fit(images.reshape(len(images), -1) / 255, classes)
    test = flat(data.test.inputs().numpy())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, image=images, label=classes)
    atomic_write(options.out, content.getvalue())
    print(
        f"{options.out}: {len(images)} images; a classifier of them alone has accuracy "
        f"{judge.score(test, data.test.labels.numpy()):.1%} on the real test images, "
        f"one of the real training images {SVC().fit(real, labels).score(test, data.test.labels.numpy()):.1%}"
    )
    return 0


def flat(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1)


def sampled(
    real: NDArray[np.float32], labels: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` images of each class, uint8 N×8×8×1, and their labels, int64, in mixed order.

    real: images as rows, in [0, 1].
    """
    components = PCA(COMPONENTS, random_state=seed).fit(real)
    parts = []
    for label in range(int(labels.max()) + 1):
        own = components.transform(real[labels == label])
        mixture = GaussianMixture(PARTS, reg_covar=1e-3, random_state=seed).fit(own)
        parts.append(components.inverse_transform(mixture.sample(count)[0]))
    images = np.rint(np.clip(np.concatenate(parts), 0, 1) * 255).astype(np.uint8)
    classes = np.repeat(np.arange(len(parts), dtype=np.int64), count)
    order = np.random.default_rng(seed).permutation(len(images))
    side = round(real.shape[1] ** 0.5)
    return images.reshape(-1, side, side, 1)[order], classes[order]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CurvactError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
