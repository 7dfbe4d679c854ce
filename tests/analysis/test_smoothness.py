from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.analysis import Loss, match_radii, replayed, seeded, smoothness_report, trajectory_smoothness
from curvact.attacks import PGD
from curvact.attacks.losses import ce
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError


class Bowl(nn.Module):
    """½ θᵀHθ of its own parameters, in two tensors of other norms, for each example."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        theta = torch.randn(len(h), generator=random, dtype=torch.float64)
        self.one, self.two = nn.Parameter(theta[:2]), nn.Parameter(10 * theta[2:])
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.cat([self.one, self.two])
        return (theta @ self.h @ theta / 2).expand(len(x))


class Linear(nn.Module):
    """wᵀx."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def logistic(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.logaddexp(torch.zeros_like(outputs), -y * outputs)


def closed_form(epsilon: float, norm: str) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """The best attack on the linear model: −yε sign(w) or −yε w/‖w‖."""

    def attack(model: Any, x: Tensor, y: Tensor) -> Tensor:
        w = model.w.detach()
        return x - y[:, None] * epsilon * (w.sign() if norm == "linf" else w / w.norm())

    return attack


def gradient_bounds(w1: np.ndarray, w2: np.ndarray, x: np.ndarray, epsilon: float, norm: str) -> np.ndarray:
    """A‖Δw‖ + (ε/r)‖Δw‖ under L2, A‖Δw‖ + 2ε√K across K sign changes under L∞, with A = (‖x‖+ρ)²/4.
    [derived]
    """
    step, sizes = np.linalg.norm(w1 - w2), np.linalg.norm(x, axis=1)
    if norm == "l2":
        r = min(np.linalg.norm(w1), np.linalg.norm(w2))
        return ((sizes + epsilon) ** 2 / 4 + epsilon / r) * step
    flips = (np.sign(w1) != np.sign(w2)).sum()
    return (sizes + epsilon * math.sqrt(len(w1))) ** 2 / 4 * step + 2 * epsilon * math.sqrt(flips)


def network(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)
    ).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=dtype) * 0.5)
    x = torch.rand(6, 1, 4, 4, generator=random, dtype=dtype)
    return model, x, torch.tensor([0, 1, 2, 0, 1, 2])


def gradient_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∇ of the mean cross-entropy in eval mode, flat, on a copy."""
    model = copy.deepcopy(model).eval()
    for p in model.parameters():
        p.requires_grad_(True)
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    return torch.cat(
        [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in model.parameters()]
    )


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


X, Y = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3)


# ---- closed forms ----


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(3, 6))
def test_a_quadratic_has_the_ratio_hd_over_d_at_every_norm(seed: int, size: int) -> None:
    m = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = Bowl((m + m.T) / 2)
    start, visited = vector(model), []

    def spy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        visited.append(vector(net))
        return x

    report = smoothness_report(
        Loss(model, X, Y, loss=own), {"spy": spy}, norms=[1e-3, 0.1, 10.0], directions=2, flatness=False
    )
    steps = [where - start for where in visited if not torch.equal(where, start)]
    assert len(steps) == len(report.rows) == 6
    by_size = {round(float(step.norm()), 9): step for step in steps}
    for row in report.rows:
        # Along one direction the ratio is the same whatever the step: rounding of θ + ρd, 1e-16/ρ,
        # is the only difference.
        d = next(
            s
            for s in steps
            if abs(float((model.h @ s).norm()) - row.difference) < 1e-9 * row.difference + 1e-12
        )
        assert row.ratio == pytest.approx(float((model.h @ d).norm() / d.norm()), rel=1e-9)
        assert row.step == pytest.approx(row.relative_norm * float(start.norm()), rel=1e-9)
        assert row.drift == row.moved == 0
    assert len({round(line.ratio, 9) for line in report.lines()}) == 1
    assert len(by_size) == 3
    for step in steps:  # each tensor its own relative norm
        shares = step[:2].norm() / start[:2].norm(), step[2:].norm() / start[2:].norm()
        assert shares[0] == pytest.approx(float(shares[1]), rel=1e-9)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_linear_model_obeys_its_theory(norm: str) -> None:
    rng = np.random.default_rng(0)
    x, w = torch.tensor(rng.normal(size=(5, 4))), torch.tensor(rng.normal(size=4))
    y = torch.tensor([1.0, -1, 1, 1, -1]).double()
    report = smoothness_report(
        Loss(Linear(w), x, y, loss=logistic),
        {"best": closed_form(0.3, norm)},
        norms=[0.01, 0.5, 2.0],
        directions=8,
        flatness=False,
    )
    for row in report.rows:
        assert row.difference <= row.held + row.moved + 1e-12
    # Once more in plain numpy, at points that are given.
    points = [w.numpy() + t * rng.normal(size=4) for t in (0, 0.01, 1, 3)]
    found = trajectory_smoothness(
        Loss(Linear(w), x, y, loss=logistic),
        [torch.tensor(p) for p in points],
        {"best": closed_form(0.3, norm)},
    )
    slopes, attacks = [], []
    for p in points:
        delta = -y.numpy()[:, None] * 0.3 * (np.sign(p) if norm == "linf" else p / np.linalg.norm(p))
        z = x.numpy() + delta
        sigma = 1 / (1 + np.exp(y.numpy() * (z @ p)))
        slopes.append((-(sigma * y.numpy())[:, None] * z).mean(0))
        attacks.append(delta)
    for k, row in enumerate(found.rows):
        step = np.linalg.norm(points[k + 1] - points[k])
        assert row.step == pytest.approx(step, rel=1e-12)
        assert row.difference == pytest.approx(np.linalg.norm(slopes[k + 1] - slopes[k]), rel=1e-9)
        assert row.ratio == pytest.approx(row.difference / step, rel=1e-12)
        assert row.relative_norm == pytest.approx(step / np.linalg.norm(points[k]), rel=1e-12)
        drift = np.linalg.norm(attacks[k + 1] - attacks[k], axis=1).mean()
        assert row.drift == pytest.approx(drift, rel=1e-9, abs=1e-15)
        assert (
            row.difference <= gradient_bounds(points[k], points[k + 1], x.numpy(), 0.3, norm).mean() + 1e-13
        )


def test_across_a_sign_flip_the_numerator_stays_and_the_ratio_diverges() -> None:
    w, x, y = torch.tensor([0.0, 1.0]).double(), torch.tensor([[0.2, -0.4]]).double(), torch.ones(1).double()
    rows = []
    for h in (1e-2, 1e-5):
        points = [w + torch.tensor([s * h, 0.0]) for s in (1, -1)]
        attacks = {norm: closed_form(0.5, norm) for norm in ("linf", "l2")}
        rows.append(trajectory_smoothness(Loss(Linear(w), x, y, loss=logistic), points, attacks).rows)
    (coarse, coarse2), (fine, fine2) = rows
    jump = 2 * 0.5 / (1 + math.exp(-0.4 - 0.5))
    assert fine.difference == pytest.approx(jump, rel=1e-4)
    assert fine.drift == pytest.approx(1.0, rel=1e-12)
    assert fine.ratio / coarse.ratio == pytest.approx(1e3, rel=0.05)
    assert fine2.ratio == pytest.approx(coarse2.ratio, rel=1e-3)
    # What jumps is the attack's part, not the part with the attack held.
    assert fine.moved == pytest.approx(jump, rel=1e-4)
    assert fine.held < 1e-4


def test_differences_on_a_network_are_those_by_hand() -> None:
    model, x, y = network()
    attack = seeded(PGD(3), ThreatModel("linf", 0.1))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05 * torch.ones_like(p))
    found = trajectory_smoothness(
        Loss(model, x, y), [vector(model), vector(other)], {"clean": None, "linf": attack}
    )
    clean, linf = found.rows
    g1, g2 = gradient_by_hand(model, x, y), gradient_by_hand(other, x, y)
    assert clean.difference == pytest.approx(float((g2 - g1).norm()), rel=1e-9)
    assert clean.held == clean.difference
    assert clean.moved == clean.drift == 0
    near, there = attack(copy.deepcopy(model).eval(), x, y), attack(copy.deepcopy(other).eval(), x, y)
    a1, a2 = gradient_by_hand(model, near, y), gradient_by_hand(other, there, y)
    held = gradient_by_hand(other, near, y)
    assert linf.difference == pytest.approx(float((a2 - a1).norm()), rel=1e-9)
    assert linf.held == pytest.approx(float((held - a1).norm()), rel=1e-9)
    assert linf.moved == pytest.approx(float((a2 - held).norm()), rel=1e-9, abs=1e-14)
    assert linf.drift == pytest.approx(
        float((near - there).flatten(1).norm(dim=1).mean()), rel=1e-9, abs=1e-14
    )
    assert linf.loss == pytest.approx(
        float(F.cross_entropy(copy.deepcopy(model).eval()(near), y).detach()), rel=1e-12
    )


# ---- the model comes back ----


def disturbed(model: nn.Sequential) -> None:
    """Modes, flags and gradients that are not the usual ones."""
    model.train()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[assignment,arg-type]


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_comes_back_bit_for_bit(failing: bool) -> None:
    model, x, y = network(torch.float32)
    disturbed(model)
    before = copy.deepcopy(model.state_dict())
    gradient, calls, state = model[0].weight.grad, [0], torch.get_rng_state()

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls[0] += 1
        assert not any(m.training for m in net.modules())
        for m in net.modules():  # an attack that leaves its mark
            m.training = True
        net[1].running_mean.add_(1)  # type: ignore[index,union-attr]
        for m in net.modules():
            m.training = False
        if failing and calls[0] == 6:
            raise RuntimeError("no")
        return images + 0.01 * torch.rand(images.shape)

    def run() -> None:
        smoothness_report(Loss(model, x, y), {"a": attack}, norms=[0.1, 0.01], directions=3, flatness=False)

    if failing:
        with pytest.raises(RuntimeError, match="no"):
            run()
    else:
        run()
        points = [{k: v + 1 for k, v in before.items()}, before]
        trajectory_smoothness(Loss(model, x, y), points, {"a": attack})
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert not model[5].weight.requires_grad
    assert model[5].bias.requires_grad
    assert model[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))  # type: ignore[arg-type]
    assert model[5].bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)


# ---- the same start ----


def test_an_attack_of_torchs_global_state_starts_at_one_place() -> None:
    model, x, y = network()
    found = smoothness_report(
        Loss(model, x, y, batch_size=4),
        {"noise": lambda net, images, labels: images + torch.rand(images.shape)},
        norms=[0.1],
        directions=2,
        flatness=False,
    )
    assert found.noise == {"noise": 0.0}
    assert all(row.drift == row.moved == 0 for row in found.rows)


def test_torchs_global_state_changes_nothing() -> None:
    model, x, y = network()
    noise = {"noise": lambda net, images, labels: images + torch.rand(images.shape)}
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(
                smoothness_report(Loss(model, x, y), noise, norms=[0.1], directions=2, flatness=False)
            )
    assert found[0].rows == found[1].rows


def test_an_attack_with_a_generator_shows_as_noise_until_it_is_replayed() -> None:
    model, x, y = network()
    random = torch.Generator().manual_seed(0)

    def noisy(net: object, images: Tensor, labels: Tensor) -> Tensor:
        return images + torch.rand(images.shape, generator=random, dtype=images.dtype)

    settings = {"norms": [0.1], "directions": 2, "flatness": False}
    assert smoothness_report(Loss(model, x, y), {"a": noisy}, **settings).noise["a"] > 0.1  # type: ignore[arg-type]
    found = smoothness_report(Loss(model, x, y), {"a": replayed(noisy, random)}, **settings)  # type: ignore[arg-type]
    assert found.noise == {"a": 0.0}
    assert found.rows[0].drift == 0
    assert trajectory_smoothness(Loss(model, x, y), [vector(model)] * 2, {"a": noisy}).noise["a"] > 0.1


def test_pgd_of_one_seed_starts_at_one_place() -> None:
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    starts = [
        seeded(PGD(1, step=1e-9), ThreatModel("l2", 0.2), seed)(nn.Identity(), x, y) for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.allclose(starts[0], starts[2], atol=1e-3)


# ---- the report ----


def test_rows_lines_and_record() -> None:
    model, x, y = network()
    seen: list[tuple[int, int | None]] = []
    matched = match_radii(Loss(model, x, y), 0.05)
    attacks = matched.attacks(PGD(2))
    report = smoothness_report(
        Loss(model, x, y),
        attacks,
        norms=[0.1, 0.01],
        directions=3,
        threat_models=matched.threat_models,
        matching=matched.as_dict(),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 18) for n in range(1, 19)]
    assert [(row.attack, row.relative_norm, row.index) for row in report.rows] == [
        (attack, norm, index)
        for attack in ("clean", "linf", "l2")
        for norm in (0.1, 0.01)
        for index in range(3)
    ]
    assert [(line.attack, line.relative_norm) for line in report.lines()][:2] == [
        ("clean", 0.1),
        ("clean", 0.01),
    ]
    line, rows = report.lines()[2], [r for r in report.rows if r.attack == "linf" and r.relative_norm == 0.1]
    ratios = np.array([r.ratio for r in rows])
    assert line.ratio == pytest.approx(ratios.mean())
    assert line.ratio_error == pytest.approx(ratios.std(ddof=1) / 3**0.5)
    assert line.highest_ratio == ratios.max()
    assert report.gradient_norms["clean"] == pytest.approx(float(gradient_by_hand(model, x, y).norm()))
    assert report.losses["linf"] > report.losses["clean"]
    assert all(r.loss == report.losses[r.attack] for r in report.rows)
    assert report.flatness is not None
    assert set(report.flatness.linearity_error) == {"linf", "l2"}
    record = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert record["kind"] == "directions"
    assert record["matching"]["rule"] == "corners"
    assert record["matching"]["target"] is None
    assert len(record["rows"]) == 18
    assert record["parameters"] == sum(p.numel() for p in model.parameters())


def test_directions_are_one_for_all_attacks_and_come_from_the_generator() -> None:
    model, x, y = network()
    identity = lambda net, images, labels: images  # noqa: E731

    def run(seed: int | None, norms: tuple[float, ...] = (0.1,)) -> tuple[float, ...]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        found = smoothness_report(
            Loss(model, x, y),
            {"a": None, "b": identity},
            norms=norms,
            directions=2,
            flatness=False,
            generator=generator,
        )
        ratios = [[row.ratio for row in found.rows if row.attack == name] for name in ("a", "b")]
        assert ratios[0] == ratios[1]
        return tuple(row.ratio for row in found.rows if row.relative_norm == 0.1)

    assert run(1) == run(1) == run(1, (0.01, 0.1))
    assert run(1) != run(2)
    assert run(None) == run(None)


def test_excluded_parameters_are_held_and_not_counted() -> None:
    model, x, y = network()
    seen = []

    def spy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(copy.deepcopy(net.state_dict()))
        return images

    report = smoothness_report(
        Loss(model, x, y, exclude=["0.weight", "5.bias"]),
        {"spy": spy},
        norms=[0.5],
        directions=1,
        flatness=False,
    )
    first, last = seen[0], seen[-1]
    assert [name for name in first if not torch.equal(first[name], last[name])] == [
        "0.bias",
        "1.weight",
        "1.bias",
        "5.weight",
    ]
    assert report.parameters == 3 + 3 + 3 + 36
    by_test = smoothness_report(
        Loss(model, x, y, exclude=lambda name: name in ("0.weight", "5.bias")),
        {"spy": spy},
        norms=[0.5],
        directions=1,
        flatness=False,
    )
    assert by_test.rows == report.rows


def test_batches_change_nothing() -> None:
    model, x, y = network()
    attacks = {"fgsm": lambda net, images, labels: images + 0.05 * _sign(net, images, labels)}
    whole, parts = (
        smoothness_report(
            Loss(model, x, y, batch_size=size), attacks, norms=[0.1], directions=2, flatness=False
        )
        for size in (6, 4)
    )
    for a, b in zip(whole.rows, parts.rows, strict=True):
        # Sums in another order, in float64.
        assert a.ratio == pytest.approx(b.ratio, rel=1e-9)
        assert a.drift == pytest.approx(b.drift, rel=1e-9, abs=1e-12)


def _sign(net: Any, images: Tensor, labels: Tensor) -> Tensor:
    point = images.clone().requires_grad_()
    return torch.autograd.grad(ce(net(point), labels).sum(), point)[0].sign()


# ---- trajectories ----


def states() -> tuple[nn.Sequential, list[dict[str, Tensor]], Tensor, Tensor]:
    """A model and three state dicts with other parameters and other batch-norm statistics."""
    model, x, y = network()
    points = []
    for k in range(3):
        state = copy.deepcopy(model.state_dict())
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value + 0.1 * k * (1 + torch.sin(torch.arange(value.numel()).double())).view_as(
                    value
                )
        points.append(state)
    return model, points, x, y


@pytest.mark.parametrize("buffers", ["pair", "own", "model"])
def test_whose_batch_norm_statistics(buffers: Any) -> None:
    model, points, x, y = states()
    model[1].running_mean.fill_(0.3)
    found = trajectory_smoothness(Loss(model, x, y), points, {"clean": None}, buffers=buffers)
    for k, row in enumerate(found.rows):
        slopes = []
        for which in (k, k + 1):
            net = copy.deepcopy(model)
            net.load_state_dict(points[which])
            statistics = {"pair": points[k], "own": points[which], "model": model.state_dict()}[buffers]
            net[1].running_mean.copy_(statistics["1.running_mean"])
            net[1].running_var.copy_(statistics["1.running_var"])
            slopes.append(gradient_by_hand(net, x, y))
        assert row.difference == pytest.approx(float((slopes[1] - slopes[0]).norm()), rel=1e-9)
    assert found.buffers == buffers


def test_vectors_states_iterators_and_positions() -> None:
    model, points, x, y = states()
    attacks = {"linf": seeded(PGD(2), ThreatModel("linf", 0.05))}
    vectors = torch.stack(
        [torch.cat([point[name].reshape(-1) for name, _ in model.named_parameters()]) for point in points]
    )
    seen: list[tuple[int, int | None]] = []
    by_state = trajectory_smoothness(
        Loss(model, x, y),
        iter(points),
        attacks,
        buffers="model",
        on_progress=lambda d, t: seen.append((d, t)),
    )
    by_vector = trajectory_smoothness(Loss(model, x, y), vectors, attacks, positions=[0, 100, 250])
    assert seen == [(1, None), (2, None)]
    assert [row.ratio for row in by_state.rows] == [row.ratio for row in by_vector.rows]
    assert [row.position for row in by_state.rows] == [1, 2]
    assert [row.position for row in by_vector.rows] == [100, 250]
    record = json.loads(json.dumps(by_vector.as_dict(), allow_nan=False))
    assert record["kind"] == "trajectory"


@pytest.mark.parametrize("buffers", ["pair", "own", "model"])
@pytest.mark.parametrize("lazy", [False, True], ids=["list", "iterator"])
@pytest.mark.parametrize("live", [0, 1, 2])
def test_a_point_may_be_the_models_live_state(live: int, lazy: bool, buffers: Any) -> None:
    """The model's own tensors are overwritten on the way: the point is what they held when the
    model was given.
    """
    model, points, x, y = states()
    model.load_state_dict(points[live])
    attacks = {"linf": seeded(PGD(2), ThreatModel("linf", 0.05))}
    truth = trajectory_smoothness(Loss(copy.deepcopy(model), x, y), points, attacks, buffers=buffers)
    mixed = [model.state_dict() if k == live else point for k, point in enumerate(points)]
    found = trajectory_smoothness(Loss(model, x, y), iter(mixed) if lazy else mixed, attacks, buffers=buffers)
    assert found.rows == truth.rows
    assert all(row.difference > 0 for row in found.rows)
    assert all(torch.equal(value, points[live][name]) for name, value in model.state_dict().items())


def test_vectors_of_which_the_parameters_are_views() -> None:
    """As `vector_to_parameters` leaves them."""
    model, x, y = network()
    last = vector(model)
    first = 1.5 * last
    truth = trajectory_smoothness(Loss(copy.deepcopy(model), x, y), [first, last.clone()], {"clean": None})
    nn.utils.vector_to_parameters(last, model.parameters())
    found = trajectory_smoothness(Loss(model, x, y), [first, last], {"clean": None})
    assert found.rows == truth.rows
    assert found.rows[0].step > 0


def test_a_trajectory_with_excluded_parameters() -> None:
    """They keep the model's own values at every point; the others move, and theirs is the gradient."""
    model, points, x, y = states()
    excluded = ["0.weight", "5.bias"]
    found = trajectory_smoothness(
        Loss(model, x, y, exclude=excluded), points, {"clean": None}, buffers="model"
    )
    by_vector = trajectory_smoothness(
        Loss(model, x, y, exclude=lambda name: name in excluded),
        [torch.cat([point[name].reshape(-1) for name, _ in model.named_parameters()]) for point in points],
        {"clean": None},
    )
    without_them = [{k: v for k, v in point.items() if k not in excluded} for point in points]
    assert by_vector.rows == found.rows
    kept = trajectory_smoothness(
        Loss(model, x, y, exclude=excluded), without_them, {"clean": None}, buffers="model"
    )
    assert kept.rows == found.rows
    moved = torch.cat(
        [torch.full((p.numel(),), name not in excluded) for name, p in model.named_parameters()]
    )
    assert found.parameters == int(moved.sum())
    for k, row in enumerate(found.rows):
        slopes, places = [], []
        for which in (k, k + 1):
            net = copy.deepcopy(model)
            own = {
                n: v if n in excluded or "running" in n else points[which][n]
                for n, v in model.state_dict().items()
            }
            net.load_state_dict(own)
            slopes.append(gradient_by_hand(net, x, y)[moved])
            places.append(vector(net)[moved])
        assert row.difference == pytest.approx(float((slopes[1] - slopes[0]).norm()), rel=1e-9)
        assert row.step == pytest.approx(float((places[1] - places[0]).norm()), rel=1e-9)


def test_equal_points_have_no_ratio() -> None:
    model, x, y = network()
    found = trajectory_smoothness(Loss(model, x, y), [vector(model)] * 2, {"clean": None})
    assert found.rows[0].difference == 0
    assert math.isnan(found.rows[0].ratio)
    assert found.as_dict()["rows"][0]["ratio"] is None


def test_an_attack_runs_once_a_point_where_statistics_are_shared() -> None:
    model, points, x, y = states()
    for point in points:
        for name in ("1.running_mean", "1.running_var"):
            point[name] = points[0][name]
        point["1.num_batches_tracked"] = torch.tensor(len(point))
    calls = [0]

    def count(net: object, images: Tensor, labels: Tensor) -> Tensor:
        calls[0] += 1
        return images

    trajectory_smoothness(Loss(model, x, y), points, {"a": count})
    assert calls[0] == 3 + 2  # one a point, two for the noise


# ---- matched strength ----


def test_corners() -> None:
    matched = match_radii(Loss(nn.Identity(), torch.rand(2, 3, 4, 4), torch.tensor([0, 1])), 0.1)
    assert matched.l2 == pytest.approx(0.1 * 48**0.5)
    assert matched.threat_models == {"linf": ThreatModel("linf", 0.1), "l2": ThreatModel("l2", matched.l2)}
    assert list(matched.attacks()) == ["clean", "linf", "l2"]


def test_equal_loss_on_a_linear_model_is_the_ratio_of_dual_norms() -> None:
    """L∞ takes ε‖w‖₁ off the margin, L2 takes ε₂‖w‖₂: equal where ε₂ = ε‖w‖₁/‖w‖₂, the same for
    every input off the walls.
    """
    w = torch.tensor([1.0, -2.0, 0.5, 0.1]).double()
    model = nn.Sequential(nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([w, -w]))  # type: ignore[operator]
    x = 0.5 + 0.1 * (torch.rand(20, 4, generator=torch.Generator().manual_seed(0)).double() - 0.5)
    matched = match_radii(
        Loss(model, x, torch.arange(20) % 2), 0.05, rule="loss", attack=PGD(40, step=2.5 / 40), bisections=20
    )
    # PGD with steps of 2.5ε/40 ends in the corner for L∞, but for L2 shrinks the angle of its
    # random start only to e^{−2.4}:
    # some 5 degrees, 1 % of the strength, so that ε₂ comes out that much too high.
    assert 1 <= matched.l2 / (0.05 * float(w.abs().sum() / w.norm())) < 1.03
    assert matched.reached == pytest.approx(matched.target, rel=1e-3)
    accuracy = match_radii(Loss(model, x, torch.arange(20) % 2), 0.05, rule="accuracy", attack=PGD(10))
    assert abs(accuracy.reached - accuracy.target) <= 0.1
    assert 0.05 <= accuracy.l2 <= 0.1


def test_matching_leaves_the_model_alone() -> None:
    model, x, y = network()
    disturbed(model)
    before = copy.deepcopy(model.state_dict())
    match_radii(Loss(model, x, y), 0.03, rule="loss", attack=PGD(2), bisections=2)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model[5].weight.requires_grad


# ---- bad input ----


def loss_of(changes: dict[str, Any]) -> Loss:
    """The loss of the small network, with some of its arguments changed: those are taken out of
    `changes`.
    """
    model, x, y = network()
    options = {name: changes.pop(name) for name in ("loss", "exclude") if name in changes}
    return Loss(changes.pop("model", model), changes.pop("x", x), y, **options)


def report(**changes: Any) -> object:
    loss = loss_of(changes)
    arguments = {"attacks": {"clean": None}, "norms": [0.1], "directions": 1, "flatness": False, **changes}
    return smoothness_report(loss, **arguments)


def trajectory(points: Any, **changes: Any) -> object:
    loss = loss_of(changes)
    return trajectory_smoothness(loss, points, **{"attacks": {"clean": None}, **changes})


def match(**changes: Any) -> object:
    loss = loss_of(changes)
    return match_radii(loss, 0.1, **{"rule": "loss", "attack": PGD(1), **changes})


def spoiled(name: str) -> nn.Module:
    model = network()[0]
    model.state_dict()[name].view(-1)[0] = math.nan
    return model


IMAGES = network()[1]
ATTACKS = {"linf": seeded(PGD(1), ThreatModel("linf", 0.1))}


def without(name: str) -> dict[str, Tensor]:
    return {k: v for k, v in network()[0].state_dict().items() if k != name}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: report(attacks={}), "no attacks in smoothness_report"),
        (lambda: report(norms=[]), r"norms=\[\]"),
        (lambda: report(norms=[0.1, -1]), "relative norm -1"),
        (lambda: report(norms=[math.inf]), "relative norm inf"),
        (lambda: report(norms=[0.1, 0.1]), "one of them twice"),
        (lambda: report(directions=0), "directions=0"),
        (lambda: report(exclude=lambda name: True), "no parameters to move"),
        (lambda: report(loss=lambda o, t: ce(o, t).mean()), r"the loss has shape \(\) for 6 examples"),
        (lambda: report(x=(255 * IMAGES).byte()), "inputs of torch.uint8 in smoothness_report"),
        (lambda: report(x=IMAGES * math.nan), "the inputs in smoothness_report hold NaN"),
        (
            lambda: report(x=IMAGES - 0.5, attacks=ATTACKS),
            r"images of .* lie in \[-.*attacks take inputs in \[0, 1\]",
        ),
        (
            lambda: report(x=2 * IMAGES, flatness=True, threat_models={"l2": ThreatModel("l2", 0.1)}),
            r"images of .* lie in",
        ),
        (lambda: report(model=spoiled("5.bias")), "'5.bias' of the model holds NaN in smoothness_report"),
        (lambda: report(model=spoiled("1.running_var")), "'1.running_var' of the model holds NaN"),
        (
            lambda: report(loss=lambda o, t: ce(o, t) / 0),
            "the loss under 'clean' is inf in smoothness_report: it must be finite",
        ),
        (
            lambda: report(attacks={"a": lambda net, images, labels: images[:2]}),
            r"shape \(2, 1, 4, 4\) for \(6, 1, 4, 4\)",
        ),
        (lambda: report(attacks={"a": lambda net, images, labels: None}), "returned a NoneType"),
        (lambda: trajectory([without("")] * 2, x=1 - 2 * IMAGES, attacks=ATTACKS), r"images of .* lie in"),
        (lambda: trajectory([without("")] * 2, model=spoiled("0.bias")), "'0.bias' of the model holds NaN"),
        (
            lambda: trajectory([without(""), spoiled("5.weight").state_dict()]),
            "'5.weight' of point 1 of the trajectory holds NaN",
        ),
        (
            lambda: trajectory(torch.full((2, 75), math.nan)),
            "'0.weight' of point 0 of the trajectory holds NaN",
        ),
        (lambda: trajectory(torch.zeros(1, 75)), "1 points in trajectory_smoothness: at least 2"),
        (lambda: trajectory(torch.zeros(75)), r"point 0 of the trajectory has shape \(\)"),
        (lambda: trajectory(without("")), "point 0 of the trajectory is a str: a state dict"),
        (
            lambda: trajectory([without("")] * 2, loss=lambda o, t: ce(o, t) / 0),
            "is inf in trajectory_smoothness, at point 0",
        ),
        (lambda: match(x=IMAGES + 1, rule="corners"), r"images of .* lie in"),
        (lambda: match(model=spoiled("0.weight")), "'0.weight' of the model holds NaN in match_radii"),
        (lambda: match(loss=lambda o, t: ce(o, t) / 0), "the loss rises by nan in match_radii"),
        (lambda: trajectory([vector(network()[0])]), "1 points in trajectory_smoothness: at least 2"),
        (lambda: trajectory(iter([])), "0 points"),
        (
            lambda: trajectory([torch.zeros(3)] * 2),
            r"point 0 of the trajectory has shape \(3,\): a vector of 75",
        ),
        (
            lambda: trajectory([without("5.bias")] * 2),
            "point 0 of the trajectory lacks the parameter '5.bias'",
        ),
        (
            lambda: trajectory([{**without(""), "5.bias": torch.zeros(4)}] * 2),
            r"'5.bias' of point 0 of the trajectory has shape \(4,\): the model has \(3,\)",
        ),
        (lambda: trajectory([without("")] * 2, positions=[1]), "1 positions for 2 points"),
        (lambda: trajectory([without("")] * 2, buffers="pairs"), "did you mean 'pair'"),
        (lambda: trajectory([without("")] * 2, attacks={}), "no attacks"),
        (lambda: match_radii(Loss(nn.Identity(), X, Y), 0.1, rule="corner"), "did you mean 'corners'"),  # type: ignore[arg-type]
        (lambda: match_radii(Loss(nn.Identity(), X, Y), 0.0), "epsilon=0.0"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_model_of_zeros_has_no_relative_step() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(CurvactError, match="all parameters are 0"):
        smoothness_report(
            Loss(model, torch.rand(2, 2), torch.tensor([0, 1])), {"clean": None}, flatness=False
        )
