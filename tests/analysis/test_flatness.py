"""Flatness against closed forms of quadratic and linear models, brute force on two weights, and
what must come back.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.analysis import Loss, average_flatness, worst_case_flatness
from curvact.analysis.weights import moving
from curvact.attacks import ThreatModel, fgsm, pgd
from curvact.errors import CurvactError
from curvact.models import build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Bowl(nn.Module):
    """The same number for every input: ½ Σ_t (w_t − m_t)ᵀ A_t (w_t − m_t)."""

    def __init__(self, weights: list[Tensor], centres: list[Tensor], matrices: list[Tensor]) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(w.double().clone()) for w in weights])
        self.centres = centres
        self.matrices = matrices

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for w, m, a in zip(self.w, self.centres, self.matrices, strict=True):
            total = total + (w - m) @ a.double() @ (w - m) / 2
        return total.expand(len(x))


def output(out: Tensor, _y: Tensor) -> Tensor:
    return out


X, Y = torch.rand(5, 2, generator=seeded()), torch.zeros(5, dtype=torch.int64)


def symmetric(n: int, seed: int) -> Tensor:
    a = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    return a @ a.T / n + torch.eye(n).double()


# ---- average case ----


def test_an_isotropic_bowl_rises_by_the_same_in_every_direction() -> None:
    w = torch.tensor([3.0, -4.0])
    result = average_flatness(Loss(Bowl([w], [w], [2 * torch.eye(2)]), X, Y, loss=output), None, radius=0.5)
    # ½·2·(0.5·5)² at every ν; ν is scaled in float64, so that only rounding is left.
    assert result.flatness == pytest.approx(6.25, rel=1e-12)
    assert result.standard_error < 1e-12
    assert result.losses == pytest.approx([6.25] * 10)
    assert (result.tensors, result.parameters, result.inputs, result.loss) == (1, 2, 5, 0.0)


@pytest.mark.parametrize("away", [0.0, 0.7])
def test_a_bowl_away_from_its_minimum_rises_by_the_traces(away: float) -> None:
    weights = [torch.randn(n, generator=seeded(n), dtype=torch.float64) for n in (3, 6)]
    matrices = [symmetric(3, 1), symmetric(6, 2)]
    model = Bowl(weights, [w - away for w in weights], matrices)
    result = average_flatness(Loss(model, X, Y, loss=output), None, radius=0.3, draws=600)
    # E ν = 0 and E ννᵀ = r²/n on a sphere, tensors independent: ½ Σ_t r_t² tr A_t / n_t.
    truth = sum(
        0.5 * (0.3 * w.norm()) ** 2 * a.trace() / len(w) for w, a in zip(weights, matrices, strict=True)
    ).item()
    assert (
        abs(result.flatness - truth) < 4 * result.standard_error
    )  # one in 16 000 by chance; the seed is fixed
    assert result.standard_error < 0.2 * truth
    assert result.standard_error == pytest.approx(np.std(result.losses, ddof=1) / math.sqrt(600))


def test_the_spheres_of_every_tensor_and_what_stays() -> None:
    model = build(
        "mini_resnet", activation="rctaf(curvature=4, learnable=True)", width=2, generator=seeded()
    ).double()
    model.register_parameter("unused", nn.Parameter(torch.zeros(3).double(), requires_grad=False))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = torch.rand(6, 3, 8, 8).double(), torch.arange(6)
    seen: list[dict[str, Tensor]] = []
    sizes: list[int] = []

    def attack(net: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
        assert not any(m.training for m in net.modules())
        seen.append({name: p.detach() - start[name] for name, p in net.named_parameters()})
        sizes.append(len(images))
        return images

    result = average_flatness(Loss(model.train(), x, y, batch_size=4), attack, draws=3, radius=0.25)
    assert sizes == [4, 2] * 4  # the model itself and three draws, attacked anew in each batch
    norms = {name for name in start if "bn" in name or "shortcut.1" in name}
    assert all(not moved.any() for offsets in seen[:2] for moved in offsets.values())
    for offsets in seen[2:]:
        for name, moved in offsets.items():
            wanted = 0.0 if name in norms else 0.25 * start[name].norm().item()
            assert moved.norm().item() == pytest.approx(wanted, rel=1e-9, abs=1e-15), name
    assert any("alpha" in name for name in start)
    assert "linear.bias" not in norms
    assert start["linear.bias"].norm() > 0
    assert all(
        torch.equal(seen[2][name], seen[3][name]) for name in start
    )  # one ν for all the batches of a draw
    assert not torch.equal(seen[2]["linear.weight"], seen[4]["linear.weight"])
    assert result.tensors == len(start) - len(norms)


def test_directions_are_uniform_on_the_sphere() -> None:
    model = nn.Linear(2, 1, bias=False)
    seen: list[np.ndarray] = []

    def attack(net: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        seen.append((net.weight.detach() - start).flatten().numpy())
        return x

    start = model.weight.detach().clone()
    average_flatness(Loss(model, X, Y, loss=lambda out, y: out[:, 0]), attack, draws=2000)
    angles = np.sort(np.arctan2(*np.array(seen[1:]).T) / (2 * np.pi) + 0.5)
    gap = np.abs(angles - (np.arange(2000) + 0.5) / 2000).max()
    assert gap < 1.95 / math.sqrt(2000)  # Kolmogorov and Smirnov at one in a thousand


def test_the_attack_runs_at_the_moved_weights() -> None:
    # For a linear model FGSM is exact: L_adv(w) = mean softplus(−y wᵀx + ε‖w‖₁) with two logits
    # ±wᵀx/2.
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.7, -1.3], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            z = x @ self.w / 2
            return torch.stack([-z, z], 1)

    model, threat = Linear(), ThreatModel("linf", 0.05)
    x = (0.1 + 0.8 * torch.rand(8, 2, generator=seeded(1))).double()
    y = torch.arange(8) % 2
    visited: list[np.ndarray] = []

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        visited.append(model.w.detach().numpy().copy())
        return fgsm(net, images, labels, threat)

    result = average_flatness(Loss(model, x, y), attack, draws=5)

    def adversarial(w: np.ndarray) -> float:
        margins = (2 * y.numpy() - 1) * (x.numpy() @ w) - 0.05 * np.abs(w).sum()
        return float(np.log1p(np.exp(-margins)).mean())

    truth = [adversarial(w) for w in visited]
    assert result.loss == pytest.approx(truth[0], rel=1e-12)
    assert result.losses == pytest.approx(truth[1:], rel=1e-12)
    assert result.flatness == pytest.approx(np.mean(truth[1:]) - truth[0], rel=1e-9)


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(0, 50))
def test_batches_change_nothing_and_the_seed_decides(batch: int, seed: int) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3)).double()
    x, y = torch.rand(9, 2, generator=seeded(seed)).double(), torch.arange(9) % 3

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return fgsm(net, images, labels, ThreatModel("l2", 0.1))

    whole = average_flatness(Loss(model, x, y), attack, draws=3, seed=seed)
    parts = average_flatness(Loss(model, x, y, batch_size=batch), attack, draws=3, seed=seed)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-12)
    assert average_flatness(Loss(model, x, y), attack, draws=3, seed=seed + 1).losses != whole.losses
    # A draw does not depend on how many there are.
    assert average_flatness(Loss(model, x, y), attack, draws=2, seed=seed).losses == whole.losses[:2]


# ---- worst case ----


def test_a_slope_rises_by_the_sum_of_the_tensors_norms() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
            self.b = nn.Parameter(torch.tensor([[1.0], [2.0], [2.0]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a * torch.tensor([0.6, 0.0]) + self.a * torch.tensor([0.0, 0.8])).sum() + (
                2 * self.b
            ).sum() * torch.ones(len(x)).double()

    result = worst_case_flatness(Loss(Slope(), X, Y, loss=output), None, radius=0.1, steps=20, restarts=2)
    # Σ_t ξ‖w_t‖‖g_t‖ = 0.1·5·1 + 0.1·3·2√3
    assert result.flatness == pytest.approx(0.5 + 0.6 * math.sqrt(3), rel=1e-7)
    # From a random start a step of an eighth of the radius turns the last bit of the way slowly.
    assert result.losses == pytest.approx([result.loss + result.flatness] * 2, rel=1e-4)


def test_a_bowl_rises_along_its_top_eigenvector() -> None:
    matrix = symmetric(5, 3)
    w = torch.randn(5, generator=seeded(4), dtype=torch.float64)
    model = Bowl([w], [w], [matrix])
    result = worst_case_flatness(
        Loss(model, X, Y, loss=output), None, radius=0.2, steps=60, weight_step=0.5, restarts=4
    )
    top = torch.linalg.eigvalsh(matrix)[-1]
    truth = (0.5 * top * (0.2 * w.norm()) ** 2).item()
    # At the minimum ascent from ν = 0 sees no slope: the random restarts find it.
    assert result.losses[0] == 0.0
    assert truth * 0.999 < result.flatness <= truth * (1 + 1e-9)


def test_two_weights_and_the_inputs_jointly_against_a_fine_grid() -> None:
    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.9, -0.5], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(x @ self.w) + 0.5 * (x @ self.w) ** 2
            return torch.stack([-z, z], 1)

    model, radius, epsilon = Curved(), 0.4, 0.1
    x = (0.15 + 0.7 * torch.rand(3, 2, generator=seeded(8))).double()
    y = torch.tensor([0, 1, 0])
    result = worst_case_flatness(
        Loss(model, x, y), ThreatModel("linf", epsilon), radius=radius, steps=40, restarts=6, seed=3
    )

    angles, lengths = np.linspace(0, 2 * np.pi, 121), np.linspace(0, 1, 21)
    limit = radius * np.linalg.norm([0.9, -0.5])
    nu = np.array([[r * limit * np.cos(t), r * limit * np.sin(t)] for r in lengths for t in angles])
    weights = np.array([0.9, -0.5]) + np.concatenate([np.zeros((1, 2)), nu])
    shifts = np.array([[a, b] for a in np.linspace(-1, 1, 21) for b in np.linspace(-1, 1, 21)]) * epsilon
    points = x.numpy()[:, None] + shifts  # 3×441×2
    h = np.einsum("nsd,wd->wns", points, weights)
    z = (np.tanh(h) + 0.5 * h**2) * (1 - 2 * y.numpy())[None, :, None]
    worst = np.log1p(np.exp(2 * z)).max(2).mean(1)
    truth = worst.max() - worst[0]
    # A turn of 1.5° costs the grid at most 4e-4 of the rise; the ascent may stop short by its last
    # steps.
    assert result.flatness == pytest.approx(truth, rel=2e-3)
    assert result.loss == pytest.approx(worst[0], rel=1e-3)


def test_a_longer_attack_is_not_taken_for_sharpness() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    with torch.no_grad():
        model[0].weight.mul_(8)
    x, y = torch.rand(20, 6, generator=seeded(2)).double(), torch.arange(20) % 2
    threat = ThreatModel("linf", 0.2)

    def weak(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return pgd(net, images, labels, threat, steps=1, step=0.1, start="none")

    tiny = worst_case_flatness(Loss(model, x, y), threat, attack=weak, radius=1e-9, restarts=1)
    with torch.no_grad():
        weak_loss = nn.functional.cross_entropy(model(weak(model, x, y)), y).item()
    assert tiny.loss > weak_loss + 0.1
    assert 0 <= tiny.flatness < 1e-6


def test_the_ball_holds_and_batches_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3)).double()
    start = [p.detach().clone() for p in model.parameters()]
    x, y = torch.rand(9, 2, generator=seeded(1)).double(), torch.arange(9) % 3
    largest = [0.0] * 4

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        for i, (p, s) in enumerate(zip(net.parameters(), start, strict=True)):
            largest[i] = max(largest[i], ((p - s).norm() / s.norm()).item())
        return fgsm(net, images, labels, ThreatModel("l2", 0.1))

    options = {"attack": attack, "radius": 0.05, "steps": 6, "restarts": 1}
    whole = worst_case_flatness(Loss(model, x, y), ThreatModel("l2", 0.1), **options)  # type: ignore[arg-type]
    assert largest == pytest.approx(
        [0.05] * 4, rel=1e-6
    )  # the best points lie on the boundary of every tensor's ball
    parts = worst_case_flatness(Loss(model, x, y, batch_size=4), ThreatModel("l2", 0.1), **options)  # type: ignore[arg-type]
    assert parts.flatness == pytest.approx(whole.flatness, rel=1e-9)


def test_more_radius_is_never_flatter_and_threats_without_reach_are_none() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3)).double()
    x, y = torch.rand(9, 2, generator=seeded(1)).double(), torch.arange(9) % 3
    rises = [
        worst_case_flatness(Loss(model, x, y), None, radius=r, restarts=2).flatness for r in (0.01, 0.03, 0.1)
    ]
    assert 0 < rises[0] < rises[1] < rises[2]
    still = worst_case_flatness(Loss(model, x, y), ThreatModel("linf", 0.0), radius=0.03, restarts=2)
    assert still.flatness == pytest.approx(rises[1], rel=1e-9)


# ---- what comes back ----


@pytest.mark.parametrize("fail_at", [None, 2])
@pytest.mark.parametrize("worst", [False, True])
def test_parameters_modes_and_flags_come_back_bit_for_bit_also_from_an_error(
    worst: bool, fail_at: int | None
) -> None:
    model = build("mini_resnet", activation="silu", channels=1, width=2, generator=seeded()).train()
    model.linear.weight.requires_grad_(False)
    model.stages[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    x, y = torch.full((6, 1, 8, 8), 0.4), torch.arange(6)
    calls = 0

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise RuntimeError("the attack failed")
        return fgsm(net, images, labels, ThreatModel("linf", 0.1))

    def run() -> None:
        if worst:
            worst_case_flatness(
                Loss(model, x, y), ThreatModel("linf", 0.1), attack=attack, steps=2, restarts=2
            )
        else:
            average_flatness(Loss(model, x, y), attack, draws=2)

    if fail_at is None:
        run()
    else:
        with pytest.raises(RuntimeError, match="the attack failed"):
            run()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["linear.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_tied_and_excluded_parameters() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.GroupNorm(1, 2),
        nn.Linear(2, 2),
        nn.LayerNorm(2),
        nn.InstanceNorm1d(2, affine=True),
    )
    model[2].weight = model[0].weight
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])

    def names(normalization: bool, exclude: Any = ()) -> tuple[str, ...]:
        with moving(Loss(model, x, y, exclude=exclude), "test", normalization=normalization) as weights:
            return weights.names

    assert names(False) == ("0.weight", "0.bias", "2.bias")
    assert names(False, ["2.weight"]) == ("0.bias", "2.bias")  # another name of a tied one
    assert names(False, lambda name: name.endswith("bias")) == ("0.weight",)
    assert names(True)[2:4] == ("1.weight", "1.bias")


def test_errors_and_json() -> None:
    model = nn.Linear(2, 2)
    loss = Loss(model, X, Y)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("draws=1", lambda: average_flatness(loss, None, draws=1)),
        ("radius=0", lambda: average_flatness(loss, None, radius=0)),
        ("radius=nan", lambda: worst_case_flatness(loss, None, radius=math.nan)),
        ("no parameters to move", lambda: average_flatness(loss.excluding(["weight", "bias"]), None)),
        (
            "one number for each example",
            lambda: average_flatness(Loss(model, X, Y, loss=lambda out, y: out.mean()), None),
        ),
        ("steps=0", lambda: worst_case_flatness(loss, None, steps=0)),
        ("restarts=0", lambda: worst_case_flatness(loss, None, restarts=0)),
        ("weight_step=-1", lambda: worst_case_flatness(loss, None, weight_step=-1)),
    ]
    for text, call in cases:
        with pytest.raises(CurvactError, match=text):
            call()
    broken = average_flatness(Loss(model, X, Y, loss=lambda out, y: out[:, 0] * math.nan), None, draws=2)
    record = json.loads(json.dumps(broken.as_dict(), allow_nan=False))
    assert record["kind"] == "average"
    assert record["flatness"] is None
    assert record["losses"] == [None, None]
    seen: list[tuple[int, int | None]] = []
    found = worst_case_flatness(
        Loss(model, X, Y), None, steps=1, restarts=3, on_progress=lambda *p: seen.append(p)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["kind"] == "worst"


def test_the_ascent_works_where_gradients_are_off() -> None:
    model = nn.Linear(2, 2)
    threat = ThreatModel("linf", 0.1)
    wanted = worst_case_flatness(Loss(model, X, Y), threat, steps=2, restarts=2, radius=0.1)
    with torch.no_grad():
        assert worst_case_flatness(Loss(model, X, Y), threat, steps=2, restarts=2, radius=0.1) == wanted
