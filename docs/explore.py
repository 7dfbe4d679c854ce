"""Trains the small networks of `curvact explore` and writes what its page shows of them: `python docs/explore.py`.

Two moons, a perceptron with two hidden layers, PGD adversarial training. RCT-AF with each κ, and ReLU,
ten seeds each: other training points, other first weights, another order. All are judged on the same
test points. It takes some minutes on one core, and gives the same numbers on the same machine.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

import curvact as cv
from curvact.files import atomic_write
from curvact.lab.environment import environment
from curvact.lab.report.explore.page import NETWORKS
from curvact.lab.report.interactive import finite
from curvact.lab.statistics.interval import Scale, student
from curvact.random import generator

KAPPAS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)
SEEDS = 10
TRAINED, TESTED, SHOWN = 200, 2000, 70
NOISE, WIDTH, GRID = 0.12, 16, 64
LINF = cv.ThreatModel("linf", 0.05)
RECIPE = cv.Recipe(
    epochs=60,
    batch_size=50,
    learning_rate=0.1,
    warmup=0.1,
    weight_decay=0.0,
    attack="pgd-5",
    validation="pgd-0",
)
ATTACK = cv.PGD(20, restarts=2)
SCALES: dict[str, Scale] = {"clean": "fraction", "robust": "fraction", "hessian": "positive"}


class Centre(nn.Module):
    """N×1×1×2 in [0, 1] → N×2 in [−2, 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * (x.flatten(1) - 0.5)


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two moons in the unit square, as images of one row with two pixels, and their labels."""
    x, y = make_moons(count, noise=NOISE, random_state=seed)
    x = (x - (0.5, 0.25)) / 4 + 0.5
    assert 0 < x.min() < x.max() < 1
    return torch.tensor(x, dtype=torch.float32)[:, None, None], torch.tensor(y)


def network(activation: str, seed: int) -> nn.Module:
    """A perceptron with two hidden layers, made with ReLU, with this activation in its place."""
    layers = [
        Centre(),
        nn.Linear(2, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 2),
    ]
    random = generator(seed, "explore/weights")
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=random)
            nn.init.zeros_(layer.bias)
    model = nn.Sequential(*layers)
    if activation != "relu":
        cv.swap_activations(model, "relu", activation)
    return model


def attacked(model: nn.Module, x: Tensor, y: Tensor, what: str) -> cv.attacks.Accuracy:
    attack = ATTACK.on(LINF, generator=generator(0, f"explore/{what}"))
    return cv.attacks.accuracy(model, x, y, attack, LINF, batch_size=len(x))


def measured(activation: str, curvature: float | None) -> dict[str, Any]:
    """What the page shows of the networks with this activation. The pictures are of seed 0."""
    x, y = moons(TESTED, 10_000)
    numbers: dict[str, list[float]] = {name: [] for name in SCALES}
    picture: dict[str, Any] = {}
    for seed in range(SEEDS):
        data = cv.data.from_arrays(*moons(TRAINED, seed), test=(x, y), validation=0.1)
        model = network(activation, seed)
        cv.fit(model, data, RECIPE, LINF, seed=seed)
        found = attacked(model, x, y, "test")
        train = attacked(model, data.train.inputs(), data.train.labels, "train")
        norms = cv.analysis.diagonal_norms(
            cv.analysis.Loss(model, train.x_adv, data.train.labels), exact=True
        )
        for name, value in zip(SCALES, (found.clean, found.robust, norms.rms.value), strict=True):
            numbers[name].append(float(f"{value:.5g}"))
        picture = picture or {
            "probability": probability(model),
            "attacked": [[round(v, 4) for v in point] for point in found.x_adv[:SHOWN].flatten(1).tolist()],
            "clean_right": found.clean_correct[:SHOWN].int().tolist(),
            "robust_right": found.robust_correct[:SHOWN].int().tolist(),
        }
    means = {name: student(numbers[name], scale=scale) for name, scale in SCALES.items()}
    rounded = {
        name: [finite(v, 5) for v in (mean.value, mean.low, mean.high)] for name, mean in means.items()
    }
    print(
        f"{activation}: robust {100 * means['robust'].value:.2f} %, Hessian norm {means['hessian'].value:.3g}",
        flush=True,
    )
    return {"activation": activation, "curvature": curvature, **rounded, "by_seed": numbers, **picture}


def probability(model: nn.Module) -> str:
    """The probability of class 1 in 256 steps at the centres of GRID×GRID cells, from the lower left, row by row."""
    places = (torch.arange(GRID) + 0.5) / GRID
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    with torch.no_grad():
        found = model(torch.stack([columns, rows], -1).reshape(-1, 1, 1, 2)).softmax(1)[:, 1]
    return base64.b64encode(bytes((255 * found).round().int().tolist())).decode()


def main() -> None:
    torch.set_num_threads(1)
    x, y = moons(TESTED, 10_000)
    shown = zip(x[:SHOWN].flatten(1).tolist(), y[:SHOWN].tolist(), strict=True)
    where = environment()
    content = {
        "made by": "python docs/explore.py",
        "environment": {
            key: where[key] for key in ("curvact", "commit", "torch", "python", "processor", "kernels")
        },
        "setting": {
            "data": f"sklearn.datasets.make_moons(noise={NOISE}), moved into the unit square",
            "trained": TRAINED,
            "tested": TESTED,
            "seeds": SEEDS,
            "network": f"two hidden layers of {WIDTH}",
            "threat_model": str(LINF),
            "epsilon": LINF.epsilon,
            "attack": str(ATTACK),
            "recipe": RECIPE.as_dict(),
        },
        "grid": GRID,
        "points": [[round(a, 4), round(b, 4), label] for (a, b), label in shown],
        "networks": [
            *(measured(f"rctaf(curvature={kappa:g})", kappa) for kappa in KAPPAS),
            measured("relu", None),
        ],
    }
    atomic_write(NETWORKS, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"wrote {NETWORKS}")


if __name__ == "__main__":
    main()
