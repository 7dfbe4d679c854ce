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
    network = SurrogateNetwork(copy.deepcopy(model), x, "softplus(beta=2)")
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
    x = _images(3)[0]
    network = SurrogateNetwork(model, x)
    assert len(network.sites) == 1
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)


def test_the_mean_over_an_interval_has_the_curvature_asked_for() -> None:
    kappa = 4.0
    threat, x, y = ThreatModel("linf", 0.1), torch.rand(2, 4), torch.tensor([0, 1])
    network = SurrogateNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU()), x, kappa)
    widths: list[float] = []
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
    network = SurrogateNetwork(model, x)
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


class Shrunk(nn.Module):
    """Two layers of stairs, alike at every scale of two. The second layer works at 1/1024 of the first."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        honest = _honest()
        self.body, self.head = copy.deepcopy(honest), nn.Linear(10, 10)
        self.first = LogStairs()
        self.second = self.first if shared else LogStairs()
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(10) / 1024)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.head(self.first(self.body(x) + 20)))
        return 1024 * out


class LogStairs(nn.Module):
    """Eight steps between one power of two and the next: σ(2x) = 2σ(x), and no slope."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp2(torch.round(8 * torch.log2(x.detach().clamp_min(1e-30))) / 8) + 0 * x


def test_a_module_at_two_places_has_a_width_at_each() -> None:
    x, y = _images(20)
    results = []
    for shared in (False, True):
        model = Shrunk(shared).eval()
        network = SurrogateNetwork(model, x)
        network._measure(x)
        stairs = [site for site in network.sites if isinstance(site.real, LogStairs)]
        spreads = [float(s) for site in stairs for s in site.spreads]
        with torch.no_grad():
            first = model.body(x) + 20
            second = model.head(LogStairs()(first))
        assert spreads == pytest.approx([float(t.std(correction=0)) for t in (first, second)], rel=1e-5)
        results.append(adaptive_attack(model, x, y, ThreatModel("linf", 0.1), steps=10, generator=_seeded()))
    assert results[0].broken_by == results[1].broken_by
    assert {"bpda-ce", "bpda-margin", "surrogate-margin"} & set(results[0].broken_by)


class Arguments(nn.Module):
    """Functional activations that are not as their modules are by default."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.slope = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.layers[0](x), 0.5)
        x = F.softplus(input=self.layers[1](x), beta=10)
        x = F.gelu(self.layers[2](x), approximate="tanh")
        x = F.hardtanh(self.layers[3](x), -0.1, 0.2)
        return F.elu_(self.layers[4](x), 0.3)


class Computed(nn.Module):
    """An activation whose slope the network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.layer(x))
        return F.hardtanh(x - 0.5, -float(len(x)), len(x) / 8.0)


def test_calls_keep_their_arguments() -> None:
    torch.manual_seed(0)
    model, x = Arguments().eval(), torch.rand(7, 6)
    network = SurrogateNetwork(model, x)
    assert (len(network.sites), network.notes) == (5, [])
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)


def test_calls_that_no_surrogate_stands_for_are_named() -> None:
    model, x = Computed().eval(), torch.rand(7, 6)
    network = SurrogateNetwork(model, x)
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)
    assert [type(m) for m in network.model.modules()].count(Site) == 1
    assert "no surrogate for the functional calls" in network.notes[0]
    assert "hardtanh" in network.notes[0]
    result = adaptive_attack(model, x, torch.zeros(7, dtype=torch.int64), THREAT, steps=1)
    assert result.notes == tuple(network.notes)


class Quantized(nn.Module):
    """Stairs in units of each channel's deviation, as MeanSparse has them: buffers, and no slope."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("unit", torch.linspace(0.2, 0.4, channels).view(1, -1, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        stairs: Tensor = (x.relu().detach() / self.unit).round() * self.unit + self.shift
        return stairs + 0 * x


class Mixed(nn.Module):
    """No elementwise module: an output depends on the mean over all channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def test_a_defence_with_buffers_falls_beside_honest_activations() -> None:
    x, y = _images()
    stairs = nn.Sequential(nn.Unflatten(1, (10, 1, 1)), Mixed(), Quantized(10), nn.Flatten())
    model = nn.Sequential(_honest(), stairs).eval()
    result = adaptive_attack(model, x, y, ThreatModel("linf", 0.1), steps=15, generator=_seeded())
    assert result.plain_accuracy > 0.5
    assert result.robust_accuracy < 0.3
    network = SurrogateNetwork(model, x[:2])
    reals = [type(site.real) for site in network.sites]
    assert Quantized in reals
    assert Mixed not in reals


def test_gradients_of_zero_are_suspicious() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _honest()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(torch.round(x * 32) / 32)
            return out

    x, y = _images(8)
    result = adaptive_attack(Rounded(), x, y, ThreatModel("linf", 0.05), steps=2)
    right = round(result.clean_accuracy * 8)
    begins = f"{right} of 8 images are classified correctly with a margin whose gradient is zero"
    assert any(line.startswith(begins) for line in result.suspicions)


def test_a_random_model_is_attacked_on_and_told() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _honest()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(F.dropout(x, 0.3, training=True))
            return out

    x, y = _images()
    torch.manual_seed(0)
    threat = ThreatModel("linf", 0.05)
    result = adaptive_attack(Noisy(), x, y, threat, steps=10, generator=_seeded())
    assert "change from call to call" in result.notes[0]
    assert result.robust_accuracy <= accuracy(Noisy(), x, y, PGD(10), threat).robust


def test_malt_asks_for_float32() -> None:
    x, y = _images(2)
    with pytest.raises(CurvactError, match=r"malt=2 of adaptive_attack with images of torch.float64"):
        adaptive_attack(copy.deepcopy(_honest()).double(), x.double(), y, THREAT, steps=1, malt=2)


class Twice(nn.Module):
    """One block at two places, whose activation gets another argument at each."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.act = Leaky(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(input=self.block(self.block(x, 0.5) - 1, 0.1))


class Leaky(nn.Module):
    def forward(self, x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope)


def test_a_call_with_two_arguments_has_no_surrogate_and_a_module_may_be_called_by_keyword() -> None:
    model, x = Twice().eval(), torch.linspace(-2, 2, 12).view(2, 6)
    network = SurrogateNetwork(model, x)
    torch.testing.assert_close(network.model(x), model(x), rtol=0, atol=0)
    assert len(network.sites) == 1
    assert "leaky_relu" in network.notes[0]


def test_constant_images_make_no_module_elementwise() -> None:
    model = nn.Sequential(Mixed(), nn.Flatten(), nn.Linear(12, 3), nn.ReLU())
    network = SurrogateNetwork(model, torch.full((2, 3, 2, 2), 0.5))
    assert [type(site.real) for site in network.sites] == [nn.ReLU]


def test_a_graph_that_is_cut_for_some_batches_only_is_said_in_one_line() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _honest()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x.detach() if len(x) > 1 else x)
            return out

    with pytest.raises(CurvactError, match="pgd needs a gradient"):
        adaptive_attack(Cut(), *_images(6), ThreatModel("linf", 0.05), steps=2)
