"""Entropy-SGD against numpy, the Moreau envelope, SGD and the known defects; all weight-space
methods together, resumed.
"""

from __future__ import annotations

import io
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations import activation, constrain_
from curvact.errors import CurvactError
from curvact.random import generator
from curvact.training.methods import batch_norm
from curvact.training.methods.averaging import Average
from curvact.training.methods.entropy_sgd import EntropySGD
from curvact.training.methods.perturbation import add, awp

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
import entropy_sgd_numpy as reference

VARIANTS = ("algorithm", "authors")
SIZE = 5
_random = np.random.default_rng(0)
MATRIX = np.eye(SIZE) + 0.1 * _random.normal(size=(SIZE, SIZE))
TARGETS = _random.normal(size=(200, SIZE))


def _numpy_gradients(skip: int = 0) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Of a loss that is no quadratic, with another target for every batch."""
    for target in TARGETS[skip:]:
        yield lambda w, target=target: MATRIX @ w + np.sin(w) - target


def _gradient(w: Tensor, batch: int) -> Tensor:
    return torch.from_numpy(MATRIX) @ w.detach() + w.detach().sin() - torch.from_numpy(TARGETS[batch])


def _normals(seed: int, group: int) -> Iterator[np.ndarray]:
    for step in itertools.count():
        noise = torch.randn(
            SIZE, generator=generator(seed, "entropy-sgd", group, step, 0), dtype=torch.float64
        )
        yield noise.numpy()


def _weights(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-value, value, SIZE, dtype=torch.float64))


SETTINGS: dict[str, Any] = {
    "inner_steps": 4,
    "inner_lr": 0.1,
    "gamma": 0.5,
    "scoping": 1.3,
    "averaging": 0.75,
    "noise": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.05,
}


def _expected(
    w: Tensor,
    steps: int,
    rate: Callable[[int], float],
    given: dict[str, Any],
    seed: int = 0,
    group: int = 0,
    defect: str = "",
) -> list[dict[str, np.ndarray]]:
    return reference.run(
        w.detach().numpy(),
        _numpy_gradients(),
        _normals(seed, group),
        steps,
        variant=given["variant"],
        rate=rate,
        L=given["inner_steps"],
        inner_rate=given["inner_lr"],
        gamma=given["gamma"],
        scoping=given["scoping"],
        alpha=given["averaging"],
        epsilon=given["noise"],
        momentum=given["momentum"],
        decay=given["weight_decay"],
        defect=defect,
    )


def _compare(w: Tensor, optimizer: EntropySGD, expected: dict[str, np.ndarray]) -> float:
    """Largest difference in x', x, μ."""
    state = optimizer.state[w]
    found = {"inner": w.detach(), "outer": state["outer"], "average": state["average"]}
    return max(float(np.abs(found[key].numpy() - expected[key]).max()) for key in found)


CLOSE = 1e-12
"""float64 over at most 40 steps on numbers of order 1: a few hundred roundings of 1e-16."""


COMMON = {
    "variant": st.sampled_from(VARIANTS),
    "inner_lr": st.floats(0.01, 0.3),
    "scoping": st.floats(0.9, 1.3),
    "averaging": st.floats(0, 1),
    "momentum": st.sampled_from([0.0, 0.5, 0.9]),
    "weight_decay": st.sampled_from([0.0, 0.01]),
}


@settings(max_examples=20)
@given(
    common=st.fixed_dictionaries(COMMON),
    L=st.integers(1, 6),
    gamma=st.floats(0, 1),
    noise=st.floats(0, 0.1),
    rates=st.tuples(st.floats(0, 1.5), st.floats(0, 1.5)),
)
def test_both_variants_are_the_formulas_in_every_group(
    common: dict[str, Any], L: int, gamma: float, noise: float, rates: tuple[float, float]
) -> None:
    own = [
        {"inner_steps": L, "gamma": gamma, "noise": noise},
        {"inner_steps": L + 1, "gamma": 0.2, "noise": 0.02},
    ]
    weights = [_weights(1.0), _weights(0.3)]
    groups = [{"params": [w], "lr": r, **o} for w, r, o in zip(weights, rates, own, strict=True)]
    steps = 3 * L * (L + 1) if L < 3 else 12
    expected = [
        _expected(w, steps, lambda step, r=r: r, {**common, **o}, seed=7, group=i)
        for i, (w, r, o) in enumerate(zip(weights, rates, own, strict=True))
    ]
    optimizer = EntropySGD(groups, lr=9.0, generator=7, **common)
    for step in range(min(len(e) for e in expected)):
        for w in weights:
            w.grad = _gradient(w, step)
        optimizer.step()
        for w, e in zip(weights, expected, strict=True):
            assert _compare(w, optimizer, e[step]) < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("defect", ["", *reference.DEFECTS])
def test_defects_of_the_public_code_would_be_seen(variant: str, defect: str) -> None:
    """Over five outer steps: right to 1e-12, and each of these defects at least 1e-4 away. Groups
    and batch norm: see below.
    """
    w = _weights()
    given = {**SETTINGS, "variant": variant}
    base = 2.0 if variant == "algorithm" else 1.0
    rate = lambda step: base * 0.5 ** (step // 8)  # noqa: E731
    expected = _expected(w, 20, rate, given, defect=defect)
    optimizer = EntropySGD([w], lr=base, **given)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)
    difference = 0.0
    for step in range(20):
        w.grad = _gradient(w, step)
        optimizer.step()
        scheduler.step()
        difference = max(difference, _compare(w, optimizer, expected[step]))
    assert difference > 1e-4 if defect else difference < CLOSE


def test_every_gradient_is_used_and_none_is_changed() -> None:
    """3 outer steps of L = 4 take 12 gradients; the closure runs once a step; the first one moves
    the weights.
    """
    w = _weights()
    optimizer = EntropySGD([w], lr=1.0, inner_steps=4)
    calls = 0

    def closure() -> float:
        nonlocal calls
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        calls += 1
        assert torch.is_grad_enabled()
        return float(loss.detach())

    before = w.detach().clone()
    first = optimizer.step(closure)
    assert first == float((before**2).sum())
    assert not torch.equal(w, before)
    for _ in range(11):
        optimizer.step(closure)
    assert calls == 12
    assert optimizer.outer_step_ended
    assert optimizer.param_groups[0]["gamma"] == pytest.approx(0.03 * 1.001**3, rel=1e-14)
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert torch.equal(w.grad, torch.ones_like(w))
    assert not optimizer.outer_step_ended


def test_momentum_buffer_holds_loss_gradients_only_and_starts_at_zero() -> None:
    w = _weights()
    optimizer = EntropySGD(
        [w], lr=1.0, inner_steps=3, gamma=10.0, noise=1.0, inner_lr=0.01, variant="authors"
    )
    buffer = torch.zeros_like(w)
    for step in range(7):
        if step % 3 == 0:
            buffer = torch.zeros_like(w)
        w.grad = _gradient(w, step)
        buffer = 0.9 * buffer + w.grad
        optimizer.step()
        kept = optimizer.state[w]["buffer"]
        assert torch.equal(kept, torch.zeros_like(w) if step % 3 == 2 else buffer)


def test_schedulers_of_torch_have_effect_in_every_group() -> None:
    def ends(scheduled: bool) -> list[Tensor]:
        weights = [_weights(), _weights(0.5)]
        optimizer = EntropySGD(
            [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.5}], lr=1.0, inner_steps=2
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
        for step in range(4):
            for w in weights:
                w.grad = _gradient(w, step)
            optimizer.step()
            if scheduled:
                scheduler.step()
        return [w.detach() for w in weights]

    for plain, scheduled in zip(ends(False), ends(True), strict=True):
        assert not torch.allclose(plain, scheduled, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_inner_step_is_sgd(variant: str, momentum: float) -> None:
    """L = 1: SGD with rate ηcaη'(1 + momentum), whatever γ is if c = 1 or the rate is given as η/γ."""
    share = 0.75 if variant == "algorithm" else 0.25  # of the newest x' in μ
    for gamma in (0.03, 3.0):
        ours, theirs, printed, plain = (_weights() for _ in range(4))
        eta, inner = 0.8, 0.1
        rest = {
            "inner_steps": 1,
            "inner_lr": inner,
            "gamma": gamma,
            "scoping": 1.0,
            "noise": 0.0,
            "momentum": momentum,
            "weight_decay": 0.1,
        }
        optimizer = EntropySGD(
            [ours], lr=eta / gamma if variant == "algorithm" else eta, variant=variant, **rest
        )
        sgd = torch.optim.SGD([theirs], lr=eta * share * inner * (1 + momentum), weight_decay=0.1)
        as_printed = EntropySGD([printed], lr=eta, variant="algorithm", **rest)
        slower = torch.optim.SGD([plain], lr=eta * gamma * 0.75 * inner * (1 + momentum), weight_decay=0.1)
        for step in range(10):
            for w, o in ((ours, optimizer), (theirs, sgd), (printed, as_printed), (plain, slower)):
                w.grad = _gradient(w, step)
                o.step()
        assert (ours - theirs).abs().max() < CLOSE
        assert (printed - plain).abs().max() < CLOSE
        assert (ours - _weights()).abs().max() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_noise_it_descends_the_moreau_envelope(variant: str) -> None:
    """On ½aw² the inner steps end at the proximal point γx/(a + γ); as printed, x moves by −η times
    the slope aγx/(a + γ).
    """
    a, gamma, eta = 2.0, 0.5, 0.3
    w = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    optimizer = EntropySGD(
        [w], lr=eta, inner_steps=400, inner_lr=0.1, gamma=gamma, noise=0.0, momentum=0.0, variant=variant
    )
    for _ in range(400):
        w.grad = a * w.detach()
        optimizer.step()
    if variant == "algorithm":
        expected = 1.5 - eta * a * gamma / (a + gamma) * 1.5
    else:
        expected = 1.5 - eta * (1.5 - gamma / (a + gamma) * 1.5)
    assert w.item() == pytest.approx(expected, rel=1e-12)  # (1 − 0.25)^400 = 1e-50


@pytest.mark.parametrize(("variant", "variance"), [("algorithm", 0.1), ("authors", 0.2)])
def test_noise_has_the_stated_size_and_needs_no_global_state(variant: str, variance: float) -> None:
    count = 200_000

    def noise(seed: int | torch.Generator | None, groups: int = 1) -> list[Tensor]:
        weights = [nn.Parameter(torch.zeros(count, dtype=torch.float64)) for _ in range(groups)]
        optimizer = EntropySGD(
            [{"params": [w]} for w in weights], lr=1.0, noise=3.0, variant=variant, generator=seed
        )
        for w in weights:
            w.grad = torch.zeros_like(w)
        optimizer.step()
        return [w.detach() for w in weights]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    (first,) = noise(4)
    assert torch.equal(torch.get_rng_state(), before)
    std = 3.0 * math.sqrt(variance)
    assert abs(first.mean()) < 5 * std / math.sqrt(count)  # five standard errors
    assert abs(first.std() / std - 1) < 5 / math.sqrt(2 * count)
    assert torch.equal(first, noise(4)[0])
    assert not torch.equal(first, noise(5)[0])
    assert torch.equal(noise(None)[0], noise(0)[0])
    a, b = noise(4, groups=2)
    assert abs((a * b).mean()) < 5 * std**2 / math.sqrt(count)
    assert torch.equal(noise(generator(1, "x"))[0], noise(generator(1, "x"))[0])
    assert not torch.equal(noise(generator(1, "x"))[0], noise(generator(2, "x"))[0])


def test_outer_weights_are_x_and_leave_no_trace() -> None:
    w = _weights()
    given = {**SETTINGS, "variant": "authors"}
    expected = _expected(w, 8, lambda step: 1.0, given)
    optimizer = EntropySGD([w], lr=1.0, **given)
    with optimizer.outer_weights():
        assert torch.equal(w, _weights())
    for step in range(6):
        w.grad = _gradient(w, step)
        optimizer.step()
    inner = w.detach().clone()

    def fail() -> None:
        with optimizer.outer_weights(), optimizer.outer_weights():
            np.testing.assert_allclose(w.detach(), expected[5]["outer"], rtol=CLOSE, atol=CLOSE)
            with torch.no_grad():
                w.mul_(7)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(w, inner)
    with optimizer.outer_weights():
        with pytest.raises(CurvactError, match="no step inside outer_weights"):
            optimizer.step()
        with pytest.raises(CurvactError, match="load the state outside of it"):
            optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_run_saved_within_an_outer_step_goes_on_bit_for_bit(variant: str, inside: bool) -> None:
    def start() -> tuple[list[nn.Parameter], EntropySGD, torch.optim.lr_scheduler.LRScheduler]:
        weights = [nn.Parameter(torch.linspace(-1, 1, SIZE)), nn.Parameter(torch.ones(2, 2))]
        groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.3}]
        optimizer = EntropySGD(
            groups, lr=1.0, inner_steps=5, scoping=1.1, noise=0.1, variant=variant, generator=3
        )
        return weights, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def go(weights: list[nn.Parameter], optimizer: EntropySGD, scheduler: Any, steps: int) -> None:
        for _ in range(steps):
            for w in weights:
                w.grad = w.detach().sin()
            optimizer.step()
            scheduler.step()

    whole, optimizer, scheduler = start()
    go(whole, optimizer, scheduler, 8)
    file = io.BytesIO()
    if inside:  # the weights in the file are then x
        with optimizer.outer_weights():
            torch.save([whole, optimizer.state_dict(), scheduler.state_dict()], file)
    else:
        torch.save([whole, optimizer.state_dict(), scheduler.state_dict()], file)
    go(whole, optimizer, scheduler, 9)
    file.seek(0)
    values, of_optimizer, of_scheduler = torch.load(file, weights_only=True)  # plain tensors and numbers only
    resumed, again, schedule = start()
    with torch.no_grad():
        for w, value in zip(resumed, values, strict=True):
            w.copy_(value)
    again.load_state_dict(of_optimizer)
    schedule.load_state_dict(of_scheduler)
    go(resumed, again, schedule, 9)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    ends, kept = again.state_dict(), optimizer.state_dict()
    assert ends["param_groups"] == kept["param_groups"]
    for a, b in zip(ends["state"].values(), kept["state"].values(), strict=True):
        assert a.keys() == b.keys() == {"outer", "average", "buffer", "inner"}
        assert all(torch.equal(a[k], b[k]) for k in a)
    loaded = of_optimizer["state"][0]["outer"].clone()
    go(resumed, again, schedule, 5)
    assert torch.equal(
        of_optimizer["state"][0]["outer"], loaded
    )  # the state that was loaded is not written to


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_perturbation_on_the_parameters_stays_out_of_the_average(variant: str) -> None:
    """AWP's step is at w + ν: there are gradient and decay, but x', μ and x are those without ν."""
    w = nn.Parameter(torch.linspace(-1, 1, SIZE, dtype=torch.float64))
    given = {**SETTINGS, "variant": variant}
    nus = 0.3 * np.random.default_rng(1).normal(size=(12, SIZE))
    gradients = (
        (lambda x, g=g, nu=nu: g(x + nu) + 0.05 * nu) for g, nu in zip(_numpy_gradients(), nus, strict=False)
    )
    expected = reference.run(
        w.detach().numpy(), gradients, _normals(0, 0), 12, variant=variant, rate=lambda step: 0.7, L=4, inner_rate=0.1,
        gamma=0.5, scoping=1.3, alpha=0.75, epsilon=0.01, momentum=0.9, decay=0.05,
    )  # fmt: skip
    optimizer = EntropySGD([w], lr=0.7, **given)
    for step in range(12):
        pairs = [(w, torch.from_numpy(nus[step]))]
        add(pairs)
        w.grad = _gradient(w, step)
        optimizer.step()
        add(pairs, -1)
        assert _compare(w, optimizer, expected[step]) < CLOSE
        if optimizer.outer_step_ended:
            state = optimizer.state[w]
            assert torch.equal(w, state["outer"])
            assert torch.equal(w, state["average"])


def test_parameters_without_gradients_stay() -> None:
    used, unused, frozen = _weights(), _weights(), _weights().requires_grad_(False)
    optimizer = EntropySGD([used, unused, frozen], lr=1.0, inner_steps=2, variant="authors")
    late = _weights()
    optimizer.add_param_group({"params": [late], "lr": 0.0})
    for step in range(5):
        used.grad = _gradient(used, step)
        late.grad = _gradient(late, step) if step == 2 else None
        optimizer.step()
    assert not torch.equal(used, _weights())
    assert torch.equal(unused, _weights())
    assert torch.equal(frozen, _weights())
    assert torch.equal(late, _weights())  # its outer rate is 0, and its outer step ended without a gradient
    with optimizer.outer_weights():
        assert torch.equal(unused, _weights())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 of EntropySGD: a number >= 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"inner_lr": 0.0}, "inner_lr=0.0 of EntropySGD: a number > 0"),
        ({"inner_steps": 0}, "inner_steps=0 of EntropySGD: a whole number >= 1"),
        ({"inner_steps": 2.0}, "inner_steps=2.0"),
        ({"averaging": 1.5}, r"averaging=1.5 of EntropySGD: a number in \[0, 1\]"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"gamma": "x"}, "gamma='x'"),
        ({"variant": "author"}, "variant='author' of EntropySGD; did you mean 'authors'"),
        ({"generator": "x"}, "generator='x'"),
    ],
)
def test_bad_settings_are_one_line(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        EntropySGD([_weights()], **{"lr": 1.0, **bad})
    assert "\n" not in str(caught.value)
    if "generator" not in bad:
        optimizer = EntropySGD([_weights()], lr=1.0)
        with pytest.raises(CurvactError, match=message):
            optimizer.add_param_group({"params": [_weights()], **bad})
        assert len(optimizer.param_groups) == 1


def test_the_state_of_another_optimizer_is_refused() -> None:
    w = _weights()
    with pytest.raises(CurvactError, match="no state of EntropySGD: averaging, gamma"):
        EntropySGD([w], lr=1.0).load_state_dict(torch.optim.SGD([w], lr=1.0).state_dict())


# -- with the rest of the weight space
# ------------------------------------------------------------------------------------


def _net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    random = generator(0, "net")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random) / p[0].numel() ** 0.5)
    return model


def _batch(step: int) -> tuple[Tensor, Tensor]:
    random = generator(step, "batch")
    x = torch.rand(8, 1, 4, 4, generator=random)
    return x, x.flatten(1)[:, :3].argmax(1)


def test_inner_forward_passes_leave_batch_norm_alone() -> None:
    """The defect: statistics gathered along x' are kept and used at x."""
    for frozen in (True, False):
        model = _net().train()
        optimizer = EntropySGD(model.parameters(), lr=1.0, inner_steps=3)
        before = [b.clone() for b in model.buffers()]
        for step in range(7):
            x, y = _batch(step)
            optimizer.zero_grad()
            if frozen:
                with batch_norm.statistics_frozen(model):
                    F.cross_entropy(model(x), y).backward()
            else:
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
        same = [torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True)]
        assert same == [frozen] * 3
        inner = [b.clone() for b in model.state_dict().values()]
        with optimizer.outer_weights(), batch_norm.saved_statistics(model):
            images = [_batch(step)[0] for step in range(3)]
            batch_norm.recalibrate(model, images)
            means = torch.stack([model[0](x).mean((0, 2, 3)) for x in images]).mean(0)
            torch.testing.assert_close(model[1].running_mean, means)
        assert all(torch.equal(a, b) for a, b in zip(inner, model.state_dict().values(), strict=True))


def test_training_with_it_learns() -> None:
    """With AWP and EMA; looking at the averaged outer weights in between changes nothing."""
    model, looked_at = _net(), _net()
    batches = [_batch(step) for step in range(9)]

    def loss(net: nn.Module, optimizer: EntropySGD) -> float:
        with optimizer.outer_weights(), batch_norm.saved_statistics(net), torch.no_grad():
            batch_norm.recalibrate(net, [x for x, _ in batches])
            net.eval()
            value = float(torch.stack([F.cross_entropy(net(x), y) for x, y in batches]).mean())
        net.train()
        return value

    before = None
    for net in (model, looked_at):
        optimizer = EntropySGD(net.parameters(), lr=1.0, inner_steps=5, variant="authors")
        average = Average(net, decay=0.8)
        before = before or loss(net, optimizer)
        net.train()
        for step in range(100):
            x, y = _batch(step)
            optimizer.zero_grad()
            with batch_norm.statistics_frozen(net):
                F.cross_entropy(net(x), y).backward()
            pairs = awp(net.named_parameters(), 0.05)
            add(pairs)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            add(pairs, -1)
            if optimizer.outer_step_ended:
                average.update()
            if net is looked_at and step % 3 == 0:
                with average.weights():
                    loss(net, optimizer)
        assert loss(net, optimizer) < 0.5 * before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), looked_at.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "parameter", "sign"),
    [("rctaf(alpha=0.5, learnable=True)", "alpha", 1), ("pssilu(beta=0.9, learnable=True)", "beta", -1)],
)
def test_outer_weights_of_learned_activations_stay_in_their_domain(
    name: str, parameter: str, sign: int
) -> None:
    """Gradients that would take α below 0, and β above 1."""
    act = activation(name)
    model = nn.Sequential(nn.Linear(1, 1), act)
    scale = getattr(act, parameter)
    settings = {"inner_steps": 4, "inner_lr": 0.1, "noise": 0.0, "momentum": 0.0, "averaging": 0.25}
    optimizer = EntropySGD(model.parameters(), lr=1.0, variant="authors", **settings)
    for _ in range(8):
        for p in model.parameters():
            p.grad = torch.full_like(p, 8.0 * sign) if p is scale else torch.zeros_like(p)
        optimizer.step()
        constrain_(model)
        if optimizer.outer_step_ended:
            optimizer.follow([scale, nn.Parameter(torch.zeros(1))])  # one is of no group
        else:
            with pytest.raises(CurvactError, match="only at the end of an outer step"):
                optimizer.follow([scale])
        with optimizer.outer_weights():
            assert math.isfinite(act.max_curvature.value)
            assert float(scale.detach()) > 0 if parameter == "alpha" else abs(float(scale.detach())) < 1
