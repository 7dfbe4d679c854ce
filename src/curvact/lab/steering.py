"""Curvature Tuning (arXiv 2502.07783): the activations of a trained network replaced by `ctu(beta)`
without training. [paper]

β is chosen on validation images and judged on others, and ε is in input units: what is attacked is
the network with its normalization. [ours]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import CTU, SwapWarning, swap_activations
from curvact.activations.selection import Selector
from curvact.attacks import Model, NamedAttack, ThreatModel, accuracy, named_attack
from curvact.attacks.batch import checked_module
from curvact.data import Dataset
from curvact.errors import CurvactError
from curvact.lab.statistics.interval import Interval, interval_text, proportion
from curvact.random import generator

BETAS = (0.7, 0.74, 0.78, 0.82, 0.86, 0.9, 0.94, 0.98)
CHANCE = 0.05
"""A difference on the test images with a larger p value may be chance."""


@dataclass(frozen=True)
class Steered:
    """The accuracies of the network on some images. beta, curvature: None for it as it is."""

    beta: float | None
    curvature: float | None
    clean: Interval
    robust: Interval


@dataclass(frozen=True)
class Steering:
    """What `steer` found.

    validation: on the validation images, the network as it is first, then one for each β.
    beta: the β with the highest robust accuracy among them; of several the highest clean accuracy,
        then the largest.
    test: on the other images, the network as it is, and with this β.
    gained, lost: how many of these are robust with β only, and without it only. p_value: of the
        sign test that both are as likely.
    """

    attack: str
    threat_model: ThreatModel
    c: float
    replaced: int
    validation: tuple[Steered, ...]
    beta: float
    test: tuple[Steered, Steered]
    gained: int
    lost: int
    p_value: float

    @property
    def helps(self) -> bool:
        """Whether β raises robust accuracy on the validation images, and on the others by more than
        chance.
        """
        return self._better and self.gained > self.lost and self.p_value <= CHANCE

    @property
    def _better(self) -> bool:
        plain, *tuned = self.validation
        return max(row.robust.value for row in tuned) > plain.robust.value

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        plain, best = (interval_text(row.robust, brackets=True) for row in self.test)
        on_test = f"robust {best} % with β = {self.beta:g}, {plain} % as it is (p = {self.p_value:.2g})"
        if not self._better:
            return f"no β helps: none is more robust on the validation images than the network as it is; {on_test}"
        if self.helps:
            return f"β = {self.beta:g} helps: {on_test}"
        if self.gained > self.lost:
            return f"no β is shown to help: the difference on the test images may be chance; {on_test}"
        return f"no β helps: the gain on the validation images is not there on the test images; {on_test}"

    def __str__(self) -> str:
        return self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; numbers that are not finite are left to `plain`."""
        return {**asdict(self), "helps": self.helps, "verdict": self.verdict}


def steer(
    model: nn.Module,
    validation: Dataset,
    test: Dataset,
    threat_model: ThreatModel,
    *,
    betas: Sequence[float] = BETAS,
    attack: str | NamedAttack = "pgd-20",
    c: float = 0.5,
    from_: Selector = "relu",
    seed: int = 0,
    batch_size: int = 250,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Steering:
    """Choose β of `ctu(beta, c)` in the place of a network's activations by robust accuracy on
    validation images, and judge it on test images. Nothing is trained, and the model is not changed.

    model: maps images in [0, 1] to logits, with its normalization inside.
    betas: the candidates, each once. c: as in `ctu`. from_: what is replaced, as in
        `swap_activations`; functional calls are rewritten where there are any.
    attack: of every evaluation, with the same seed. The test images are attacked twice in all: with
        the chosen β, and without.
    on_progress: called with the evaluations done and their number.
    Raises CurvactError for no β, one out of range, no images, and a network without such
    activations.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> splits, model = load("digits"), MiniResNet("relu", channels=1, width=2)
    >>> found = steer(
    ...     model, splits.validation.first(8), splits.test.first(8), ThreatModel("linf", 0.05), betas=[0.8], attack="pgd-2"
    ... )
    >>> found.beta, len(found.validation), found.replaced
    (0.8, 2, 5)
    """
    where = "steer"
    checked_module(model, where)
    candidates = [CTU(beta, c) for beta in betas]
    if not candidates or len(set(betas)) < len(candidates):
        raise CurvactError(f"betas={list(betas)!r} of {where}: at least one number, each once")
    for name, images in (("validation", validation), ("test", test)):
        if len(images) == 0:
            raise CurvactError(f"{where} got 0 {name} images: at least 1")
    run = named_attack(attack) if isinstance(attack, str) else attack
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total, done = len(candidates) + 3, 0

    def measured(images: Dataset, network: nn.Module, act: CTU | None) -> tuple[Steered, Tensor]:
        nonlocal done
        random = generator(seed, f"steer/{run}", device=device)  # the same draws for every network

        def attacked(model: Model, x: Tensor, y: Tensor) -> Tensor:
            return run(model, x, y, threat_model, generator=random)

        placed = images.to(device)
        found = accuracy(
            network, placed.inputs(), placed.labels, attacked, threat_model, batch_size=batch_size
        )
        done += 1
        if on_progress is not None:
            on_progress(done, total)
        clean, robust = (int(flags.sum()) for flags in (found.clean_correct, found.robust_correct))
        return (
            Steered(
                None if act is None else act.beta,
                None if act is None else act.max_curvature.value,
                proportion(clean, len(images)),
                proportion(robust, len(images)),
            ),
            found.robust_correct,
        )

    replaced = 0
    rows = [measured(validation, model, None)[0]]
    for act in candidates:
        network, replaced = _tuned(model, act, from_)
        rows.append(measured(validation, network, act)[0])
    best = max(range(len(candidates)), key=lambda k: _rank(rows[k + 1]))
    plain, kept = measured(test, model, None)
    tuned, held = measured(test, _tuned(model, candidates[best], from_)[0], candidates[best])
    gained, lost = int((held & ~kept).sum()), int((kept & ~held).sum())
    return Steering(
        attack=str(run),
        threat_model=threat_model,
        c=candidates[0].c,
        replaced=replaced,
        validation=tuple(rows),
        beta=candidates[best].beta,
        test=(plain, tuned),
        gained=gained,
        lost=lost,
        p_value=_sign_test(gained, lost),
    )


def _rank(row: Steered) -> tuple[float, float, float]:
    return row.robust.value, row.clean.value, row.beta or 0.0


def _tuned(model: nn.Module, act: CTU, from_: Selector) -> tuple[nn.Module, int]:
    """A copy of the model with this activation, and at how many places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SwapWarning)
        report = swap_activations(model, from_, act, inplace=False)
        if report.functional:
            report = swap_activations(model, from_, act, functional="rewrite", inplace=False)
    if len(report) == 0:
        raise CurvactError(
            f"the network has no {from_} to steer: name its activation (from_ of steer, --from of the command)"
        )
    return report.model.eval(), len(report)


def _sign_test(gained: int, lost: int) -> float:
    """The two-sided p value of `gained` heads in all tosses of a fair coin; 1 without a toss.

    >>> _sign_test(0, 0), round(_sign_test(9, 1), 4)
    (1.0, 0.0215)
    """
    from scipy import stats

    tosses = gained + lost
    return float(stats.binomtest(gained, tosses).pvalue) if tosses else 1.0


def betas_of(text: str, steps: int) -> list[float]:
    """The values of "0.7..0.99" in so many equal steps, or those between commas.

    >>> betas_of("0.7..0.9", 3), betas_of("0.5, 0.9", 8)
    ([0.7, 0.8, 0.9], [0.5, 0.9])
    """
    form = f"--beta {text}: two numbers such as 0.7..0.99, or numbers with commas, each >= 0 and < 1"
    try:
        first, dots, last = text.partition("..")
        ends = [float(first), float(last)] if dots else [float(part) for part in text.split(",")]
    except ValueError:
        raise CurvactError(form) from None
    if not all(math.isfinite(beta) and 0 <= beta < 1 for beta in ends):
        raise CurvactError(form)
    if not dots:
        return list(dict.fromkeys(ends))
    if not ends[0] < ends[1]:
        raise CurvactError(f"--beta {text}: the first number must be below the second")
    width = (ends[1] - ends[0]) / (steps - 1)
    return [round(ends[0] + k * width, 10) for k in range(steps)]
