"""Gradient masking: whether PGD fails because of robustness, or because of useless gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curvact.attacks.arguments import door
from curvact.attacks.batch import (
    Guarded,
    check_number,
    checked,
    connected,
    warn_of,
)
from curvact.attacks.black_box import random_search, small_network
from curvact.attacks.losses import ce, classes, margin, succeeded
from curvact.attacks.pgd import PGD, Model, Start
from curvact.attacks.surrogate import WAYS, SurrogateNetwork
from curvact.attacks.threat import ThreatModel, ball, distance
from curvact.errors import CurvactError
from curvact.models.modes import frozen, mode
from curvact.random import generator


@dataclass(frozen=True)
class Finding:
    """One check. value: the measurement. threshold: the largest value without an alarm.

    sentence: the measurement in words, and in an alarm its consequence.
    """

    name: str
    value: float
    threshold: float
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether value > threshold; NaN is an alarm."""
        return not self.value <= self.threshold

    def __str__(self) -> str:
        label = "ALARM" if self.alarm else "ok"
        return f"{label:5}  {self.name}: {self.value:.3g} (allowed {self.threshold:.3g}). {self.sentence}"


@dataclass(frozen=True)
class MaskingReport:
    """All checks of `masking_report`, in order.

    images: number of images classified correctly and attacked. measurements: every number, by name.
    `str()` gives the checklist. No alarm is no proof: only a stronger attack is evidence for a
    lower accuracy.
    """

    images: int
    findings: tuple[Finding, ...]
    measurements: dict[str, float]

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alarm)

    def __str__(self) -> str:
        count = len(self.alarms)
        found = f"{count} sign{'s' * (count > 1)}" if count else "no sign"
        return "\n".join([f"{found} of gradient masking on {self.images} images", *map(str, self.findings)])


@door
def masking_report(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    seed: int = 0,
    surrogate: Model | None = None,
    steps: int = 20,
    queries: int = 200,
    attacked: Tensor | None = None,
    on_check: Callable[[Finding], None] | None = None,
) -> MaskingReport:
    """The symptoms of gradient masking (arXiv 1802.00420, 1902.06705), measured on the images
    classified correctly.

    Checks: gradients that vanish, explode or disagree with finite differences; a loss that PGD does
    not raise; accuracy left at an unbounded radius; one step, another loss, a black box, a
    transferred example or a surrogate activation that succeeds where PGD fails; outcomes that
    depend on the seed or change from one forward pass to the next.

    model: maps N×… inputs in [0, 1] to logits; in eval mode inside, restored after.
    x: N×… in [0, 1]. y: N, whole numbers. A hundred images are enough; they are one batch.
    surrogate: a plain model of the same task to transfer from; where None a small network is fitted
        to (x, y).
    steps: of each PGD, 2.5ε/steps long. queries: of the black box, for each image that PGD does not
        fool.
    attacked: x after a PGD of many steps, such as an evaluation's, in the place of the first PGD.
    on_check: called with each finding as it is made.
    Cost an image: 5 gradients and 10 forward passes, and up to `steps` gradients until PGD fools it
    (none with `attacked`). An image that PGD does not fool costs 4·`steps` gradients and
    `queries` forward passes more (on honest networks).

    A fraction of n images raises an alarm if it exceeds the 99.9 % quantile of a binomial with the
    rate in `RATES`, over n. A model with a lower true rate is thus accused in fewer than one of a
    thousand reports. `LIMITS` has the other thresholds. We chose both. [ours] With fewer images an
    alarm takes a higher rate: see `detected`.
    Masking depends on the threat model. Digits networks trained in linf pass in linf and fail in
    l1, where changing one pixel fools a quarter of all images that five PGDs did not (compare arXiv
    1904.13000 on MNIST).
    Raises CurvactError for ε = 0, images outside [0, 1], outputs that are not logits, attacked
    images outside the threat model, or no image classified correctly.

    >>> sign = lambda x: torch.stack([(x.mean(1) - 0.5).sign(), torch.zeros(len(x))], 1)  # no gradient anywhere
    >>> x = torch.linspace(0.3, 0.7, 40)[:, None].repeat(1, 4)
    >>> report = masking_report(sign, x, (x[:, 0] < 0.5).long(), ThreatModel("linf", 0.1))
    >>> "zero gradients" in [alarm.name for alarm in report.alarms]
    True
    """
    if not threat_model.epsilon > 0:
        raise CurvactError("masking_report got epsilon=0: a radius > 0, else no attack can move an image")
    where = "masking_report"
    check_number(steps, "steps", where, 2)
    check_number(queries, "queries", where)
    x, y, highest = checked(x, y, where, threat_model=threat_model)
    if len(x) == 0:
        raise CurvactError(f"{where} got 0 images: at least 1")
    if attacked is not None:
        _check_attacked(attacked, x, threat_model)
    with mode(model, training=False), frozen(model):
        with torch.no_grad():
            logits = Guarded(model, where, highest)(x)
        warn_of(model, logits, where)
        given, model = model, connected(model)
        right = classes(logits) == y
        if not bool(right.any()):
            raise CurvactError(
                f"none of {len(x)} images is classified correctly: robust accuracy is 0 whatever the attack"
            )
        case = _Case(model, x[right], y[right], threat_model, seed, steps)
        checks = _Checks(len(case.x), on_check)
        checks.measurements["clean accuracy"] = checks.count / len(x)
        there = _slopes(model, case.x, case.y)
        near = threat_model.random_start(case.x, case.random("point"))
        around = _slopes(model, near, case.y)
        _check_gradients(checks, case, near, there, around)
        if attacked is None:
            begin, end = _first_pgd(case)
        else:
            begin, end = around.margin, attacked.detach()[right].to(x)
        one_step = threat_model.ascend(case.x, there.cross_entropy_gradient, threat_model.epsilon)
        left = _check_white_box(checks, case, begin, end, threat_model.project(one_step, case.x))
        _check_unbounded(checks, case, left)
        if surrogate is None and len(left):
            surrogate = small_network(x, y, case.random("surrogate"))
        _check_without_gradients(checks, case, left, surrogate, queries)
        _check_surrogate(checks, case, left, given)
        change = (there.logits - logits[right]).abs().max() / logits[right].std().clamp_min(1e-12)
        checks.limit(
            "randomized inference",
            float(change),
            "the largest change of a logit between two forward passes, in standard deviations of the logits",
            "attack the average over the model's randomness",
        )
    return MaskingReport(checks.count, tuple(checks.findings), checks.measurements)


RATES = {
    "zero gradients": 0.05,
    "finite differences": 0.1,
    "loss does not rise": 0.1,
    "unbounded radius": 0.02,
    "one step": 0.02,
    "another loss": 0.2,
    "black box": 0.05,
    "transfer": 0.05,
    "surrogate activation": 0.05,
    "seeds": 0.08,
}
"""The fraction of images at which a check is still no sign of masking. [ours]

PGD on the margin fools many images that PGD on the cross-entropy does not, on honest networks too:
16 % of those that a ResNet-18 of width 16, PGD-trained on CIFAR-10, classifies correctly.
"""
LIMITS = {"exploding gradients": 3.0, "randomized inference": 1e-3}
"""Exploding gradients: decades between the 5 % and the 95 % quantile of the norms. Randomized
inference: the largest change of a logit over the logits' standard deviation. [ours]
"""


def allowed(rate: float, images: int) -> float:
    """The fraction that fewer than one of a thousand samples exceed, at this true rate.

    >>> allowed(0.05, 100), allowed(0.05, 1000)
    (0.13, 0.073)
    """
    from scipy.stats import binom

    return float(binom.ppf(0.999, images, rate)) / images


def detected(rate: float, images: int, power: float = 0.9) -> float:
    """The smallest true rate that raises an alarm on `images` with probability `power`.

    >>> [round(detected(0.05, n), 2) for n in (32, 64, 128, 1000)]
    [0.31, 0.23, 0.16, 0.08]
    """
    from scipy.stats import binom

    most = round(allowed(rate, images) * images)
    low, high = rate, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if binom.sf(most, images, middle) >= power else (middle, high)
    return high


def _check_attacked(attacked: Tensor, x: Tensor, threat_model: ThreatModel) -> None:
    if not isinstance(attacked, Tensor) or attacked.shape != x.shape:
        got = tuple(attacked.shape) if isinstance(attacked, Tensor) else type(attacked).__name__
        raise CurvactError(
            f"masking_report got attacked images of shape {got} for {tuple(x.shape)}: one for each"
        )
    farthest = float(distance(attacked.to(x), x, threat_model.norm).max())
    if not farthest <= threat_model.epsilon * (1 + 1e-3):
        raise CurvactError(
            f"masking_report got attacked images up to {farthest:.6g} away: within {threat_model}"
        )


class _Case(NamedTuple):
    """The model and the images that it classifies correctly."""

    model: Model
    x: Tensor
    y: Tensor
    threat_model: ThreatModel
    seed: int
    steps: int

    def random(self, purpose: str) -> torch.Generator:
        return generator(self.seed, f"masking/{purpose}", device=self.x.device)

    def pgd(self, start: Start | None = None, loss: str = "ce") -> PGD:
        """The PGD with whose step `RATES` were measured."""
        return PGD(self.steps, step=2.5 / self.steps, start=start, loss=loss)

    def fooled(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """Which x_adv, of the images `rows`, the model misclassifies. Bool."""
        if len(rows) == 0:
            return torch.zeros_like(rows, dtype=torch.bool)
        with torch.no_grad():
            return succeeded(self.model(x_adv), self.y[rows])


class _Checks:
    """The findings so far, on `count` images."""

    def __init__(self, count: int, on_check: Callable[[Finding], None] | None) -> None:
        self.count = count
        self.findings: list[Finding] = []
        self.measurements: dict[str, float] = {}
        self.on_check = on_check

    def enter(self, name: str, value: float, threshold: float, seen: str, meaning: str) -> None:
        """Enter a check. Only an alarm has the meaning in its sentence."""
        self.measurements[name] = value
        quiet = Finding(name, value, threshold, f"{seen}.")
        loud = Finding(name, value, threshold, f"{seen}: {meaning}.")
        self.findings.append(loud if quiet.alarm else quiet)
        if self.on_check is not None:
            self.on_check(self.findings[-1])

    def limit(self, name: str, value: float, seen: str, meaning: str) -> None:
        """Enter a check of `LIMITS`."""
        self.enter(name, value, LIMITS[name], seen, meaning)

    def images(self, name: str, flagged: int, seen: str, meaning: str) -> None:
        """Enter a check of `RATES`. flagged: number of images."""
        threshold = allowed(RATES[name], self.count)
        self.enter(name, flagged / self.count, threshold, f"{flagged} of {self.count} images {seen}", meaning)


class _Slopes(NamedTuple):
    """Logits, margin and both gradients at each image, from one forward pass."""

    logits: Tensor
    margin: Tensor
    cross_entropy_gradient: Tensor
    margin_gradient: Tensor


def _slopes(model: Model, x: Tensor, y: Tensor) -> _Slopes:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        value = margin(logits, y)
        (steepest,) = torch.autograd.grad(ce(logits, y, None).sum(), x, retain_graph=True)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return _Slopes(logits.detach(), value.detach(), steepest, slope)


def _check_gradients(checks: _Checks, case: _Case, near: Tensor, there: _Slopes, around: _Slopes) -> None:
    """there: at the images; around: at `near`, a random point of each ball."""
    still = [gradient_sizes(slopes.cross_entropy_gradient) == 0 for slopes in (there, around)]
    checks.images(
        "zero gradients",
        int((still[0] | still[1]).sum()),
        "have no gradient of the cross-entropy at the image or at a random point of the ball",
        "PGD on it cannot move them",
    )
    norms = torch.cat([gradient_sizes(slopes.margin_gradient) for slopes in (there, around)])
    checks.measurements["median gradient norm of the margin"] = float(norms.median())
    checks.limit(
        "exploding gradients",
        _decades(norms),
        "decades between the 5 % and the 95 % quantile of the margin's gradient norms",
        "no step size suits all images",
    )
    checks.images(
        "finite differences",
        _disagree(case.model, near, case.y, case.random("directions")),
        "have a gradient that no finite difference confirms",
        "PGD does not follow the slope of the model",
    )


def _first_pgd(case: _Case) -> tuple[Tensor, Tensor]:
    """The margins where PGD on the cross-entropy starts, and its best points; fooled images leave."""
    starts: list[Tensor] = []
    x_adv = case.pgd()(
        case.model,
        case.x,
        case.y,
        case.threat_model,
        keep_best=True,
        early_stop=True,
        check=False,
        generator=case.random("pgd"),
        on_step=lambda step, point, _: None if step else starts.append(point),
    )
    with torch.no_grad():
        return margin(case.model(starts[0]), case.y), x_adv


def _check_white_box(checks: _Checks, case: _Case, before: Tensor, x_adv: Tensor, one_step: Tensor) -> Tensor:
    """Indices of the images that no PGD fooled. before: margins at the start of the first PGD,
    which ended at x_adv.
    """
    x, y = case.x, case.y
    with torch.no_grad():
        logits = case.model(x_adv)
    after, white = margin(logits, y), succeeded(logits, y)
    checks.measurements["margin where PGD begins"] = float(before.double().mean())
    checks.measurements["margin where PGD ends"] = float(after.double().mean())
    checks.measurements["accuracy under PGD"] = float((~white).double().mean())
    checks.images(
        "loss does not rise",
        int((~(after > before) & ~(white & (before > 0))).sum()),
        "are no nearer to the wrong side after PGD than at its start",
        "the gradient does not lead uphill",
    )
    left = (~white).nonzero().squeeze(1)

    def beaten_by(attack: PGD, rows: Tensor, purpose: str) -> Tensor:
        """Those of the images `rows` that one more PGD fools."""
        if len(rows) == 0:
            return rows
        random = case.random(purpose)
        x_adv = attack(
            case.model,
            x[rows],
            y[rows],
            case.threat_model,
            generator=random,
            keep_best=True,
            early_stop=True,
            check=False,
        )
        return rows[case.fooled(x_adv, rows)]

    checks.images(
        "one step",
        int(case.fooled(one_step[left], left).sum()),
        "are fooled by one step and not by many",
        "iterative attacks get stuck",
    )
    # This PGD changes seed and loss at once: no more images than it fools can depend on the seed.
    # Only if they are too many does another PGD tell seed and loss apart.
    beaten = beaten_by(case.pgd(loss="margin"), left, "pgd/margin")
    again, most, depend = beaten[:0], "at most ", len(beaten)
    if len(beaten) > allowed(RATES["seeds"], checks.count) * checks.count:
        again = beaten_by(case.pgd(), left, "pgd/again")
        most, depend = "", len(again)
        left = left[~torch.isin(left, again)]
        beaten = beaten[~torch.isin(beaten, again)]
    checks.enter(
        "seeds",
        depend / checks.count,
        allowed(RATES["seeds"], checks.count),
        f"{most}{depend} of {checks.count} images withstand PGD with one seed and not with another",
        "the outcome depends on chance, so restart more often",
    )
    checks.images(
        "another loss",
        len(beaten),
        "withstand PGD on the cross-entropy and not on the margin",
        "the cross-entropy saturates, so attack with margin or dlr",
    )
    return left[~torch.isin(left, beaten)]


def _check_unbounded(checks: _Checks, case: _Case, left: Tensor) -> None:
    """Only the images that no PGD fooled within ε are attacked again."""
    coordinates = float(case.x[0].numel())
    radius = {"linf": 1.0, "l2": math.sqrt(coordinates), "l1": coordinates}[case.threat_model.norm]
    x_adv = case.x[left]
    if len(left):
        attack = case.pgd(start="none", loss="margin")
        whole = ball(case.threat_model.norm, radius)
        x_adv = attack(case.model, x_adv, case.y[left], whole, keep_best=True, early_stop=True, check=False)
    checks.images(
        "unbounded radius",
        int((~case.fooled(x_adv, left)).sum()),
        "withstand PGD that may turn them into any image",
        "an attack that works leaves none",
    )


def _check_without_gradients(
    checks: _Checks, case: _Case, left: Tensor, surrogate: Model | None, queries: int
) -> None:
    """Attacks without the model's gradient, on the images that no PGD fooled."""
    x, y, threat_model = case.x[left], case.y[left], case.threat_model
    searched = transferred = x
    if len(left):
        searched = random_search(case.model, x, y, threat_model, queries, case.random("search"))
    checks.images(
        "black box",
        int(case.fooled(searched, left).sum()),
        f"withstand PGD and not {queries} random queries",
        "PGD misses adversarial examples",
    )
    if surrogate is not None and len(left):
        transferred = case.pgd()(
            surrogate, x, y, threat_model, generator=case.random("transfer"), check=False
        )
    checks.images(
        "transfer",
        int(case.fooled(transferred, left).sum()),
        "withstand PGD and not the adversarial examples of a plain network",
        "PGD misses adversarial examples",
    )


def _check_surrogate(checks: _Checks, case: _Case, left: Tensor, model: Model) -> None:
    """Attacks through surrogate activations, on the images that no PGD fooled. model: as it was
    given."""
    rest, note = left, ""
    try:
        network = SurrogateNetwork(model, case.x[:2]) if len(left) else None
        note = "".join(f" ({line})" for line in network.notes) if network is not None else ""
    except CurvactError:
        network, note = None, " (none was tried: no activation was found in the model)"
    for way in WAYS if network is not None else ():
        assert network is not None
        if len(rest) == 0:
            break
        random = case.random(f"surrogate/{way.name}")
        found = network.attack(
            way, case.x[rest], case.y[rest], case.threat_model, steps=case.steps, generator=random
        )
        rest = rest[~case.fooled(found, rest)]
    checks.images(
        "surrogate activation",
        len(left) - len(rest),
        f"withstand PGD and not attacks through surrogate activations{note}",
        "the activations mask the gradient, so report the attack 'adaptive'",
    )


def margin_gradient(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each image's margin in the image. Of the shape of x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(margin(model(x), y).sum(), x)
    return gradient


def gradient_sizes(gradient: Tensor) -> Tensor:
    """The largest entry of each image's gradient: a sum of squares could underflow to 0."""
    return gradient.flatten(1).abs().amax(1)


def _decades(norms: Tensor) -> float:
    """Between the 5 % and 95 % quantile of norms > 0; infinite if a norm is not finite."""
    if not bool(norms.isfinite().all()):
        return math.inf
    norms = norms[norms > 0].double()
    if len(norms) == 0:
        return 0.0
    low, high = norms.log10().quantile(norms.new_tensor([0.05, 0.95]))
    return float(high - low)


def _disagree(model: Model, x: Tensor, y: Tensor, random: torch.Generator) -> int:
    """Number of images where gradient and finite differences of the margin differ by more than half
    at every width.

    Slopes are taken along the gradient's signs and two random signs. The widths are 0.01, 0.002 and
    0.05 a coordinate: kinks spoil the wide ones, rounding the narrow ones, masking all of them. An
    image that one width confirms is not tried again.
    A gradient and differences of zero disagree too: no attack could follow such a model.
    """
    widths = (0.01, 0.002, 0.05)
    x = x.clamp(0.05, 0.95)
    gradient = margin_gradient(model, x, y)
    signs = [torch.empty_like(x).uniform_(-1, 1, generator=random).sign() for _ in range(2)]
    directions = [gradient.sign(), *signs]
    slopes = torch.stack([(gradient * u).flatten(1).sum(1) for u in directions])
    doubted = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        for width in widths:
            here, labels = x[doubted], y[doubted]
            steps = [
                (
                    margin(model(here + width * u[doubted]), labels)
                    - margin(model(here - width * u[doubted]), labels)
                )
                / (2 * width)
                for u in directions
            ]
            differences, expected = torch.stack(steps), slopes[:, doubted]
            scale = torch.maximum(differences.norm(dim=0), expected.norm(dim=0))
            confirmed = (scale > 0) & ((differences - expected).norm(dim=0) <= 0.5 * scale)
            doubted = doubted[~confirmed]
            if len(doubted) == 0:
                break
    return len(doubted)
