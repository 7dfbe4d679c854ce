"""PGD against closed forms on linear models, and its promises on any model."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvact.attacks import (
    LOSSES,
    PGD,
    ThreatModel,
    distance,
    fgsm,
    margin,
    minimum_radius,
    pgd,
)
from curvact.attacks.threat import Norm, ball
from curvact.errors import CurvactError
from curvact.models import MiniResNet
from curvact.models.modes import frozen


def _linear(classes: int = 3, size: int = 6) -> nn.Module:
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).double()
    with torch.no_grad():
        model[1].weight.normal_(generator=g)
        model[1].bias.zero_()
    return model


def _binary(w: Tensor) -> nn.Module:
    """Logits ±wᵀx/2, so that the loss is log(1 + e^(−y wᵀx)) with y = ±1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w / 2, -w / 2]))
    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_finds_the_worst_point_of_a_linear_model(norm: str) -> None:
    """The closed form: −ε·sign(w) for L∞, −ε·w/‖w‖ for L2, away from the box's walls."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1])
    epsilon = 0.1
    towards = w.sign() if norm == "linf" else w / w.norm()
    expected = x - epsilon * torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * towards
    threat = ThreatModel(norm, epsilon)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x_adv = pgd(_binary(w), x, y, threat, steps=40, step=0.2, generator=g)
    # L∞ lands exactly; L2 turns towards the optimum by a constant factor a step.
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12 if norm == "linf" else 1e-3)


def test_pgd_finds_the_worst_point_in_l1() -> None:
    """The greedy closed form: the coordinate of the largest |w| first, each up to its wall."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.5, 0.2, 0.5], [0.5, 0.9, 0.9, 0.5]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    # Logit 0 falls along −w: coordinate 2 has 0.2 to its wall, then coordinate 1. Logit 1 falls
    # along w: 0.1, then 0.3 of 0.9.
    expected = x + torch.tensor([[0, 0.2, -0.2, 0], [0, -0.3, 0.1, 0]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x_adv = pgd(_binary(w), x, y, ThreatModel("l1", 0.4), steps=300, step=0.025, sparsity=0.25, generator=g)
    # At the end one coordinate steps away and the projection takes it back in turn: half a step
    # each.
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=0.005 + 1e-12)


def _plain_pgd(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, step: float, g: torch.Generator
) -> Tensor:
    x_adv = (x + torch.empty_like(x).uniform_(-epsilon, epsilon, generator=g)).clamp(0, 1)
    for _ in range(5):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + step * gradient.sign()
        x_adv = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv


def test_training_s_pgd_is_the_plain_loop_bit_for_bit() -> None:
    """Records of runs depend on it: default options, cross-entropy, one restart, float32."""
    g = torch.Generator().manual_seed(3)
    model = MiniResNet("rctaf(curvature=6)", channels=1, width=4, generator=g).eval()
    x, y = torch.rand(32, 1, 8, 8, generator=g), torch.randint(10, (32,), generator=g)
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    ours = pgd(model, x, y, ThreatModel("linf", 0.2), steps=5, step=0.4, restarts=1, generator=first)
    assert torch.equal(ours, _plain_pgd(model, x, y, 0.2, 0.08, second))
    assert torch.equal(first.get_state(), second.get_state())


def _network(seed: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=g)
    x = torch.rand(48, 6, generator=g, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_first_step_follows_the_loss(loss: str, targeted: bool) -> None:
    """FGSM moves along the sign of a numerical gradient of the loss, which is tested by itself."""
    model, x, y = _network()
    targets = (y + 1) % 5 if targeted else None
    x = 0.3 + 0.4 * x
    moved = fgsm(model, x, y, ThreatModel("linf", 0.1), loss=loss, targets=targets) - x
    for i in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[i] = 1e-6
        up, down = (LOSSES[loss](model(x + s * shift), y, targets) for s in (1, -1))
        steep = (up - down).abs() > 1e-9
        assert int(steep.sum()) > 40
        assert torch.equal((moved[:, i] > 0)[steep], (up > down)[steep])


def test_a_targeted_attack_reaches_its_targets() -> None:
    model, x, y = _network()
    targets = (y + 1) % 5
    threat = ball("linf", 1.0)  # any image is allowed
    g = torch.Generator().manual_seed(0)
    for loss in ("ce", "margin", "dlr"):
        options = {
            "steps": 30,
            "step": 0.08,
            "loss": loss,
            "restarts": 3,
            "generator": g,
            "keep_best": True,
        }
        aimed = pgd(model, x, y, threat, targets=targets, **options)  # type: ignore[arg-type]
        free = pgd(model, x, y, threat, **options)  # type: ignore[arg-type]
        hit = model(aimed).argmax(1) == targets
        assert float(hit.double().mean()) > 0.8
        assert float((model(free).argmax(1) == targets).double().mean()) < float(hit.double().mean())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_radius_and_step_for_each_image(norm: str) -> None:
    """A batch with several radii is its images attacked alone, from the same start."""
    model, x, y = _network()
    epsilon = torch.linspace(0, 0.5, len(x), dtype=torch.float64)
    threat = ThreatModel(norm, 0.9)  # type: ignore[arg-type]
    settings = {"steps": 4, "step": 1 / 3, "start": "none", "loss": "margin"}
    together = pgd(model, x, y, threat, epsilon=epsilon, **settings)  # type: ignore[arg-type]
    assert torch.equal(together[0], x[0])
    for i in range(1, len(x), 9):
        alone = ThreatModel(norm, float(epsilon[i]))  # type: ignore[arg-type]
        row = pgd(model, x[i : i + 1], y[i : i + 1], alone, **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(together[i : i + 1], row, rtol=0, atol=1e-12)
    by_fgsm = fgsm(model, x, y, threat, epsilon=epsilon)
    assert bool((distance(by_fgsm, x, norm) <= epsilon + 1e-12).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_early_stop_returns_the_first_point_that_fools(keep_best: bool, targeted: bool) -> None:
    model, x, y = _network()
    targets = (y + 1) % 5 if targeted else None
    path: list[Tensor] = []
    sizes: list[int] = []
    attack = partial(
        pgd, model, x, y, ThreatModel("linf", 0.3), steps=8, step=1 / 6, targets=targets, loss="margin"
    )
    g = torch.Generator().manual_seed(0)
    last = attack(generator=g, on_step=lambda s, point, v: path.append(point))
    g = torch.Generator().manual_seed(0)
    stopped = attack(
        generator=g,
        early_stop=True,
        keep_best=keep_best,
        on_step=lambda s, point, v: sizes.append(len(point)),
    )
    expected, waiting = last.clone(), []
    done = torch.zeros(len(x), dtype=torch.bool)
    for point in path:
        waiting.append(int((~done).sum()))
        predicted = model(point).argmax(1)
        now = ~done & (predicted != y if targets is None else predicted == targets)
        expected[now] = point[now]
        done |= now
    assert sizes == waiting
    assert 0 < sizes[-1] < len(x)
    if keep_best:  # those that never fool keep their best point instead of the last
        expected[~done], stopped[~done] = 0, 0
    torch.testing.assert_close(stopped, expected, rtol=0, atol=1e-12)


def test_keep_best_is_the_best_point_visited() -> None:
    model, x, y = _network()
    path: list[Tensor] = []
    g = torch.Generator().manual_seed(0)
    best = pgd(
        model, x, y, ThreatModel("l2", 0.4), steps=6, step=1, loss="ce", keep_best=True, generator=g,
        on_step=lambda s, p, v: path.append(p),
    )  # fmt: skip
    last = pgd(
        model,
        x,
        y,
        ThreatModel("l2", 0.4),
        steps=6,
        step=1,
        generator=torch.Generator().manual_seed(0),
    )

    def key(point: Tensor, i: int) -> tuple[bool, float]:
        z = model(point[i : i + 1])
        return bool(z.argmax() != y[i]), F.cross_entropy(z, y[i : i + 1]).item()

    differs = 0
    for i in range(len(x)):
        top = max(key(point, i) for point in [*path, last])
        assert key(best, i)[0] == top[0]
        assert key(best, i)[1] == pytest.approx(top[1], abs=1e-12)
        differs += not torch.equal(best[i], last[i])
    assert differs > 0


def test_keep_best_restarts_never_lose() -> None:
    model, x, y = _network()
    values = []
    for restarts in (1, 4):
        g = torch.Generator().manual_seed(0)
        threat = ThreatModel("linf", 0.1)
        x_adv = pgd(
            model,
            x,
            y,
            threat,
            steps=3,
            step=0.4,
            restarts=restarts,
            loss="margin",
            keep_best=True,
            generator=g,
        )
        values.append(margin(model(x_adv), y))
    assert bool((values[1] >= values[0]).all())
    assert bool((values[1] > values[0]).any())


def test_on_step_sees_every_point_and_its_loss() -> None:
    model, x, y = _network()
    seen: list[tuple[int, Tensor, Tensor]] = []
    threat = ThreatModel("linf", 0.2)
    pgd(
        model,
        x,
        y,
        threat,
        steps=3,
        step=0.5,
        start="none",
        on_step=lambda *point: seen.append(point),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[0][1], x)
    for _, point, loss in seen:
        assert not point.requires_grad
        assert not loss.requires_grad
        torch.testing.assert_close(loss, F.cross_entropy(model(point), y, reduction="none"))


class _Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        if any(
            word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "aten::equal", "unique")
        ):
            self.count += 1
        # A mask as an index is a nonzero in disguise.
        if name == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_steps_never_wait_for_the_device(norm: str, loss: str) -> None:
    model, x, y = _network()
    threat = ThreatModel(norm, 0.01)  # type: ignore[arg-type]
    epsilon = torch.full((len(x),), 0.01, dtype=torch.float64)

    def waits(**settings: object) -> int:
        with _Waits() as counter:
            pgd(
                model, x, y, threat, steps=6, step=0.4, loss=loss, check=False, generator=torch.Generator().manual_seed(0),
                **settings,  # type: ignore[arg-type]
            )  # fmt: skip
        return counter.count

    assert waits() == 0
    assert waits(keep_best=True, epsilon=epsilon, on_step=lambda step, x_adv, loss: loss.mean()) == 0
    assert waits(targets=(y + 1) % 5) == 0
    assert waits(early_stop=True) == 6
    assert waits(restarts=3) == 2


def test_values_are_looked_at_once_a_call() -> None:
    """As many waits for 2 steps as for 8."""
    model, x, y = _network()

    def waits(steps: int) -> int:
        with _Waits() as counter:
            pgd(model, x, y, ThreatModel("linf", 0.01), steps=steps, targets=(y + 1) % 5)
        return counter.count

    assert waits(2) == waits(8)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_unchecked_attacks_need_no_values(norm: Norm) -> None:
    """On the meta device, where looking at a value is an error."""
    model, x = nn.Linear(6, 5, device="meta"), torch.rand(4, 6, device="meta")
    y = torch.zeros(4, dtype=torch.int64, device="meta")
    threat = ThreatModel(norm, 0.1)
    for options in ({"steps": 3}, {"steps": 2, "start": "gaussian", "keep_best": True, "loss": "margin"}):
        x_adv = pgd(model, x, y, threat, check=False, **options)  # type: ignore[arg-type]
        assert x_adv.is_meta
        assert x_adv.shape == x.shape
    assert fgsm(model, x, y, threat, check=False).is_meta
    with pytest.raises(CurvactError, match="meta device"):
        pgd(model, x, y, threat, steps=1)


def test_rounding_is_clamped_and_everything_else_outside_is_refused() -> None:
    model, threat = _linear().float(), ThreatModel("linf", 2 / 255)
    x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    x[0, :2] = torch.tensor([-3e-8, 1 + 1.2e-7])
    x_adv = fgsm(model, x, y, threat)
    assert torch.equal(x_adv, fgsm(model, x.clamp(0, 1), y, threat))
    for bad in (2 * x - 1, 255 * x, x * math.nan, x + math.inf, x - 1e-3):
        for attack in (fgsm, partial(pgd, steps=2), PGD(2)):
            with pytest.raises(CurvactError, match="images of pgd"):
                attack(model, bad, y, threat)
        with pytest.raises(CurvactError, match="images of pgd"):
            PGD(2).on(threat)(model, bad, y)


def test_any_integers_are_labels() -> None:
    model, x, threat = _linear(), torch.rand(3, 6, dtype=torch.float64), ThreatModel("l2", 0.1)
    y = torch.tensor([0, 1, 1])
    expected = fgsm(model, x, y, threat)
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
        assert torch.equal(fgsm(model, x, y.to(kind), threat), expected)


def test_inside_inference_mode() -> None:
    model, x, y = _network()
    threat, expected = ThreatModel("linf", 0.05), {}
    for inside in (False, True):
        with torch.inference_mode(inside):
            expected[inside] = pgd(model, x.clone(), y.clone(), threat, steps=3, start="none")
    assert torch.equal(expected[True], expected[False])


def test_fgsm_is_one_signed_step() -> None:
    model, x = _linear(), torch.rand(5, 6, dtype=torch.float64) * 0.5 + 0.25
    y = torch.tensor([0, 1, 2, 0, 1])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, ThreatModel("linf", 0.1)), expected, rtol=0, atol=1e-15)


def test_starts() -> None:
    """Each start from its formula, by the same draws; one step without projection leaves the ball
    and not the box.
    """
    model, x, y = _network()
    threat = ThreatModel("linf", 0.2)

    def start(**options: object) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return pgd(model, x, y, threat, steps=0, generator=g, **options)  # type: ignore[arg-type]

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    uniform = torch.empty_like(x).uniform_(-0.4, 0.4, generator=drawn())
    assert torch.equal(start(noise=2.0), (x + uniform).clamp(0, 1))
    gaussian = torch.empty_like(x).normal_(0, 0.001, generator=drawn())
    assert torch.equal(start(start="gaussian"), threat.project(x + gaussian, x))
    assert torch.equal(start(start="none"), x)
    far = 1 - x
    assert torch.equal(start(start=far), threat.project(far, x))
    assert torch.equal(start(start=far, project=False), far)

    free = pgd(model, x, y, threat, steps=1, step=1.5, noise=2.0, project=False, generator=drawn())
    slope = torch.func.grad(lambda z: F.cross_entropy(model(z), y))((x + uniform).clamp(0, 1))
    torch.testing.assert_close(free, ((x + uniform).clamp(0, 1) + 0.3 * slope.sign()).clamp(0, 1))
    assert float(distance(free, x, "linf").max()) > 0.5
    # Given starts stay with their images when some leave the batch.
    again = pgd(model, x, y, threat, steps=3, start=far, restarts=2, early_stop=True)
    assert torch.equal(again, pgd(model, x, y, threat, steps=3, start=far, early_stop=True))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@given(
    epsilon=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 3.0]),
    steps=st.integers(0, 4),
    restarts=st.integers(1, 3),
    count=st.integers(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore:.*allows every image")
def test_always_inside_the_threat_model(
    norm: str, epsilon: float, steps: int, restarts: int, count: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 2, 3, generator=g)
    x[:, :, 0, 0] = 0.0
    x[:, :, 1, 1] = 1.0
    y = torch.randint(3, (count,), generator=g)
    threat = ball(norm, epsilon)  # type: ignore[arg-type]
    x_adv = pgd(_linear().float(), x, y, threat, steps=steps, step=0.6, restarts=restarts, generator=g)
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    delta = (x_adv - x).flatten(1)
    size = delta.norm(dim=1, p={"linf": math.inf, "l2": 2, "l1": 1}[norm])
    # One float32 rounding of numbers up to 1; l1 adds six of them.
    assert bool((size <= epsilon + (5e-7 if norm == "l1" else 2e-7) * (1 + epsilon)).all())
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())


def test_random_start_fills_the_ball() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.full((20_000, 3), 0.5)
    noise = ThreatModel("l2", 0.4).random_start(x, g) - x
    radius = noise.norm(dim=1)
    # Uniform in a 3-ball: P(r < ε/2) = 1/8, standard error 0.0023.
    assert float((radius < 0.2).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert float(radius.max()) <= 0.4 + 1e-6
    flat = (ThreatModel("linf", 0.4).random_start(x, g) - x).flatten()
    assert float(flat.std()) == pytest.approx(0.8 / math.sqrt(12), abs=0.003)


class _Counting(torch.autograd.Function):
    """Linear map that notes whether a weight gradient was computed."""

    weight_gradients = 0

    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            _Counting.weight_gradients += 1
        return grad @ w.T, x.T @ grad if ctx.needs_input_grad[1] else None


def test_no_weight_gradients_and_flags_restored() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))
            self.fixed = nn.Parameter(torch.randn(4, 3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return _Counting.apply(x, self.w) + x @ self.fixed  # type: ignore[no-any-return]

    model = Net()
    _Counting.weight_gradients = 0
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    pgd(model, x, y, ThreatModel("linf", 0.1), steps=3, restarts=2)
    assert _Counting.weight_gradients == 0
    assert (model.w.requires_grad, model.fixed.requires_grad) == (True, False)
    assert model.w.grad is None
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        raise RuntimeError("stop")
    assert model.w.requires_grad


def test_restarts_only_help() -> None:
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.rand(64, 4, generator=g)
    y = model(x).argmax(1)

    def robust(restarts: int) -> float:
        random = torch.Generator().manual_seed(7)
        threat = ThreatModel("linf", 0.3)
        x_adv = pgd(model, x, y, threat, steps=2, step=1 / 3, restarts=restarts, generator=random)
        return float((model(x_adv).argmax(1) == y).float().mean())

    assert robust(8) <= robust(1)


def test_a_seed_repeats_and_another_differs() -> None:
    model, x, y = _linear(), torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def attack(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return pgd(model, x, y, ThreatModel("l2", 0.3), steps=1, step=0.03, generator=g)

    assert torch.equal(attack(0), attack(0))
    assert not torch.equal(attack(0), attack(1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_without_a_number_spoils_no_image(norm: Norm) -> None:
    """√h has an infinite slope at 0, and behind `where` its gradient is NaN: these pixels stand
    still, the others move.
    """
    threat = ThreatModel(norm, 0.5)

    def model(x: Tensor) -> Tensor:
        h = x.flatten(1)
        total = torch.where(h > 0, torch.sqrt(h), 0.0).sum(1)
        return torch.stack([total - 1, 1 - total], 1)

    x = torch.tensor([[0.0, 0.9, 0.9], [0.0, 0.3, 0.8]])
    y = torch.zeros(2, dtype=torch.int64)
    x_adv = pgd(model, x, y, threat, steps=10, step=0.2, start="none", sparsity=0.3)
    assert bool(x_adv.isfinite().all())
    assert bool((x_adv[:, 1:] < x[:, 1:]).any(1).all())
    radius = minimum_radius(model, x, y, norm=norm, high=2.0, generator=torch.Generator().manual_seed(0))
    assert bool((radius > 0).all())
    assert not bool(radius.isnan().any())


def _try(**settings: object) -> Tensor:
    settings = {"steps": 1, "step": 0.1, **settings}
    return pgd(_linear().float(), torch.rand(1, 6), torch.tensor([0]), ThreatModel("l2", 1), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", ["detached", "weights only"])
def test_a_model_that_cuts_the_graph_is_one_line(cut: str) -> None:
    weight = torch.ones(4, 2, requires_grad=True)

    def model(x: Tensor) -> Tensor:
        logits = x.detach().flatten(1) @ weight
        return logits if cut == "weights only" else logits.detach()

    with pytest.raises(CurvactError, match="pgd needs a gradient") as caught:
        pgd(
            model,
            torch.full((2, 4), 0.5),
            torch.tensor([0, 1]),
            ThreatModel("linf", 0.1),
            steps=1,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _try(steps=-1), "steps=-1 of pgd"),
        (lambda: _try(restarts=0), "restarts=0 of pgd"),
        (lambda: _try(step=0), "step=0 of pgd: a number > 0, in units of ε"),
        (lambda: _try(step=2.5), "step=2.5 of pgd: at most 2, .* in units of ε"),
        (lambda: _try(start="gausian"), "start='gausian' of pgd; did you mean 'gaussian'"),
        (lambda: _try(start=torch.zeros(2, 6)), r"start of pgd has shape \(2, 6\)"),
        (lambda: _try(noise=-1.0), "noise=-1.0 of pgd"),
        (lambda: _try(loss="cee"), "unknown loss 'cee'.*did you mean 'ce'"),
        (lambda: _try(loss="dlr", targets=torch.tensor([1])), "needs 4 classes, the model has 3"),
        (lambda: _try(sparsity=0.0), "sparsity=0.0"),
        (lambda: _try(epsilon=torch.ones(2)), r"epsilon has shape \(2,\)"),
        (lambda: _try(targets=torch.tensor(1)), r"targets of pgd have shape \(\)"),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
