"""What a CPU and a CUDA device compute, side by side. Skipped where torch sees no CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import activation, activation_names
from curvact.analysis import Loss, diagonal_norms
from curvact.attacks import ThreatModel, ensemble, pgd
from curvact.attacks.autoattack.ensemble import Mode
from curvact.attacks.threat import Norm
from curvact.data import load
from curvact.devices import deterministic
from curvact.models import MiniResNet
from curvact.random import generator
from curvact.training import Recipe, fit

pytestmark = pytest.mark.gpu

GPU = "cuda"


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    """cuDNN's convolutions use TF32 by default, with three decimal digits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _network(name: str = "rctaf(curvature=6)") -> nn.Module:
    return MiniResNet(name, channels=1, width=4, blocks=1, generator=generator(0, "initialization")).eval()


def _images(count: int) -> tuple[Tensor, Tensor]:
    test = load("digits").test.first(count)
    return test.inputs(), test.labels


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack(norm: Norm) -> None:
    """In float64, in which no sign of a gradient is decided by rounding."""
    (x, y), model = _images(32), _network().double()
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm])
    here = pgd(model, x.double(), y, threat, steps=5, start="none")
    there = pgd(model.to(GPU), x.double().to(GPU), y.to(GPU), threat, steps=5, start="none")
    assert there.device.type == GPU
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "recipe", [{}, {"perturbation": "awp"}, {"optimizer": "adamw", "averaging": "ema"}], ids=str
)
def test_two_steps_of_training(recipe: dict[str, str]) -> None:
    data = load("digits").first(train=40, validation=20)
    settings = Recipe(
        epochs=1, batch_size=20, attack="pgd(steps=2, start=none)", crop=1, learning_rate=0.01, **recipe
    )  # type: ignore[arg-type]
    here, there = _network("silu"), _network("silu").to(GPU)
    for model in (here, there):
        fit(model, data, settings, ThreatModel("l2", 0.5))
    assert next(there.parameters()).device.type == GPU
    for (name, ours), theirs in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4, msg=name)


def test_a_training_repeats_where_it_is_deterministic() -> None:
    data, recipe = (
        load("digits").first(train=60, validation=20),
        Recipe(epochs=1, batch_size=20, attack="pgd-2"),
    )
    models = [_network("silu").to(GPU) for _ in range(2)]
    with deterministic():
        for model in models:
            fit(model, data, recipe, ThreatModel("linf", 0.1))
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_shard_of_autoattack(mode: Mode, norm: Norm) -> None:
    """A point on the border may fall on one device and stand on the other."""
    (x, y), model, threat = _images(32), _network(), ThreatModel(norm, 0.1)
    attacks = ["apgd-ce", "fab-t", "square"]
    here, there = (
        ensemble(
            copy.deepcopy(model).to(device), x.to(device), y.to(device), threat, attacks=attacks, steps=10,
            queries=50, mode=mode,
        )
        for device in ("cpu", GPU)
    )  # fmt: skip
    differ = sum((a is None) != (b is None) for a, b in zip(here.broken_by, there.broken_by, strict=True))
    assert differ <= 2
    assert here.clean_accuracy == there.clean_accuracy
    broken = torch.tensor([name is not None for name in there.broken_by])
    with torch.no_grad():
        wrong = model(there.x_adv.cpu()).argmax(1) != y
    assert (wrong == broken).float().mean() > 0.9


def test_norms_of_the_diagonal() -> None:
    (x, y), model = (
        _images(16),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softplus(), nn.Linear(4, 10)).double(),
    )
    here = diagonal_norms(Loss(model, x.double(), y), exact=True)
    on_gpu = Loss(copy.deepcopy(model).to(GPU), x.double().to(GPU), y.to(GPU))
    there = diagonal_norms(on_gpu, exact=True)
    drawn = diagonal_norms(on_gpu, probes=16, generator=torch.Generator().manual_seed(0))
    assert there.rms.value == pytest.approx(here.rms.value, rel=1e-9)
    assert abs(drawn.rms.value - here.rms.value) < 5 * drawn.rms.standard_error


@pytest.mark.parametrize("name", activation_names())
def test_an_activation_and_its_derivatives(name: str) -> None:
    """The one compiled kernel of CUDA against the native kernels of the CPU."""
    module = activation("sparta(channels=4)" if name == "sparta" else name)
    x = torch.linspace(-4, 4, 2 * 4 * 9 * 9).view(2, 4, 9, 9)

    def derivatives(module: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        out = module(x)
        (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        if not first.requires_grad:
            return [out, first]
        return [out, first, *torch.autograd.grad(first.sum(), x, allow_unused=True, materialize_grads=True)]

    here, there = derivatives(module, x), derivatives(copy.deepcopy(module).to(GPU), x.to(GPU))
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-4)
