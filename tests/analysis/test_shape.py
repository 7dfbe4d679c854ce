"""Shapes of activations against closed forms, the Lipschitz constant against brute force, the table
of several models.
"""

from __future__ import annotations

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations import PSSiLU, activation_names
from curvact.analysis import ShapeSettings, activation_shape, empirical_lipschitz, shape_table
from curvact.attacks import PGD, ThreatModel, ensemble
from curvact.errors import CurvactError
from curvact.models import build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- activations ----


@settings(max_examples=10)
@given(st.floats(0.2, 60))
def test_rcraf_in_closed_form(alpha: float) -> None:
    shape = activation_shape(f"rcraf(alpha={alpha})")
    sigmoid = 1 / (1 + math.exp(-alpha / 2))
    assert shape.max_curvature == shape.curvature_at_zero == pytest.approx(alpha / 4)
    assert shape.curvature_near_zero == pytest.approx(2 * sigmoid - 1, rel=1e-9)  # the slope rises all along
    assert shape.at_zero == pytest.approx(math.log(2) / alpha)
    assert shape.slope_at_zero == 0.5
    assert shape.positive_on_negative
    assert shape.highest_on_negative == pytest.approx(math.log(2) / alpha)  # the limit at 0
    assert (shape.slope_low, shape.slope_high) == pytest.approx((0, 1))


@pytest.mark.parametrize(
    ("activation", "near_zero", "low", "positive"),
    [
        ("relu", 1.0, 0.0, False),
        (nn.LeakyReLU(0.2), 0.8, 0.2, False),
        (nn.PReLU(init=-0.5), 1.5, -0.5, True),
        (F.relu6, 1.0, 0.0, False),
        (nn.Identity(), 0.0, 1.0, False),
    ],
)
def test_kinks_count_as_their_change_of_slope(
    activation: object, near_zero: float, low: float, positive: bool
) -> None:
    shape = activation_shape(activation)  # type: ignore[arg-type]
    assert shape.curvature_near_zero == pytest.approx(
        near_zero, abs=1e-7
    )  # 0.2 and 0.5 are floats of 32 bits
    assert shape.slope_low == pytest.approx(low, abs=1e-7)
    assert shape.positive_on_negative is positive
    assert shape.curvature_at_zero == 0


def test_tail_of_pssilu() -> None:
    shape = activation_shape(PSSiLU(alpha=2.0, beta=0.2))
    assert shape.slope_low == pytest.approx(-0.25)  # −β/(1−β)
    assert shape.slope_high == pytest.approx(1)
    assert shape.positive_on_negative
    five = -5 * (1 / (1 + math.exp(10)) - 0.2) / 0.8
    assert shape.highest_on_negative == pytest.approx(five)


def test_curvature_near_zero_of_any_name_is_the_mean_of_its_second_derivative() -> None:
    x = torch.linspace(-0.5, 0.5, 4001, dtype=torch.float64)
    for name in set(activation_names()) & {
        "gelu",
        "mish",
        "swish",
        "squareplus",
        "softplus",
        "powergate",
        "rctaf",
    }:
        from curvact.activations import activation

        act = activation(name).double()
        bends = act.curvature(x).abs().numpy()
        truth = ((bends[1:] + bends[:-1]) / 2).mean()
        shape = activation_shape(name)
        assert shape.curvature_near_zero == pytest.approx(truth, rel=1e-4), name
        json.dumps(shape.as_dict(), allow_nan=False)
    assert activation_shape("relu").as_dict()["max_curvature"] is None


# ---- Lipschitz constant ----


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_lipschitz_of_a_linear_map_is_found_and_never_passed(seed: int) -> None:
    weight = torch.randn(3, 5, generator=seeded(seed), dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(20, 5, generator=seeded(seed + 1), dtype=torch.float64)
    truth = max(
        np.abs(weight.numpy() @ np.array(signs)).sum() for signs in itertools.product((-1, 1), repeat=5)
    )
    found = empirical_lipschitz(lambda x: x @ weight.T, x, radius=0.1, steps=10, seed=seed)
    assert found.shape == (20,)
    assert (found <= truth * (1 + 1e-9)).all()
    # Sign ascent of a convex function may stop at a corner that is only locally best: not from all
    # of 20 starts.
    assert found.max().item() == pytest.approx(truth, rel=1e-9)


def test_lipschitz_sees_a_steep_place_within_reach_only() -> None:
    def model(x: Tensor) -> Tensor:
        z = 10 * F.relu(x.sum(1) - 0.75)
        return torch.stack([z, -z], 1)

    flat, steep = torch.full((20, 1), 0.5), torch.full((20, 1), 0.72)
    assert not empirical_lipschitz(model, flat, radius=0.1).any()
    # At 0.82 the numerator is 2·10·0.07; starts below 0.75 see no slope.
    assert empirical_lipschitz(model, steep, radius=0.1).max().item() == pytest.approx(
        20 * 0.07 / 0.1, rel=1e-4
    )
    # With more reach 1.0 comes near: 2·10·0.25 over 0.28.
    assert empirical_lipschitz(model, steep, radius=0.4).max().item() == pytest.approx(5 / 0.28, rel=1e-4)


def test_lipschitz_batches_and_errors() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(5, 1, 2, 2, generator=seeded())
    assert empirical_lipschitz(model, x, radius=0.1, batch_size=2).shape == (5,)
    assert empirical_lipschitz(model, x[:0], radius=0.1).shape == (0,)
    for options in ({"radius": 0.0}, {"radius": math.inf}, {"radius": 0.1, "steps": 0}):
        with pytest.raises(CurvactError, match="of empirical_lipschitz"):
            empirical_lipschitz(model, x, **options)  # type: ignore[arg-type]


# ---- the table ----


class Linear(nn.Module):
    """Two classes by the sign of w·x − b, through an activation that does nothing to positive
    inputs.
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, -1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x.flatten(1) + 100) @ self.w - 250.5 - 0.6
        return torch.stack([-z, z], 1)


def test_a_table_where_all_is_known() -> None:
    x = 0.25 + 0.5 * torch.rand(40, 1, 2, 2, generator=seeded(1))
    model = Linear(nn.ReLU())
    margin = (x.flatten(1) @ model.w.detach() - 1.1).numpy()
    y = torch.from_numpy((margin > 0).astype(np.int64))
    y[:4] = 1 - y[:4]
    threat = ThreatModel("linf", 0.05)
    progress: list[tuple[int, int | None]] = []
    table = shape_table(
        {"net": model},
        x,
        y,
        threat,
        ShapeSettings(largest_radius=0.08, square_queries=30),
        on_progress=lambda *p: progress.append(p),
    )
    row = table.rows[0]
    radii = np.abs(margin) / 4.5  # ‖w‖₁
    radii[:4] = 0
    assert row.clean_accuracy == 0.9
    assert row.robust_accuracy == pytest.approx((radii > 0.05).mean())
    unbroken = radii > 0.08
    assert row.radius_unbroken == pytest.approx(unbroken.mean())
    assert 0.1 < row.radius_unbroken < 0.9
    # The search halves 0.08 eight times; float32 at pre-activations near 100 resolves margins to
    # 1e-4.
    assert row.radius == pytest.approx(np.where(unbroken, 0.08, radii).mean(), abs=1e-3)
    # Differences of the logits are twice 4.5 at a corner; float32 near 250 resolves a margin of 0.2
    # to 1e-4.
    assert row.lipschitz == pytest.approx(9.0, rel=2e-3)
    broken_by = ensemble(model.eval(), x, y, threat, attacks=["square"], queries=30).broken_by
    model.train()
    assert row.square_success == pytest.approx(broken_by.count("square") / 36)
    assert 0 < row.square_success <= ((radii > 0) & (radii <= 0.05)).sum() / 36 + 1e-9
    assert progress == [(i, 4) for i in range(1, 5)]
    record = json.loads(json.dumps(table.as_dict(), allow_nan=False))
    flat = record["rows"][0]
    assert flat["model"] == "net"
    assert flat["activation"] == "ReLU()"
    assert (flat["kink"], flat["max_curvature"], flat["slope_low"]) == (True, None, 0.0)
    assert record["settings"]["largest_radius"] == 0.08
    assert all(not isinstance(value, (dict, list)) for value in flat.values())


def test_several_models_are_measured_alike_and_left_alone() -> None:
    models = {
        act: build("mini_resnet", activation=act, channels=1, classes=3, width=2, generator=seeded())
        for act in ("silu", "relu", "rctaf(curvature=6)")
    }
    models["mixed"] = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.SiLU(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)
    )
    models["none"] = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    models["channels"] = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.PReLU(8), nn.Linear(8, 3))
    models["silu again"] = models["silu"]
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    x, y = torch.rand(12, 1, 8, 8, generator=seeded(2)), torch.arange(12) % 3
    random = torch.get_rng_state()
    settings = ShapeSettings(PGD(3), halvings=2, lipschitz_steps=3)
    table = shape_table(models, x, y, ThreatModel("l2", 0.5), settings)
    rows = {row.model: row for row in table.rows}
    assert list(rows) == list(models)
    assert rows["rctaf(curvature=6)"].shape is not None
    assert rows["rctaf(curvature=6)"].shape.max_curvature == 6
    assert rows["mixed"].activations == ("SiLU()", "Softplus(beta=1.0, threshold=20.0)")
    mixed = rows["mixed"].shape
    assert mixed is not None
    assert mixed.max_curvature == pytest.approx((0.5 + 0.25) / 2, rel=1e-6)
    assert rows["none"].shape is rows["channels"].shape is None
    assert rows["none"].as_dict()["max_curvature"] is None
    again = {**rows["silu again"].as_dict(), "model": "silu"}
    assert again == rows["silu"].as_dict()
    assert table.settings["lipschitz_radius"] == 8 / 255
    assert all(row.square_success is None for row in table.rows)
    for name, model in models.items():
        assert all(torch.equal(v, before[name][k]) for k, v in model.state_dict().items())
        assert model.training
    assert torch.equal(random, torch.get_rng_state())


def test_another_attack_and_errors() -> None:
    model = Linear(nn.SiLU())
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    threat = ThreatModel("linf", 0.1)
    table = shape_table({"a": model}, x, y, threat, ShapeSettings(PGD(1, step=0.5)), batch_size=2)
    assert table.settings["attack"] == "pgd(steps=1, step=0.5)"
    for text, arguments in {
        "0 models": ({}, x, y, threat),
        "0 images": ({"a": model}, x[:0], y[:0], threat),
        "3 images, 2 labels": ({"a": model}, x, y[:2], threat),
        "epsilon=0": ({"a": model}, x, y, ThreatModel("linf", 0)),
        r"\[0, 1\]": ({"a": model}, x + 9, y, threat),
        r"attack=pgd-0, batch_size=512 in shape_table": ({"a": model}, x, y, threat, ShapeSettings(PGD(0))),
    }.items():
        with pytest.raises(CurvactError, match=text):
            shape_table(*arguments)
    with pytest.raises(CurvactError, match="batch_size=0 in shape_table: at least 1"):
        shape_table({"a": model}, x, y, threat, batch_size=0)
    with pytest.raises(CurvactError, match="batch_size=0 of empirical_lipschitz"):
        empirical_lipschitz(model, x, radius=0.1, batch_size=0)
