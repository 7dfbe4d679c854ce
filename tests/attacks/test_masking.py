"""Masking checks on networks built to fool attacks, each by one known trick, and on honest ones,
which must pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor, nn

from curvact.attacks import ThreatModel, margin, masking_report, pgd
from curvact.attacks.black_box import random_search, small_network
from curvact.attacks.masking import LIMITS, RATES, Finding, allowed, detected
from curvact.attacks.threat import Norm, distance
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import MiniResNet

EPSILON = 0.2
THREAT = ThreatModel("linf", EPSILON)


@cache
def _digits(count: int = 60) -> tuple[Tensor, Tensor]:
    test = load("digits").test
    return test.inputs(slice(0, count)), test.labels[:count]


@cache
def _trained(activation: str, adversarial: bool, epochs: int = 3) -> nn.Module:
    """A mini-resnet after a few epochs of Adam, on clean images or on those of a 3-step PGD."""
    train, g = load("digits").train, torch.Generator().manual_seed(0)
    model = MiniResNet(activation, channels=1, width=6, mean=train.mean, std=train.std, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(train), generator=g).split(50):
            x, y = train.inputs(index), train.labels[index]
            if adversarial:
                model.eval()
                x = pgd(model, x, y, THREAT, steps=3, step=0.5, generator=g)
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@cache
def _random_features(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Logits linear in `step` of 400 random projections, by ridge regression: any activation,
    trained without a gradient.
    """
    train, g = load("digits").train, torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 400, generator=g), torch.rand(400, generator=g) - 0.5

    def features(x: Tensor) -> Tensor:
        return step((x.flatten(1) - 0.3) @ weight + bias)

    h = features(train.inputs())
    readout = torch.linalg.solve(h.T @ h + 3 * torch.eye(400), h.T @ F.one_hot(train.labels).float())
    return lambda x: 10 * features(x) @ readout


def _heaviside(x: Tensor) -> Tensor:
    return (x > 0).float()


def _steep(x: Tensor) -> Tensor:
    return torch.sigmoid(1000 * x)


def _names(model: Callable[[Tensor], Tensor], **settings: object) -> set[str]:
    report = masking_report(model, *_digits(), THREAT, **{"steps": 10, "queries": 60, **settings})  # type: ignore[arg-type]
    assert set(report.measurements) >= set(RATES) | set(LIMITS)
    return {alarm.name for alarm in report.alarms}


@pytest.mark.parametrize("activation", ["relu", "rctaf(curvature=6)"])
@pytest.mark.parametrize("adversarial", [False, True])
def test_honest_networks_raise_no_alarm(activation: str, adversarial: bool) -> None:
    model = _trained(activation, adversarial)
    report = masking_report(model, *_digits(), THREAT)
    assert report.alarms == (), str(report)
    assert report.images >= 50
    # The network's robustness is what its training says, so that the checks had something to look
    # at.
    assert (report.measurements["accuracy under PGD"] > 0.2) == adversarial


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "rctaf(curvature=6)"])
@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize(
    ("norm", "epsilon"),
    [("linf", 0.05), ("linf", 0.2), ("linf", 0.4), ("l2", 0.5), ("l2", 1.5), ("l1", 1.5), ("l1", 3.0)],
)
def test_false_alarms_are_rare(activation: str, adversarial: bool, norm: Norm, epsilon: float) -> None:
    """On 10 samples of 15 images, 3 of 100, and 3 of 64 after an evaluation: random subsets of the
    test split.
    """
    if adversarial and norm == "l1":
        pytest.skip("training in linf does mask the gradient in l1: see the next test")
    model = _trained(activation, adversarial, epochs=8)
    test = load("digits").test
    for count, seeds in ((15, 10), (100, 3)):
        for seed in range(seeds):
            chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:count]
            report = masking_report(
                model, test.inputs(chosen), test.labels[chosen], ThreatModel(norm, epsilon), seed=seed
            )
            assert report.alarms == (), str(report)
    for seed in range(3):  # as an evaluation asks
        chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(10 + seed))[:64]
        x, y, threat = test.inputs(chosen), test.labels[chosen], ThreatModel(norm, epsilon)
        g = torch.Generator().manual_seed(seed)
        attacked = pgd(model, x, y, threat, steps=20, generator=g)
        report = masking_report(model, x, y, threat, seed=seed, steps=10, queries=50, attacked=attacked)
        assert report.alarms == (), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "rctaf(curvature=6)"])
def test_training_in_linf_masks_the_gradient_in_l1(activation: str) -> None:
    """Trying every pixel at 0 and at 1 is the proof: five PGDs of 50 steps leave many images that
    one pixel fools.
    """
    x, y = _digits(150)
    threat = ThreatModel("l1", 1.0)
    missed = {}
    for adversarial in (False, True):
        model = _trained(activation, adversarial, epochs=8)
        one_pixel = model(x).argmax(1) != y
        for pixel in range(64):
            for value in (0.0, 1.0):
                changed = x.flatten(1).clone()
                changed[:, pixel] = value
                one_pixel |= model(changed.view_as(x)).argmax(1) != y
        by_pgd = torch.zeros_like(one_pixel)
        for seed, sparsity in enumerate((0.001, 0.03, 0.05, 0.1, 0.05)):
            g = torch.Generator().manual_seed(seed)
            x_adv = pgd(
                model, x, y, threat, steps=50, step=0.05, sparsity=sparsity, keep_best=True, generator=g
            )
            by_pgd |= model(x_adv).argmax(1) != y
        missed[adversarial] = float((one_pixel & ~by_pgd).double().mean())
    assert missed[False] < 0.05
    assert missed[True] > 0.1
    report = masking_report(_trained(activation, True, epochs=8), x, y, ThreatModel("l1", 1.5))
    assert [alarm.name for alarm in report.alarms] == ["black box"], str(report)


@pytest.mark.slow
def test_honest_in_l2_and_l1_and_on_few_images() -> None:
    x, y = _digits()
    model = _trained("rctaf(curvature=6)", True)
    report = masking_report(model, x, y, ThreatModel("l2", 0.7), queries=100)
    assert report.alarms == (), str(report)
    for start in range(0, 18, 6):
        report = masking_report(model, x[start : start + 6], y[start : start + 6], THREAT, seed=start)
        assert report.alarms == (), str(report)
    report = masking_report(_trained("rctaf(curvature=6)", False), x, y, ThreatModel("l1", 2.0), queries=100)
    assert report.alarms == (), str(report)


def test_quantised_input() -> None:
    model = _trained("relu", False)
    names = _names(lambda x: model(torch.round(8 * x) / 8))
    assert names >= {
        "zero gradients", "finite differences", "loss does not rise", "unbounded radius", "black box", "transfer"
    }  # fmt: skip


def test_scaled_logits() -> None:
    model = _trained("relu", False)
    names = _names(lambda x: 1e4 * model(x))
    assert names >= {"zero gradients", "loss does not rise", "another loss"}
    # The margin's gradient is as good as before.
    assert not names & {"finite differences", "unbounded radius", "black box"}


def test_step_activation() -> None:
    """A comparison cuts the graph, `sign` has a gradient of zero, a steep sigmoid one of zero
    nearly everywhere.
    """
    expected = {"zero gradients", "finite differences", "unbounded radius", "black box"}
    assert _names(_random_features(_heaviside)) >= expected
    assert _names(_random_features(torch.sign)) >= expected
    assert _names(_random_features(_steep)) >= {"exploding gradients", "finite differences", "black box"}
    assert _names(_random_features(torch.tanh)) == set()


def test_noise_at_inference() -> None:
    model, g = _trained("relu", True), torch.Generator().manual_seed(0)
    names = _names(lambda x: model(x + 0.2 * torch.randn(x.shape, generator=g)))
    assert names >= {"randomized inference", "finite differences"}
    # Noise that never changes a class is still seen.
    assert _names(lambda x: model(x) + 0.02 * torch.randn(len(x), 10, generator=g)) >= {
        "randomized inference"
    }


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return -gradient


def test_a_gradient_that_points_the_wrong_way() -> None:
    model = _trained("relu", False)
    names = _names(lambda x: model(_Reversed.apply(x)), surrogate=model)
    assert names >= {"finite differences", "loss does not rise", "unbounded radius", "black box", "transfer"}
    assert "zero gradients" not in names


def _fooling(kind: str) -> tuple[Callable[[Tensor], Tensor], set[str]]:
    """The four networks of the brief, built to fool attacks, and what must be seen of each."""
    if kind == "quantised input":
        model = _trained("relu", False)
        return lambda x: model(torch.round(8 * x) / 8), {
            "zero gradients",
            "finite differences",
            "loss does not rise",
        }
    if kind == "scaled logits":
        model = _trained("relu", False)
        return lambda x: 1e4 * model(x), {"zero gradients", "loss does not rise", "another loss"}
    if kind == "step activation":
        return _random_features(torch.sign), {"zero gradients", "finite differences", "black box"}
    model, g = _trained("relu", True), torch.Generator().manual_seed(0)
    return (
        lambda x: model(x + 0.2 * torch.randn(x.shape, generator=g)),
        {"finite differences", "randomized inference"},
    )


@pytest.mark.parametrize(
    "kind", ["quantised input", "scaled logits", "step activation", "noise at inference"]
)
def test_the_quick_check_after_an_evaluation_sees_the_fooling(kind: str) -> None:
    """As `curvact evaluate --attack pgd-20` asks: 64 images, 10 steps, 50 queries, the evaluation's
    PGD for the first.
    """
    model, expected = _fooling(kind)
    x, y = _digits(64)
    g = torch.Generator().manual_seed(1)
    attacked = pgd(model, x, y, THREAT, steps=20, generator=g)
    report = masking_report(model, x, y, THREAT, steps=10, queries=50, attacked=attacked)
    assert {alarm.name for alarm in report.alarms} >= expected, str(report)


@pytest.mark.parametrize("activation", ["relu", "rctaf(curvature=6)"])
@pytest.mark.parametrize("adversarial", [False, True])
def test_the_quick_check_after_an_evaluation_trusts_the_honest(activation: str, adversarial: bool) -> None:
    model, (x, y) = _trained(activation, adversarial), _digits(64)
    gradients = [0]

    def counting(x: Tensor) -> Tensor:
        gradients[0] += len(x) if x.requires_grad else 0
        return model(x)

    g = torch.Generator().manual_seed(1)
    attacked = pgd(model, x, y, THREAT, steps=20, generator=g)
    report = masking_report(counting, x, y, THREAT, steps=10, queries=50, attacked=attacked)
    assert report.alarms == (), str(report)
    # Three gradients an image, and of what PGD left ten steps on the margin, ten unbounded, and ten
    # where another loss helped.
    left = round(report.measurements["accuracy under PGD"] * report.images)
    assert gradients[0] <= 3 * report.images + (10 + 10 + 10) * left
    assert report.measurements["margin where PGD ends"] - report.measurements["margin where PGD begins"] > 0


def test_an_outcome_that_depends_on_the_seed() -> None:
    """Half of all points have no gradient, by the first pixel, which the model does not use: PGD
    leaves it where it started.
    """
    model, (x, y) = _trained("relu", False), _digits(100)

    def lottery(z: Tensor) -> Tensor:
        dead = (z[:, 0, 0, 0].detach() * 1e4).frac() < 0.5
        unused = z * (torch.arange(64) > 0).view(8, 8)
        return torch.where(dead[:, None], model(unused.detach()), model(unused))

    report = masking_report(lottery, x, y, ThreatModel("linf", 0.25), steps=10, queries=10)
    (seeds,) = (finding for finding in report.findings if finding.name == "seeds")
    assert seeds.alarm, str(report)
    assert "restart more often" in seeds.sentence
    assert "at most" not in seeds.sentence, "it was measured"


def test_each_finding_is_told_as_it_is_made() -> None:
    told: list[Finding] = []
    report = masking_report(
        _trained("relu", False), *_digits(), THREAT, steps=4, queries=5, on_check=told.append
    )
    assert tuple(told) == report.findings
    assert {finding.name for finding in told} == set(RATES) | set(LIMITS)


def test_how_much_an_alarm_takes() -> None:
    for count in (16, 64, 128):
        most = round(allowed(0.05, count) * count)
        rate = detected(0.05, count)
        assert binom.sf(most, count, rate) == pytest.approx(0.9, abs=1e-4)
    assert detected(0.05, 64) > detected(0.05, 128) > 0.05


def test_one_step_beats_many() -> None:
    """The gradient is right at the images and points back to them elsewhere: FGSM succeeds, PGD
    from random starts does not.
    """
    model, (x, y) = _trained("relu", False), _digits()
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]

    def trap(z: Tensor) -> Tensor:
        return model(z) if torch.equal(z, x) else model(_Reversed.apply(z))

    report = masking_report(trap, x, y, THREAT, steps=10, queries=50)
    assert {alarm.name for alarm in report.alarms} >= {"one step", "finite differences", "loss does not rise"}


def test_the_report_reads_as_a_checklist() -> None:
    model, (x, y) = _trained("relu", False), _digits()
    report = masking_report(lambda x: 1e4 * model(x), x, y, THREAT, steps=4, queries=10)
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report.findings) == 1 + len(RATES) + len(LIMITS)
    assert "signs of gradient masking on" in lines[0]
    assert sum(line.startswith("ALARM") for line in lines) == len(report.alarms)
    assert any("have no gradient" in line and "PGD on it cannot move them" in line for line in lines)
    assert "no sign" in str(masking_report(model, x, y, THREAT, steps=10, queries=10)).splitlines()[0]


def test_a_seed_repeats_and_nothing_global_is_touched() -> None:
    model, (x, y) = _trained("relu", True), _digits()
    model.train()
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (
        masking_report(model, x[:20], y[:20], THREAT, seed=3, steps=4, queries=10) for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(2, 5, 4), (12,)])
def test_random_search_stays_inside_and_improves(norm: Norm, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.rand(8, *shape, generator=g), torch.randn(torch.Size(shape).numel(), 3, generator=g)
    queries = [0]

    def model(x: Tensor) -> Tensor:
        queries[0] += 1
        return torch.tanh(x.flatten(1)) @ w

    y = model(x).argmax(1)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.4, "l1": 1.0}[norm])
    queries[0] = 0
    few, many = (random_search(model, x, y, threat, n, torch.Generator().manual_seed(1)) for n in (1, 80))
    assert queries[0] == 81
    for point in (few, many):
        assert bool((distance(point, x, norm) <= threat.epsilon * (1 + 1e-5)).all())
        assert float(point.min()) >= 0
        assert float(point.max()) <= 1
    assert bool((margin(model(many), y) > margin(model(x), y)).all())
    assert bool((margin(model(many), y) >= margin(model(few), y) - 1e-6).all())


def test_the_surrogate_learns_its_images() -> None:
    x, y = _digits()
    for inputs in (x, x.flatten(1)):
        surrogate = small_network(inputs, y, torch.Generator().manual_seed(0))
        assert float((surrogate(inputs).argmax(1) == y).float().mean()) > 0.9


def test_thresholds_allow_for_few_images() -> None:
    for count in (1, 5, 20, 100, 1000):
        for rate in set(RATES.values()):
            limit = allowed(rate, count)
            assert binom.sf(round(limit * count), count, rate) <= 1e-3
            assert limit == 0 or binom.sf(round(limit * count) - 1, count, rate) > 1e-3
    assert Finding("x", float("nan"), 1.0, "").alarm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat_model": ThreatModel("linf", 0.0)}, "epsilon=0"),
        ({"steps": 1}, "steps=1"),
        ({"queries": 0}, "queries=0"),
        ({"x": torch.full((60, 1, 8, 8), 2.0)}, "images of masking_report lie in"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, r"labels of masking_report have shape \(3,\)"),
        (
            {"attacked": torch.zeros(3, 1, 8, 8)},
            r"attacked images of shape \(3, 1, 8, 8\) for \(60, 1, 8, 8\)",
        ),
        ({"attacked": torch.zeros(60, 1, 8, 8)}, "attacked images up to 1 away: within linf ε = 0.2"),
        ({"model": lambda x: x.flatten(1).sum(1)}, r"outputs have shape \(60,\)"),
        ({"model": lambda x: 2 * torch.eye(10)[(_digits()[1] + 1) % 10]}, "none of 60 images"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, object], message: str) -> None:
    x, y = _digits()
    call = {"model": _trained("relu", False), "x": x, "y": y, "threat_model": THREAT, **change}
    with pytest.raises(CurvactError, match=message) as caught:
        masking_report(**call)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
