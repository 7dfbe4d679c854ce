"""Attacks of other libraries: with stand-ins that have their calling conventions, and, where they
are installed, themselves.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import (
    Adapted,
    ThreatModel,
    accuracy,
    from_adv_lib,
    from_torchattacks,
    named_attack,
)
from curvact.data import load
from curvact.errors import CurvactError

BALL = ThreatModel("l2", 0.25)


class _Halves(nn.Module):
    """Class 1 where the mean of four pixels is above ½. The true radius in l2 is 2·|mean − ½|."""

    def forward(self, x: Tensor) -> Tensor:
        z = 40 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


class _DeepFool:
    """As torchattacks calls them: a class of (model, settings), then images and labels."""

    def __init__(self, model: nn.Module, steps: int = 50, overshoot: float = 0.02) -> None:
        assert isinstance(model, nn.Module)
        assert not model.training
        self.overshoot = overshoot

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        away = 0.5 - x.flatten(1).mean(1)
        return x + (1 + self.overshoot) * away.view(-1, 1, 1, 1)


class _PGDL2:
    def __init__(self, model: nn.Module, eps: float = 1.0, alpha: float = 0.2) -> None:
        self.eps = eps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return x + (1 - 2 * y.view(-1, 1, 1, 1)) * self.eps / 2


def _fmn(model: nn.Module, inputs: Tensor, labels: Tensor, norm: float, targeted: bool = False) -> Tensor:
    """As adv_lib calls them. It draws from torch's global generator."""
    assert norm in (2, math.inf)
    return _DeepFool(model)(inputs, labels) + 1e-4 * torch.rand(len(inputs), 1, 1, 1)


def _apgd(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, norm: float) -> Tensor:
    return _PGDL2(model, eps=eps)(inputs, labels)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", SimpleNamespace(DeepFool=_DeepFool, PGDL2=_PGDL2))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "adv_lib", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", SimpleNamespace(fmn=_fmn, apgd=_apgd))  # type: ignore[arg-type]


def _data() -> tuple[Tensor, Tensor]:
    """Images at distances 0.1, 0.2, 0.3, 0.6 from the boundary; the last is misclassified."""
    means = torch.tensor([0.55, 0.4, 0.65, 0.2, 0.45])
    return means.view(5, 1, 1, 1).expand(5, 1, 2, 2).clone(), torch.tensor([1, 0, 1, 0, 1])


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("attack", [from_torchattacks("DeepFool"), from_adv_lib("fmn")])
def test_the_smallest_perturbation_counts_within_the_radius_only(attack: Adapted) -> None:
    x, y = _data()
    found = accuracy(_Halves(), x, y, attack, BALL)
    assert found.clean_correct.tolist() == [True, True, True, True, False]
    assert found.robust_correct.tolist() == [False, False, True, True, False]
    assert torch.equal(found.x_adv[2:4], x[2:4])
    radii = attack.radii(_Halves(), x, y, "l2")
    torch.testing.assert_close(radii, torch.tensor([0.1, 0.2, 0.3, 0.6, 0.0]), rtol=0.03, atol=0)
    with torch.inference_mode():
        assert attack.radii(_Halves(), x, y, "linf").isfinite().all()


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("attack", [from_torchattacks("PGDL2"), from_adv_lib("apgd")])
def test_the_radius_is_passed_on(attack: Adapted) -> None:
    x, y = _data()
    found = accuracy(_Halves(), x, y, attack, BALL)
    assert found.robust_correct.tolist() == [False, False, True, True, False]
    with pytest.raises(CurvactError, match="it attacks within ε"):
        attack.radii(_Halves(), x, y)


@pytest.mark.usefixtures("stand_ins")
def test_an_attack_in_another_ball_is_refused() -> None:
    x, y = _data()
    with pytest.raises(CurvactError, match=r"outside of linf ε = 0\.1"):
        accuracy(_Halves(), x, y, from_torchattacks("PGDL2", eps=0.5), ThreatModel("linf", 0.1))


@pytest.mark.usefixtures("stand_ins")
def test_names_settings_and_chance() -> None:
    attack = named_attack("adv-lib(name=fmn)")
    assert str(attack) == str(from_adv_lib("fmn")) == "adv-lib(name=fmn)"
    assert str(named_attack("torchattacks(name=DeepFool, overshoot=0.1)")).endswith("overshoot=0.1)")
    x, y = _data()
    state = torch.get_rng_state()
    runs = [attack(_Halves(), x, y, BALL, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), state)


def _wrong(model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel) -> Tensor:
    raise IndexError("out of\nrange")


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (from_torchattacks("DeepFoul"), "torchattacks has no attack 'DeepFoul'; did you mean 'DeepFool'"),
        (from_torchattacks("DeepFool", step=3), "has no setting 'step'; did you mean 'steps'"),
        (from_adv_lib("fmn", alpha=1), "fmn of adv_lib has no setting 'alpha'"),
        (Adapted("mine", _wrong), "mine fails: IndexError: out of"),
        (Adapted("mine", lambda model, x, y, threat: x[:2]), "returned images of shape"),
        (Adapted("mine", lambda model, x, y, threat: x + math.nan), "image 0 is NaN"),
    ],
)
@pytest.mark.usefixtures("stand_ins")
def test_faults_are_one_line(attack: Adapted, message: str) -> None:
    x, y = _data()
    with pytest.raises(CurvactError, match=message) as caught:
        accuracy(_Halves(), x, y, attack, BALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attack", "module"), [(from_torchattacks("CW"), "torchattacks"), (from_adv_lib("ddn"), "adv_lib")]
)
def test_a_missing_library_is_one_line(attack: Adapted, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (module, f"{module}.attacks"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match=f"needs {module}, which cannot be imported.*pip install"):
        accuracy(_Halves(), *_data(), attack, BALL)


def _linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier of faint digits, and the true l2 radii of its images, far from 0 and 1."""
    data = load("digits")
    x, y = 0.35 + 0.3 * data.train.inputs(), data.train.labels
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = 0.35 + 0.3 * data.test.inputs(slice(0, 30)), data.test.labels[:30]
    weight: Any = model[1].weight
    logits = model(x)
    rows = torch.arange(30)
    margins = logits[rows, y][:, None] - logits
    lengths = (weight[y][:, None] - weight[None]).norm(dim=2)
    margins[rows, y], lengths[rows, y] = torch.inf, 1
    return model.requires_grad_(False), x, y, (margins / lengths).amin(1).clamp_min(0).detach()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "attack", "slack"),
    [
        ("torchattacks", from_torchattacks("DeepFool"), 1.3),
        ("torchattacks", from_torchattacks("CW", c=10, steps=100), 2.0),
        ("adv_lib", from_adv_lib("ddn", steps=100), 1.5),
        ("adv_lib", from_adv_lib("fmn", steps=100), 1.3),
        ("adv_lib", from_adv_lib("df"), 1.3),
        ("adv_lib", from_adv_lib("carlini_wagner_l2", max_iterations=200), 1.5),
    ],
)
def test_the_library_itself_finds_upper_bounds(library: str, attack: Adapted, slack: float) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: it is no dependency, see docs/foreign.md")
    model, x, y, truth = _linear()
    radii = attack.radii(model, x, y, "l2")
    assert bool((radii >= truth * 0.99).all())
    found = radii.isfinite() & (truth > 0)
    assert float(found.float().mean()) > 0.8
    assert float((radii[found] / truth[found]).median()) < slack
    epsilon = float(truth.median())
    robust = accuracy(model, x, y, attack, ThreatModel("l2", epsilon)).robust_correct
    assert bool(robust[truth > epsilon * 1.001].all())
    assert not bool(robust[radii < epsilon * 0.999].any())
