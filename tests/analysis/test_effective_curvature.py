"""Effective curvature against numpy in float64 and closed forms, and the reparametrisation that
must not move it.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations import RCTAF, Activation, PowerGate, PSSiLU, ScaledActivation, Swish
from curvact.analysis import (
    Loss,
    average_flatness,
    call_sites,
    effective_curvature,
    effective_curvature_change,
    exact_diagonal,
    loss_landscape,
    worst_case_flatness,
)
from curvact.attacks import ThreatModel, fgsm
from curvact.errors import CurvactError
from curvact.models import build


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def spread(a: np.ndarray, channel: int = 1) -> float:
    rows = np.moveaxis(a, channel, 0).reshape(a.shape[channel], -1)
    return math.sqrt(np.mean([np.mean((row - row.mean()) ** 2) for row in rows]))


# ---- the statistics ----


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(0, 99), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_any_split_into_batches_gives_numpys_spread_also_far_from_zero(
    batch: int, seed: int, centre: float, scale: float
) -> None:
    x = (centre + scale * randn(60, 3, 4, 2, seed=seed)).clone()
    result = effective_curvature(nn.Sequential(nn.SiLU()), x, batch_size=batch)
    # A mean of 1e6 over a spread of 1e-3 leaves 7 of the 16 digits of the inputs themselves.
    tolerance = 1e-12 + 1e-15 * (abs(centre) / scale) * 10
    assert result.sites[0].spread == pytest.approx(spread(x.numpy()), rel=tolerance)
    assert result.sites[0].effective == pytest.approx(0.5 * result.sites[0].spread, rel=1e-9)
    assert (result.sites[0].channels, result.sites[0].values, result.inputs) == (3, 60 * 24, 60)


def test_batches_from_an_iterator_with_labels_and_of_unequal_images() -> None:
    x = randn(10, 2, 6)[:, :, :, None]
    parts = [(x[:3], torch.zeros(3)), (x[3:], torch.ones(7))]
    whole = effective_curvature(nn.Sequential(nn.Tanh()), x)
    assert effective_curvature(nn.Sequential(nn.Tanh()), iter(parts)).sites[0].spread == pytest.approx(
        whole.sites[0].spread, rel=1e-13
    )
    uneven = [torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 4)]
    values = np.array([0.0] * 4 + [1.0] * 8)
    assert effective_curvature(nn.Sequential(nn.Tanh()), uneven).sites[0].spread == pytest.approx(
        values.std()
    )


@pytest.mark.parametrize(
    ("shape", "channel", "axis"), [((9, 5), None, 1), ((9, 5, 4), None, 2), ((9, 5, 4), 1, 1)]
)
def test_where_the_channels_are(shape: tuple[int, ...], channel: int | None, axis: int) -> None:
    x = randn(*shape)
    found = effective_curvature(nn.Sequential(nn.SiLU()), x, channel=channel).sites[0]
    assert found.spread == pytest.approx(spread(x.numpy(), axis), rel=1e-12)


def test_share_of_curved_units_where_it_is_known() -> None:
    # RCR-AF bends by α·s(1−s): half of κ = α/4 or more where |αx| ≤ ln((1+√½)/(1−√½)), a tenth
    # where √0.9 stands for √½.
    x = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    site = effective_curvature(nn.Sequential(RCTAF(alpha=8.0, beta=0)), x, batch_size=3000).sites[0]
    for share, found in ((0.5, site.curved_half), (0.1, site.curved_tenth)):
        edge = math.log((1 + math.sqrt(1 - share)) / (1 - math.sqrt(1 - share))) / 8
        assert found == pytest.approx(edge, abs=2e-4)  # two steps of the grid
    assert site.max_curvature == 2.0
    assert site.effective == pytest.approx(2 * x.numpy().std(), rel=1e-12)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x), inplace=True)
        h = F.leaky_relu(negative_slope=0.25, input=h - 0.5) + torch.tanh(h)
        return (h.relu() - h) * self.gate(h) * torch.sigmoid(h)


def test_functional_calls_are_seen_with_their_arguments_and_gates_are_not() -> None:
    model = nn.Sequential(Functional(), nn.GELU(approximate="tanh"))
    x = randn(40, 3).float()
    result = effective_curvature(model, x, batch_size=7)
    assert [s.site for s in result.sites] == ["0:relu", "0:leaky_relu", "0:tanh", "0:relu#2", "1"]
    assert [s.max_curvature for s in result.sites][:2] == [math.inf, math.inf]
    assert result.sites[2].max_curvature == pytest.approx(4 / (3 * math.sqrt(3)))
    a = model[0].inner(x).detach()
    assert result.sites[0].spread == pytest.approx(spread(a.numpy()), rel=1e-5)
    assert result.sites[1].spread == pytest.approx(spread((a.relu() - 0.5).numpy()), rel=1e-5)
    leaky = call_sites(model, x)[1].function
    assert leaky(torch.tensor([-4.0])).item() == -1.0


def test_the_fused_transformer_layer_does_not_hide_its_activation() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).eval()
    x = randn(5, 3, 4).float()
    for model in (layer, nn.TransformerEncoder(layer, 1)):
        site = effective_curvature(model, x).sites[0]
        assert site.site.endswith("relu")
        inner = layer if model is layer else model.layers[0]
        with torch.no_grad():
            a = inner.linear1(inner.norm1(x + inner._sa_block(x, None, None)))
        assert site.spread == pytest.approx(spread(a.numpy(), 2), rel=1e-5)


def test_a_users_choice_of_modules() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(F.silu(x))

    model = nn.Sequential(nn.Linear(2, 2), Odd(), nn.ReLU())
    x = torch.rand(9, 2)
    assert [s.name for s in call_sites(model, x)] == ["1:silu", "2"]
    chosen = effective_curvature(model, x, match=lambda m: isinstance(m, Odd)).sites
    assert [s.site for s in chosen] == ["1"]
    assert chosen[0].max_curvature > 0.9


def test_what_is_infinite_or_unknown_is_said_and_json_stays_clean() -> None:
    model = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.PReLU(3), nn.Linear(3, 3), nn.SiLU()
    )
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([0.0, 0.3, 1.0]))
    result = effective_curvature(model, torch.rand(20, 2))
    relu, per_channel, silu = result.sites
    assert relu.max_curvature == relu.effective == math.inf
    assert relu.curved_half is relu.curved_tenth is per_channel.curved_half is None
    assert math.isnan(per_channel.effective)
    assert silu.curved_half is not None
    assert result.mean is None
    record = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert record["kinks"] == 1
    assert [(s["kink"], s["effective"] is None) for s in record["sites"]] == [
        (True, True),
        (False, True),
        (False, False),
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = build("mini_resnet", activation="gelu", width=2).train()
    model.stages[0].eval()
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    x = torch.rand(5, 3, 8, 8)
    random = torch.get_rng_state()
    for batch_statistics in (False, True):
        effective_curvature(model, x, batch_size=2, batch_statistics=batch_statistics)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_batch_statistics_are_those_of_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, eps=1e-12), nn.SiLU())
    x = 7 + 5 * randn(64, 3).float()
    running, batch = (effective_curvature(model, x, batch_statistics=b).sites[0] for b in (False, True))
    assert running.spread == pytest.approx(
        spread(x.numpy()), rel=1e-4
    )  # mean 0 and variance 1 change nothing
    assert batch.spread == pytest.approx(1, rel=1e-5)
    effective_curvature(
        model, x[:9], batch_statistics=True, batch_size=4
    )  # 4 + 4 + 1 would leave a batch of one


class Growing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.silu(x)) if x.mean() > 0 else F.silu(x)


def test_errors_name_what_is_wrong() -> None:
    x = torch.ones(4, 2)
    cases = {
        "no activation was called": (nn.Linear(2, 2), x, {}),
        "no inputs": (nn.SiLU(), x[:0], {}),
        "batch_size=0": (nn.SiLU(), x, {"batch_size": 0}),
        "channel=5": (nn.SiLU(), x, {"channel": 5}),
        "not finite": (nn.SiLU(), x * math.nan, {}),
        "instead of 2": (Growing(), [x, -x], {}),
        "not the same in every batch": (Growing(), [-x, x], {}),
        "channels at": (nn.SiLU(), [x, torch.ones(4, 3)], {}),
    }
    for text, (model, inputs, options) in cases.items():
        with pytest.raises(CurvactError, match=text):
            effective_curvature(model, inputs, **options)
    with pytest.raises(CurvactError, match="differ at '2'"):
        effective_curvature_change(
            nn.Sequential(nn.Linear(2, 2), nn.SiLU()), nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.SiLU()), x
        )


def test_before_and_after_and_progress() -> None:
    before = nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 3), nn.ReLU())
    after = copy.deepcopy(before)
    with torch.no_grad():
        for p in after[0].parameters():
            p.mul_(4)
    seen: list[tuple[int, int | None]] = []
    change = effective_curvature_change(
        before, after, torch.rand(10, 2), batch_size=5, on_progress=lambda *p: seen.append(p)
    )
    record = json.loads(json.dumps(change.as_dict(), allow_nan=False))
    assert record["ratio"]["1"] == pytest.approx(4, rel=1e-6)
    assert record["ratio"]["3"] is None
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# ---- reparametrisation: α by c, folded into the neighbours ----


def faster(act: nn.Module, c: float) -> nn.Module:
    """The same shape with α·c: σ_{cα}(x) = σ_α(cx)/c."""
    if isinstance(act, Swish):
        return Swish(act.scale * c)
    new = copy.deepcopy(act)
    assert isinstance(new, ScaledActivation)
    assert not isinstance(new.alpha, Tensor)
    new.alpha = new.alpha * c
    return new


def swapped(model: nn.Module, c: float) -> None:
    new: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # named_children gives a module of two names once
            if isinstance(child, Activation):
                setattr(module, name, new.setdefault(id(child), faster(child, c)))


def reparametrised(model: nn.Module, c: float) -> tuple[nn.Module, dict[str, int]]:
    """The same function with κ·c, and the power of c by which each parameter's diagonal of the
    Hessian grows. [derived]

    All that passes between layers is divided by c: so layers before activations give 1/c of what
    they gave. Batch norm that gets 1/c of its inputs needs 1/c of the mean, 1/c² of variance and
    eps.
    """
    model = copy.deepcopy(model)
    swapped(model, c)
    powers: dict[str, int] = {}

    def scale(path: str, power: int) -> None:
        """Divide by c to the power: the diagonal grows by c to twice that."""
        model.get_parameter(path).data.mul_(c ** float(-power))
        powers[path] = 2 * power

    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    norms = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for index, (path, layer) in enumerate(layers):
        last = index == len(layers) - 1
        plain = not norms
        scale(f"{path}.weight", -1 if last else int(index == 0 and plain))
        if layer.bias is not None:
            scale(f"{path}.bias", 0 if last else 1)
    for index, (path, norm) in enumerate(norms):
        scale(f"{path}.weight", 1)
        scale(f"{path}.bias", 1)
        if index > 0:  # the first one sees the unscaled images
            norm.running_mean.div_(c)
            norm.running_var.div_(c * c)
            norm.eps /= c * c
    return model, powers


def filled(model: nn.Module) -> nn.Module:
    """Biases, affine parameters and running statistics away from 0 and 1, in float64."""
    model = model.double().eval()
    g = seeded(5)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=g, dtype=torch.float64)
        if "running_var" in name:
            tensor.data.copy_(0.5 + noise.abs())
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.data.copy_(
                0.3 * noise + (1.0 if name.split(".")[-2].startswith("bn") and "weight" in name else 0.0)
            )
    return model


def plain(act: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5), act, nn.Linear(5, 4), copy.deepcopy(act), nn.Linear(4, 3)
    )


NETWORKS = {
    "plain, rctaf": lambda: plain(RCTAF.from_curvature(3.0, beta=1)),
    "plain, powergate": lambda: plain(PowerGate.from_curvature(2.0)),
    "plain, swish": lambda: plain(Swish(1.5)),
    "small_cnn": lambda: build(
        "small_cnn",
        activation="rctaf(curvature=2)",
        channels=1,
        classes=2,
        size=4,
        width=1,
        hidden=3,
        generator=seeded(),
    ),
    "mini_resnet": lambda: build(
        "mini_resnet",
        activation="rctaf(curvature=4, beta=1)",
        **{"channels": 1, "classes": 2, "width": 1, "scope": "network", "generator": seeded()},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_effective_curvature_and_the_invariant_norm_do_not_move_and_the_plain_norm_does(name: str) -> None:
    c = 3.0
    model = filled(NETWORKS[name]())
    other, powers = reparametrised(model, c)
    x = torch.rand(12, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    y = torch.arange(12) % 2

    # The functions are equal; float64 leaves 16 digits, of which layers lose a few.
    torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-11)

    old, new = effective_curvature(model, x), effective_curvature(other, x)
    assert len(old.sites) == len(new.sites) >= 2
    for a, b in zip(old.sites, new.sites, strict=True):
        assert b.max_curvature == pytest.approx(c * a.max_curvature, rel=1e-12)
        assert b.spread == pytest.approx(a.spread / c, rel=1e-10)
        assert b.effective == pytest.approx(a.effective, rel=1e-10)
        # Rounding could move a unit across the edge; with so few units none sits there.
        assert (b.curved_half, b.curved_tenth) == (a.curved_half, a.curved_tenth)

    diagonals, thetas = [], []
    for network in (model, other):
        params = list(network.parameters())
        diagonals.append(exact_diagonal(Loss(network, x, y)))
        thetas.append(torch.cat([p.detach().reshape(-1) for p in params]))
    sizes = [p.numel() for p in model.parameters()]
    parts = [dict(zip(powers_of(model), d.split(sizes), strict=True)) for d in diagonals]
    assert set(powers) == set(parts[0])
    for path, power in powers.items():  # [derived]: docs/flatness.md
        torch.testing.assert_close(
            parts[1][path], parts[0][path] * c**power, rtol=1e-7, atol=1e-10 * c**power
        )
    if name == "mini_resnet":
        assert {power for path, power in powers.items() if "bn" in path} == {2}
        assert {power for path, power in powers.items() if "conv" in path and "weight" in path} == {0}
        assert (powers["linear.weight"], powers["linear.bias"]) == (-2, 0)
    elif name == "small_cnn":
        assert (
            powers["conv1.weight"],
            powers["conv1.bias"],
            powers["conv3.weight"],
            powers["conv3.bias"],
        ) == (2, 2, 0, 2)
    a, b = (d.norm() / math.sqrt(len(d)) for d in diagonals)
    assert abs(b / a - 1) > 0.05  # (a) moves
    invariant = [(t**2 * d).norm().item() for t, d in zip(thetas, diagonals, strict=True)]
    assert invariant[1] == pytest.approx(invariant[0], rel=1e-8)  # (c) does not


def powers_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("name", ["plain, rctaf", "mini_resnet"])
def test_flatness_and_landscapes_do_not_move_either(name: str) -> None:
    model = filled(NETWORKS[name]())
    other, _ = reparametrised(model, 3.0)
    x = torch.rand(12, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    y = torch.arange(12) % 2

    def attack(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return fgsm(net, images, labels, ThreatModel("linf", 0.05))

    both = [Loss(m, x, y) for m in (model, other)]
    flat = [average_flatness(loss, attack, draws=4) for loss in both]
    assert flat[1].losses == pytest.approx(flat[0].losses, rel=1e-9)
    assert flat[0].flatness != pytest.approx(0, abs=1e-3)
    worst = [worst_case_flatness(loss, None, radius=0.02, steps=5, restarts=2) for loss in both]
    assert worst[1].losses == pytest.approx(worst[0].losses, rel=1e-9)
    lands = [loss_landscape(loss, attack, points=3) for loss in both]
    np.testing.assert_allclose(lands[1].clean, lands[0].clean, rtol=1e-9)
    assert lands[0].adversarial is not None
    assert lands[1].adversarial is not None
    np.testing.assert_allclose(lands[1].adversarial, lands[0].adversarial, rtol=1e-9)


def test_folding_the_statistics_is_needed() -> None:
    model = filled(NETWORKS["mini_resnet"]())
    other, _ = reparametrised(model, 3.0)
    norms = [[m for m in n.modules() if isinstance(m, nn.BatchNorm2d)] for n in (model, other)]
    for old, new in zip(*norms, strict=True):
        new.running_mean.copy_(old.running_mean)
        new.running_var.copy_(old.running_var)
    x = torch.rand(12, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    assert (other(x) - model(x)).abs().max() > 1e-3


def test_pssilu_scales_too() -> None:
    act, other = PSSiLU(alpha=1.5), PSSiLU(alpha=6.0)
    x = randn(200, 1).float()
    a = effective_curvature(nn.Sequential(act), x).sites[0]
    b = effective_curvature(nn.Sequential(other), x / 4).sites[0]
    assert a.effective == pytest.approx(b.effective, rel=1e-5)


def test_one_value_a_channel_has_no_batch_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.SiLU())
    x = randn(4, 3).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = "a batch of 1 gives some batch norm only one value a channel: .*a larger batch_size"
    with pytest.raises(CurvactError, match=message):
        effective_curvature(model, x, batch_statistics=True, batch_size=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    effective_curvature(model, x, batch_size=1)


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            raise ValueError("one at a time")
        return F.silu(x)


def test_a_models_own_error_passes() -> None:
    with pytest.raises(ValueError, match=r"^one at a time$"):
        effective_curvature(Picky(), torch.ones(4, 2), batch_statistics=True)
