"""Gradient masking: whether the gradients of a model can be believed, so that PGD's failure means robustness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from curvact.attacks.losses import ce, margin, succeeded
from curvact.attacks.pgd import PGD, Model, frozen, mode
from curvact.attacks.threat import (
    ThreatModel,
    check_images,
    check_per_sample,
    connected,
    distance,
    wrong_shape,
)
from curvact.errors import CurvactError
from curvact.random import generator


@dataclass(frozen=True)
class Finding:
    """One check: what was measured, and the most that an honest model is allowed.

    alarm: value > threshold. sentence: what was seen, and in an alarm what it means.
    """

    name: str
    value: float
    threshold: float
    sentence: str

    @property
    def alarm(self) -> bool:
        return not self.value <= self.threshold

    def __str__(self) -> str:
        label = "ALARM" if self.alarm else "ok"
        return f"{label:5}  {self.name}: {self.value:.3g} (allowed {self.threshold:.3g}). {self.sentence}"


@dataclass(frozen=True)
class MaskingReport:
    """All checks of `masking_report`, in order.

    images: how many were classified correctly and attacked. measurements: every number, by name.
    `str()` gives the checklist. No alarm is no proof: only a stronger attack is evidence for a lower accuracy.
    """

    images: int
    findings: tuple[Finding, ...]
    measurements: dict[str, float]

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alarm)

    def __str__(self) -> str:
        count = len(self.alarms)
        verdict = (
            "no sign of gradient masking"
            if count == 0
            else f"{count} sign{'s' * (count > 1)} of gradient masking"
        )
        return "\n".join([f"{verdict} on {self.images} images", *map(str, self.findings)])


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
    """The symptoms of gradient masking (arXiv 1802.00420, 1902.06705), each measured on the images classified correctly.

    Checks: gradients that vanish, explode or disagree with finite differences; a loss that PGD does not raise; accuracy left
    at an unbounded radius; one step, another loss, a black box or a transferred example that succeeds where PGD fails;
    outcomes that depend on the seed or change from one forward pass to the next.

    model: maps N×… inputs in [0, 1] to logits; in eval mode inside, restored after.
    x: N×… in [0, 1]. y: N. A hundred images are enough; they are one batch.
    surrogate: a plain model of the same task to transfer from; where None a small network is fitted to (x, y).
    steps: of each PGD. queries: of the black box, per image that PGD leaves.
    attacked: what a PGD of many steps made of x already, such as an evaluation's: it takes the place of the first PGD.
    on_check: called with each finding as it is made.
    Cost an image: 5 gradients and 10 forward passes; up to `steps` gradients until PGD fools it (none with `attacked`); and for
    one that PGD leaves, `steps` gradients and `queries` forward passes more (on honest networks).

    A fraction of n images raises an alarm where it exceeds the 99.9 % quantile of a binomial with the rate named in `RATES`, over
    n: a model whose true rate is lower is accused in fewer than one in a thousand reports. The other thresholds are in `LIMITS`.
    Both were chosen by us. [ours] With fewer images an alarm takes more: `detected` says how much.
    Masking belongs to a threat model: digits networks trained in linf pass in linf and fail in l1, where changing one pixel fools
    a quarter of all images that five PGDs did not (compare arXiv 1904.13000 on MNIST).
    Raises CurvactError for ε = 0, images outside [0, 1], outputs that are not logits, attacked images outside the threat model,
    or no image classified correctly.

    >>> sign = lambda x: torch.stack([(x.mean(1) - 0.5).sign(), torch.zeros(len(x))], 1)  # no gradient anywhere
    >>> x = torch.linspace(0.3, 0.7, 40)[:, None].repeat(1, 4)
    >>> report = masking_report(sign, x, (x[:, 0] < 0.5).long(), ThreatModel("linf", 0.1))
    >>> "zero gradients" in [alarm.name for alarm in report.alarms]
    True
    """
    if not threat_model.epsilon > 0:
        raise CurvactError(
            "masking_report got epsilon=0: a radius > 0, or no attack can be told from another"
        )
    if steps < 2 or queries < 1:
        raise CurvactError(f"masking_report got steps={steps}, queries={queries}: steps >= 2, queries >= 1")
    check_images(x)
    check_per_sample("y", y, x)
    if attacked is not None:
        _check_attacked(attacked, x, threat_model)

    def random(purpose: str) -> torch.Generator:
        return generator(seed, f"masking/{purpose}", device=x.device)

    with mode(model, training=False), frozen(model):
        return _report(
            connected(model),
            x.detach(),
            y,
            threat_model,
            random,
            surrogate,
            attacked,
            _Checks(on_check),
            steps,
            queries,
        )


# The rates that an honest model may show, in images. PGD on the margin fools many that PGD on the cross-entropy does not, on
# honest networks too: 16 % of what a ResNet-18 of width 16, PGD-trained on CIFAR-10, classifies correctly.
RATES = {
    "zero gradients": 0.05,
    "finite differences": 0.1,
    "loss does not rise": 0.1,
    "unbounded radius": 0.02,
    "one step": 0.02,
    "another loss": 0.2,
    "black box": 0.05,
    "transfer": 0.05,
    "seeds": 0.08,
}
# Exploding gradients: decades between the 5 % and the 95 % quantile of the norms.
# Randomized inference: the largest change of a logit over the logits' standard deviation.
LIMITS = {"exploding gradients": 3.0, "randomized inference": 1e-3}


def allowed(rate: float, images: int) -> float:
    """The fraction of so many images that a true rate exceeds in fewer than one of a thousand samples.

    >>> allowed(0.05, 100), allowed(0.05, 1000)
    (0.13, 0.073)
    """
    from scipy.stats import binom

    return float(binom.ppf(0.999, images, rate)) / images


def detected(rate: float, images: int, power: float = 0.9) -> float:
    """The smallest true rate that raises an alarm on so many images with so high a probability.

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
    if attacked.shape != x.shape:
        raise CurvactError(
            f"masking_report got attacked images of shape {tuple(attacked.shape)} for {tuple(x.shape)}: one for each"
        )
    farthest = float(distance(attacked, x, threat_model.norm).max())
    if not farthest <= threat_model.epsilon * (1 + 1e-3):
        raise CurvactError(
            f"masking_report got attacked images up to {farthest:.6g} away: within ε = {threat_model.epsilon:.6g} in "
            f"{threat_model.norm}"
        )


class _Checks:
    """What has been found so far on so many images."""

    def __init__(self, on_check: Callable[[Finding], None] | None) -> None:
        self.count = 0
        self.findings: list[Finding] = []
        self.measurements: dict[str, float] = {}
        self.on_check = on_check

    def limit(self, name: str, value: float, threshold: float, seen: str, meaning: str) -> None:
        """Enter a check; the meaning is told only in an alarm."""
        self.measurements[name] = value
        quiet = Finding(name, value, threshold, f"{seen}.")
        loud = Finding(name, value, threshold, f"{seen}: {meaning}.")
        self.findings.append(loud if quiet.alarm else quiet)
        if self.on_check is not None:
            self.on_check(self.findings[-1])

    def images(self, name: str, flags: Tensor, seen: str, meaning: str) -> None:
        """Enter a check on the fraction of images that are flagged."""
        flagged = int(flags.sum())
        threshold = allowed(RATES[name], self.count)
        self.limit(name, flagged / self.count, threshold, f"{flagged} of {self.count} images {seen}", meaning)


def _report(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    random: Callable[[str], torch.Generator],
    surrogate: Model | None,
    attacked: Tensor | None,
    checks: _Checks,
    steps: int,
    queries: int,
) -> MaskingReport:
    with torch.no_grad():
        logits = model(x)
    wrong = wrong_shape(logits, len(x))
    if wrong:
        raise CurvactError(wrong)
    right = logits.argmax(1) == y
    if not bool(right.any()):
        raise CurvactError(
            f"none of {len(x)} images is classified correctly: there is no robustness to doubt"
        )
    everything = (x, y)
    checks.count = int(right.sum())
    checks.measurements["clean accuracy"] = checks.count / len(x)
    x, y, logits = x[right], y[right], logits[right]
    there = _slopes(model, x, y)
    near = threat_model.random_start(x, random("point"))
    around = _slopes(model, near, y)
    _check_gradients(checks, model, near, y, there, around, random("directions"))
    if attacked is None:
        start, x_adv = _first_pgd(model, x, y, threat_model, random("pgd"), steps)
        with torch.no_grad():
            before = margin(model(start), y)
    else:
        before, x_adv = around.margin, attacked.detach()[right].to(x)
    one_step = threat_model.ascend(x, there.cross_entropy_gradient, threat_model.epsilon)
    one_step = threat_model.project(one_step, x)
    left = _check_white_box(checks, model, x, y, threat_model, before, x_adv, one_step, random, steps)
    _check_unbounded(checks, model, x, y, left, threat_model, steps)
    if surrogate is None and len(left):
        surrogate = _surrogate(*everything, random("surrogate"))
    _check_without_gradients(checks, model, surrogate, x, y, left, threat_model, random, steps, queries)
    change = (there.logits - logits).abs().max() / logits.std().clamp_min(1e-12)
    checks.limit(
        "randomized inference",
        float(change),
        LIMITS["randomized inference"],
        "the largest change of a logit between two forward passes, in standard deviations of the logits",
        "attack the average over the model's randomness",
    )
    return MaskingReport(checks.count, tuple(checks.findings), checks.measurements)


class _Slopes(NamedTuple):
    """The model at a point, from one forward pass: logits, margin, and the gradients of cross-entropy and margin."""

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


def _check_gradients(
    checks: _Checks,
    model: Model,
    near: Tensor,
    y: Tensor,
    there: _Slopes,
    around: _Slopes,
    random: torch.Generator,
) -> None:
    still = [_norms(slopes.cross_entropy_gradient) == 0 for slopes in (there, around)]
    checks.images(
        "zero gradients",
        still[0] | still[1],
        "have no gradient of the cross-entropy at the image or at a random point of the ball",
        "PGD on it cannot move them",
    )
    norms = torch.cat([_norms(slopes.margin_gradient) for slopes in (there, around)])
    checks.measurements["median gradient norm of the margin"] = float(norms.median())
    checks.limit(
        "exploding gradients",
        _decades(norms),
        LIMITS["exploding gradients"],
        "decades between the 5 % and the 95 % quantile of the margin's gradient norms",
        "no step size suits all images",
    )
    checks.images(
        "finite differences",
        _disagree(model, near, y, random),
        "have a gradient that no finite difference confirms",
        "what PGD follows is not the slope of the model",
    )


def _first_pgd(
    model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel, random: torch.Generator, steps: int
) -> tuple[Tensor, Tensor]:
    """Where PGD on the cross-entropy starts, and the best point that it visits; images leave once they are fooled."""
    starts: list[Tensor] = []
    x_adv = PGD(steps)(
        model,
        x,
        y,
        threat_model,
        keep_best=True,
        early_stop=True,
        generator=random,
        on_step=lambda step, point, _: None if step else starts.append(point),
    )
    return starts[0], x_adv


def _check_white_box(
    checks: _Checks,
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    before: Tensor,
    x_adv: Tensor,
    one_step: Tensor,
    random: Callable[[str], torch.Generator],
    steps: int,
) -> Tensor:
    """The indices of the images that no PGD fooled. before: the margins where PGD began; x_adv: where it ended."""
    with torch.no_grad():
        logits = model(x_adv)
    after, white = margin(logits, y), succeeded(logits, y)
    checks.measurements["margin where PGD begins"] = float(before.double().mean())
    checks.measurements["margin where PGD ends"] = float(after.double().mean())
    checks.measurements["accuracy under PGD"] = float((~white).double().mean())
    checks.images(
        "loss does not rise",
        ~(after > before) & ~(white & (before > 0)),
        "are no nearer to the wrong side after PGD than at its start",
        "the gradient does not lead uphill",
    )
    left = (~white).nonzero().squeeze(1)

    def fooled(rows: Tensor, purpose: str, loss: str) -> Tensor:
        """Of these images, those that one more PGD fools."""
        if len(rows) == 0:
            return rows
        x_adv = PGD(steps, loss=loss)(
            model,
            x[rows],
            y[rows],
            threat_model,
            generator=random(purpose),
            keep_best=True,
            early_stop=True,
        )
        return rows[_fooled(model, x_adv, y[rows])]

    checks.images(
        "one step",
        _fooled(model, one_step[left], y[left]),
        "are fooled by one step and not by many",
        "iterative attacks get stuck",
    )
    # Another seed and loss at once: no more than these can depend on the seed. Only many are worth a PGD that tells which.
    beaten = fooled(left, "pgd/margin", "margin")
    again, most = beaten[:0], "at most "
    if len(beaten) > allowed(RATES["seeds"], checks.count) * checks.count:
        again, most = fooled(left, "pgd/again", "ce"), ""
        left = left[~torch.isin(left, again)]
        beaten = beaten[~torch.isin(beaten, again)]
    depend = len(beaten) if most else len(again)
    checks.limit(
        "seeds",
        depend / checks.count,
        allowed(RATES["seeds"], checks.count),
        f"{most}{depend} of {checks.count} images withstand PGD with one seed and not with another",
        "the verdict depends on chance, so restart more often",
    )
    checks.images(
        "another loss",
        torch.ones_like(beaten),
        "withstand PGD on the cross-entropy and not on the margin",
        "the cross-entropy saturates, so attack with margin or dlr",
    )
    return left[~torch.isin(left, beaten)]


def _check_unbounded(
    checks: _Checks, model: Model, x: Tensor, y: Tensor, left: Tensor, threat_model: ThreatModel, steps: int
) -> None:
    """An image fooled within ε is fooled within any radius: the others are tried."""
    coordinates = float(x[0].numel())
    x, y = x[left], y[left]
    radius = {"linf": 1.0, "l2": math.sqrt(coordinates), "l1": coordinates}[threat_model.norm]
    x_adv = x
    if len(x):
        attack = PGD(steps, start="none", loss="margin")
        whole = ThreatModel(threat_model.norm, radius)
        x_adv = attack(model, x, y, whole, keep_best=True, early_stop=True)
    checks.images(
        "unbounded radius",
        ~_fooled(model, x_adv, y),
        "withstand PGD that may turn them into any image",
        "an attack that works leaves none",
    )


def _check_without_gradients(
    checks: _Checks,
    model: Model,
    surrogate: Model | None,
    x: Tensor,
    y: Tensor,
    left: Tensor,
    threat_model: ThreatModel,
    random: Callable[[str], torch.Generator],
    steps: int,
    queries: int,
) -> None:
    """Attacks that never ask the model for a gradient, on the images that PGD left."""
    x, y = x[left], y[left]
    searched = _random_search(model, x, y, threat_model, queries, random("search")) if len(x) else x
    checks.images(
        "black box",
        _fooled(model, searched, y),
        f"withstand PGD and not {queries} random queries",
        "PGD misses adversarial examples that are there",
    )
    transferred = x
    if surrogate is not None and len(x):
        transferred = PGD(steps)(surrogate, x, y, threat_model, generator=random("transfer"))
    checks.images(
        "transfer",
        _fooled(model, transferred, y),
        "withstand PGD and not the adversarial examples of a plain network",
        "PGD misses adversarial examples that are there",
    )


def _fooled(model: Model, x_adv: Tensor, y: Tensor) -> Tensor:
    if len(x_adv) == 0:
        return torch.zeros_like(y, dtype=torch.bool)
    with torch.no_grad():
        return succeeded(model(x_adv), y)


def _margin_gradient(model: Model, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(margin(model(x), y).sum(), x)
    return gradient


def _norms(gradient: Tensor) -> Tensor:
    """The largest entry of each image's gradient: unlike a sum of squares, it does not underflow to 0."""
    return gradient.flatten(1).abs().amax(1)


def _decades(norms: Tensor) -> float:
    """Between the 5 % and 95 % quantile of those that are not 0; infinite where a norm is not finite."""
    if not bool(norms.isfinite().all()):
        return math.inf
    norms = norms[norms > 0].double()
    if len(norms) == 0:
        return 0.0
    low, high = norms.log10().quantile(norms.new_tensor([0.05, 0.95]))
    return float(high - low)


def _disagree(model: Model, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    """Where the margin's slopes along its gradient's signs and two random signs are off by more than half at every width.

    The widths are 0.01, 0.002 and 0.05 a coordinate: kinks spoil the wide ones, rounding the narrow ones, masking all of them. An
    image that one of them confirms is not tried again.
    Where neither gradient nor difference moves, that is a disagreement too: a model that no attack at all could follow.
    """
    widths = (0.01, 0.002, 0.05)
    x = x.clamp(0.05, 0.95)
    gradient = _margin_gradient(model, x, y)
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
    return torch.zeros_like(y, dtype=torch.bool).index_fill(0, doubted, True)


def _random_search(
    model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel, queries: int, random: torch.Generator
) -> Tensor:
    """Random search on the margin that changes one window at a time and keeps what helps. [ours]

    Windows are squares of images, stretches of anything else; their area shrinks from half of the image to a hundredth. Each
    gets a sign a channel and moves as far as the radius reaches (2ε a coordinate for linf, else length ε), then is projected.
    """
    epsilon = threat_model.epsilon
    planes = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
    count, channels, height, width = planes.shape

    def signs(*shape: int) -> Tensor:
        return x.new_empty(shape).uniform_(-1, 1, generator=random).sign()

    def inside(size: int, window: int) -> Tensor:
        """0 and 1 along an axis: a window at a random place for each image."""
        place = torch.rand(count, 1, generator=random, device=x.device) * (size - window + 1)
        at = torch.arange(size, device=x.device) - place.floor()
        return ((at >= 0) & (at < window)).to(x.dtype)

    def move(window: Tensor) -> Tensor:
        if threat_model.norm == "linf":
            return 2 * epsilon * window
        order = 2 if threat_model.norm == "l2" else 1
        length: Tensor = torch.linalg.vector_norm(window.flatten(1), ord=order, dim=1)
        return window * (epsilon / length.clamp_min(1e-12)).view(-1, 1, 1, 1)

    with torch.no_grad():
        stripes = move(signs(count, channels, 1, width).expand_as(planes))
        best = threat_model.project(x + stripes.reshape_as(x), x)
        value = margin(model(best), y)
        for query in range(1, queries):
            area = 0.5 * 0.02 ** (query / queries)
            tall = max(1, round(math.sqrt(area) * height)) if height > 1 else 1
            wide = max(1, round((math.sqrt(area) if height > 1 else area) * width))
            window = inside(height, tall).view(count, 1, height, 1) * inside(width, wide).view(
                count, 1, 1, width
            )
            change = move(window * signs(count, channels, 1, 1))
            candidate = threat_model.project(best + change.reshape_as(x), x)
            new = margin(model(candidate), y)
            better = new > value
            best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), candidate, best)
            value = torch.where(better, new, value)
    return best


def _surrogate(x: Tensor, y: Tensor, random: torch.Generator) -> Model:
    """A small network fitted to the images under noise: two convolutions and a readout, or one hidden layer. [ours]"""
    classes = max(int(y.max()) + 1, 2)

    def weights(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:])
        return (torch.randn(shape, generator=random, device=x.device) * math.sqrt(2 / fan_in)).to(x.dtype)

    image = x.dim() == 4
    if image:
        stride = max(1, x.shape[-1] // 16)
        parameters = [weights(16, x.shape[1], 3, 3), weights(32, 16, 3, 3), weights(classes, 512)]
    else:
        parameters = [weights(64, x[0].numel()), weights(classes, 64)]

    def surrogate(x: Tensor) -> Tensor:
        x = x - 0.5
        if image:
            x = F.relu(F.conv2d(x, parameters[0], stride=stride, padding=1))
            x = F.relu(F.conv2d(x, parameters[1], stride=2, padding=1))
            return F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), parameters[2])
        return F.linear(F.relu(F.linear(x.flatten(1), parameters[0])), parameters[1])

    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(60):
        noise = torch.empty_like(x).normal_(0, 0.1, generator=random)
        with torch.enable_grad():
            loss = F.cross_entropy(surrogate((x + noise).clamp(0, 1)), y)
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return surrogate
