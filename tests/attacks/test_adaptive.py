"""The adaptive attack on planted defences, whose gradient misleads, and on an honest network."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import activation, max_curvature, swap_activations
from curvact.attacks import (
    PGD,
    Adaptive,
    ThreatModel,
    accuracy,
    adaptive_attack,
    ensemble,
    masking_report,
    named_attack,
)
from curvact.attacks.adaptive import NAMES, PLAIN
from curvact.attacks.surrogate import WAYS, Site, SurrogateNetwork
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import MiniResNet

THREAT = ThreatModel("linf", 0.2)


class Stairs(nn.Module):
    """ReLU in steps of a quarter: the slope is 0 wherever there is one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(4 * x.relu() + 0.5) / 4


class Ripples(nn.Module):
    """ReLU with ripples: κ = 2e6, and a slope that points anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + 0.02 * torch.sin(1e4 * x)


class Calls(nn.Module):
    """Activations of every kind: a module, one used in place, an attribute, calls in forward."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        for p in self.parameters():
            p.data.normal_(0, 0.5, generator=g)
        self.first, self.second = nn.SiLU(), nn.ReLU(inplace=True)
        self.third = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.layers[1](self.first(self.layers[0](x.flatten(1)))))
        x = F.gelu(self.layers[3](self.third(self.layers[2](x))))
        out: Tensor = self.layers[4](x).relu()
        return out


@cache
def _honest() -> nn.Module:
    train, g = load("digits").train, torch.Generator().manual_seed(0)
    model = MiniResNet("relu", channels=1, width=6, mean=train.mean, std=train.std, generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        for index in torch.randperm(len(train), generator=g).split(50):
            loss = F.cross_entropy(model(train.inputs(index)), train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def _planted(kind: type[nn.Module]) -> nn.Module:
    return swap_activations(_honest(), None, kind, inplace=False).model


@cache
def _images(count: int = 40) -> tuple[Tensor, Tensor]:
    test = load("digits").test
    return test.inputs(slice(0, count)), test.labels[:count]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.filterwarnings("ignore")  # of AutoAttack: the gradients are zero
@pytest.mark.parametrize(("kind", "left"), [(Stairs, 0.8), (Ripples, 0.25)])
def test_a_planted_defence_falls(kind: type[nn.Module], left: float) -> None:
    model, (x, y) = _planted(kind), _images()
    assert ensemble(model, x, y, THREAT, attacks=["apgd-ce"], steps=40).robust_accuracy > left
    result = adaptive_attack(model, x, y, THREAT, steps=15, generator=_seeded())
    assert result.plain_accuracy > 0.5
    assert result.robust_accuracy < 0.1
    assert "activations mask the gradient" in result.suspicions[0]
    # By another way: a forward pass of the model, and the distance from the images.
    with torch.no_grad():
        wrong = model(result.x_adv).argmax(1) != y
    assert wrong.tolist() == [by is not None for by in result.broken_by]
    assert float((result.x_adv - x).abs().max()) <= THREAT.epsilon + 1e-6
    assert float(result.x_adv.min()) >= 0
    assert float(result.x_adv.max()) <= 1
    assert torch.equal(result.x_adv[result.robust], x[result.robust])


def test_masking_checks_find_what_gradients_miss() -> None:
    report = masking_report(_planted(Ripples), *_images(), THREAT, steps=10, queries=1)
    alarm = {a.name: a for a in report.alarms}["surrogate activation"]
    assert alarm.value > 0.5
    assert "report the attack 'adaptive'" in alarm.sentence


def test_an_honest_network_is_no_more_robust_and_not_accused() -> None:
    model, (x, y) = _honest(), _images()
    weak = ThreatModel("linf", 0.05)
    result = adaptive_attack(model, x, y, weak, steps=10, generator=_seeded())
    assert 0.2 < result.robust_accuracy < result.clean_accuracy
    assert result.robust_accuracy <= accuracy(model, x, y, PGD(10), weak).robust
    assert (result.notes, result.suspicions) == ((), ())
    after = list(result.accuracy_after.values())
    assert list(result.accuracy_after) == ["clean", *NAMES]
    assert after == sorted(after, reverse=True)
    assert after[-1] == result.robust_accuracy
    assert {by for by in result.broken_by if by} <= {"clean", *NAMES}


def test_a_surrogate_keeps_values_and_has_another_slope() -> None:
    model = Calls().eval()
    x = torch.rand(5, 8, generator=_seeded())
    network = SurrogateNetwork(copy.deepcopy(model), "softplus(beta=2)")
    assert len(network.sites) == 5
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)
    site = network.sites[0]
    t = torch.linspace(-2, 2, 9, requires_grad=True)
    (slope,) = torch.autograd.grad(site(t).sum(), t)
    torch.testing.assert_close(slope, torch.sigmoid(2 * t).detach())
    site.both = True
    torch.testing.assert_close(site(t), F.softplus(2 * t) / 2)


def test_one_activation_of_a_whole_network_is_one_site() -> None:
    model = MiniResNet("pssilu(learnable=True)", channels=1, width=2).eval()
    network, x = SurrogateNetwork(model), _images(3)[0]
    assert len(network.sites) == 1
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)


def test_the_mean_over_an_interval_has_the_curvature_asked_for() -> None:
    kappa = 4.0
    network = SurrogateNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU()), kappa)
    widths: list[float] = []
    threat, x, y = ThreatModel("linf", 0.1), torch.rand(2, 4), torch.tensor([0, 1])
    site = network.sites[0]
    network.attack(WAYS[0], x, y, threat, steps=4, on_step=lambda *_: widths.append(site.width))
    # Called with each point, after the width of the next one is set; the last sets the first again.
    assert widths == pytest.approx([w / (2 * kappa) for w in (10 ** (2 / 3), 10 ** (1 / 3), 1, 10)])
    site.width = 1 / (2 * kappa)
    t = torch.linspace(-1, 1, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(site(t).sum(), t)
    assert float(slope.diff().max() / t.detach().diff()[0]) == pytest.approx(kappa, rel=1e-6)
    assert max_curvature(activation(f"rctaf(curvature={kappa})")).value == pytest.approx(kappa)


def test_no_weight_gradients_and_no_waiting_in_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = _planted(Stairs), _images(4)
    network = SurrogateNetwork(model)
    for name in ("item", "tolist", "__bool__", "__float__", "nonzero"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(f"waits for the device: {name}"))
    for way in WAYS:
        network.attack(way, x, y, THREAT, steps=3, generator=_seeded())
    monkeypatch.undo()
    assert all(p.grad is None and not p.requires_grad for p in network.model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, Site) for m in model.modules())


def test_names_and_functions() -> None:
    for attack in (
        Adaptive(),
        Adaptive(5, 2, "silu"),
        Adaptive(surrogate="rctaf(curvature=2)"),
        Adaptive(7, 1, 2.5),
    ):
        assert named_attack(str(attack)) == attack
    x, y = _images(6)
    model = _honest()
    found = accuracy(model, x, y, "adaptive(steps=5)", THREAT)
    assert found.robust < 0.2
    # Of a function only the plain attacks run, and the result says so.
    result = adaptive_attack(lambda t: model(t), x, y, THREAT, steps=2)
    assert "the model is a function" in result.notes[0]
    assert result.accuracy_after["surrogate-margin"] == result.plain_accuracy
    assert all(by in (None, "clean", *PLAIN) for by in result.broken_by)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adaptive(steps=0)", "steps=0 of adaptive: a whole number >= 1"),
        ("adaptive(surrogate=-1)", "surrogate=-1 of adaptive: as a number it is a κ > 0"),
        ("adaptive(surrogate=siluu)", "unknown activation 'siluu'; did you mean 'silu'"),
        ("adaptive(surrogate=True)", "surrogate=True of adaptive: a κ > 0, the name of an activation"),
    ],
)
def test_bad_settings_are_one_line(text: str, message: str) -> None:
    with pytest.raises(CurvactError) as error:
        named_attack(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_cuts_the_graph_elsewhere_is_attacked_in_vain_and_not_refused() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _honest()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = self.model(x)
            return out

    result = adaptive_attack(Closed(), *_images(8), ThreatModel("linf", 0.01), steps=2)
    assert result.robust_accuracy > 0.5


def test_more_targets_than_malt_looks_at_by_itself() -> None:
    """120 classes, whose boundaries are all out of reach, so that each of 110 targets is tried."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 120), nn.ReLU())
    x = torch.rand(2, 1, 2, 2)
    labels = model(x).argmax(1)
    result = adaptive_attack(model, x, labels, ThreatModel("linf", 1e-6), steps=1, malt=110)
    assert result.accuracy_after["apgd-malt"] == 1.0
