"""AutoAttack against the reference bit by bit, closed forms on linear models, and kills, lies and bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from curvact import Recipe, fit
from curvact.activations import activation
from curvact.attacks import (
    PGD,
    AutoAttackResult,
    AutoAttackSettings,
    Progress,
    SuspectModelWarning,
    ThreatModel,
    autoattack,
    ensemble,
    pgd,
)
from curvact.attacks.autoattack import parallel, search, shard, square, windows
from curvact.attacks.autoattack.apgd import checkpoints
from curvact.attacks.autoattack.ensemble import chosen_steps, ensemble_name, version_steps
from curvact.attacks.autoattack.fab import onto_plane
from curvact.attacks.autoattack.reference import NORMS
from curvact.attacks.autoattack.run import _Settings
from curvact.attacks.autoattack.shard import allowed
from curvact.attacks.autoattack.store import config_hash, hash_network, read_unit, write_unit
from curvact.data import load
from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.folding import folded
from curvact.workers import Event

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


@lru_cache(maxsize=4)
def _net(name: str = "relu") -> nn.Module:
    """A small convolution net, adversarially trained on digits until it stands about half the time."""
    data, g = load("digits"), torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        activation(name),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    with torch.no_grad():
        for p in (model[0].weight, model[4].weight):
            p.normal_(0, 0.15, generator=g)
    fit(
        model,
        data,
        Recipe(objective="pgd-at(batch_norm=eval)", epochs=3, attack=PGD(2, step=0.3)),
        ThreatModel("linf", 0.08),
        seed=0,
    )
    return model.eval()


class _Scaled(nn.Module):
    """Logits × 1000: the cross-entropy of a right answer has no gradient in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.model(x)  # type: ignore[no-any-return]


def _model(name: str) -> nn.Module:
    return _Scaled(_net()).eval() if name == "hard" else _net(name)


def _data(count: int = 20) -> tuple[Tensor, Tensor]:
    test = load("digits").test
    return test.inputs(slice(0, count)), test.labels[:count]


def _reference(
    model: nn.Module,
    norm: str,
    seed: int,
    version: str | None = "standard",
    steps: int = 100,
    queries: int = 5000,
) -> AutoAttack:
    """The reference; with version None set as in its standard version but for the budgets."""
    eps = EPSILON[norm]
    if version is not None:
        return AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version=version)
    made = AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version="custom", attacks=ALL)
    made.apgd = APGDAttack(model, n_iter=steps, norm=NORMS[norm], eps=eps, device="cpu", logger=made.logger)
    made.apgd_targeted = APGDAttack_targeted(
        model, n_iter=steps, norm=NORMS[norm], eps=eps, n_target_classes=9, device="cpu", logger=made.logger
    )
    made.fab = FABAttack_PT(model, n_restarts=1, n_iter=steps, eps=eps, norm=NORMS[norm], n_target_classes=9)
    made.square = SquareAttack(model, n_queries=queries, eps=eps, norm=NORMS[norm], resc_schedule=False)
    if norm == "l1":
        made.apgd.n_restarts, made.apgd_targeted.n_target_classes = 5, 5
        made.apgd.use_largereps = made.apgd_targeted.use_largereps = True
    return made


def _assert_sound(verdict: AutoAttackResult, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """What is counted holds, by arithmetic of its own: float64 differences, and the model alone on each point."""
    order = {"linf": math.inf, "l2": 2, "l1": 1}[verdict.threat_model.norm]
    epsilon = verdict.threat_model.epsilon
    with torch.no_grad():
        for point, by in enumerate(verdict.broken_by):
            x_adv = verdict.x_adv[point]
            right = bool(model(x_adv[None]).argmax() == y[point])
            if by is None:
                assert right
                assert torch.equal(x_adv, x[point])
                continue
            assert not right
            assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
            size = float(torch.linalg.vector_norm((x_adv.double() - x[point].double()).flatten(), ord=order))
            assert size <= epsilon * (1 + 1e-4) + 1e-5
            assert float(verdict.perturbation[point]) == pytest.approx(size, abs=1e-6)
    broken = sum(by is not None for by in verdict.broken_by)
    assert verdict.robust_accuracy == pytest.approx(1 - broken / len(x))
    assert int(verdict.robust.sum()) == len(x) - broken
    expected = nn.functional.cross_entropy(model(verdict.x_adv), y, reduction="none")
    torch.testing.assert_close(verdict.loss, expected.detach(), rtol=1e-4, atol=1e-5)


def _same(a: AutoAttackResult, b: AutoAttackResult) -> None:
    """Every field that a seed fixes, bit by bit."""
    for key in ("name", "clean_accuracy", "robust_accuracy", "broken_by", "accuracy_after"):
        assert getattr(a, key) == getattr(b, key)
    for key in ("x_adv", "y_adv", "loss", "perturbation"):
        assert torch.equal(getattr(a, key), getattr(b, key))


# Plain mode is the reference.


@pytest.mark.filterwarnings("ignore::curvact.attacks.threat.SuspectModelWarning")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["relu", "rctaf(curvature=6)", "hard"])
def test_plain_mode_is_the_reference_bit_by_bit(name: str, norm: str) -> None:
    """Small budgets, several batches of standing points; the full ones below."""
    model, (x, y) = _model(name), _data()
    reference = _reference(model, norm, 3, None, steps=8, queries=40)
    x_adv, y_adv = reference.run_standard_evaluation(x, y, batch_size=8)
    model.zero_grad()
    before = torch.get_rng_state()
    verdict = ensemble(model, x, y, ThreatModel(norm, EPSILON[norm]), **SMALL, seed=3, batch_size=8)  # type: ignore[arg-type]
    assert torch.equal(verdict.x_adv, x_adv)
    assert torch.equal(verdict.y_adv, y_adv)
    assert 0 < verdict.robust_accuracy < verdict.clean_accuracy
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    _assert_sound(verdict, model, x, y)


@pytest.mark.filterwarnings("ignore::curvact.attacks.threat.SuspectModelWarning")
@pytest.mark.parametrize(
    ("name", "norm", "version"),
    [
        ("relu", "linf", "standard"),
        *(
            pytest.param(name, norm, version, marks=pytest.mark.slow)
            for name, norm, version in [
                ("relu", "l2", "standard"),
                ("relu", "l1", "standard"),
                ("rctaf(curvature=6)", "linf", "standard"),
                ("rctaf(curvature=6)", "l2", "standard"),
                ("hard", "linf", "standard"),
                ("hard", "l2", "standard"),
                ("relu", "linf", "plus"),
                ("relu", "l2", "rand"),
                ("relu", "l1", "plus"),
            ]
        ),
    ],
)
def test_a_whole_version_is_the_reference_bit_by_bit(name: str, norm: str, version: Any) -> None:
    model, (x, y) = _model(name), _data(8)
    x_adv, y_adv = _reference(model, norm, 5, version).run_standard_evaluation(x, y, batch_size=8)
    verdict = autoattack(model, x, y, ThreatModel(norm, EPSILON[norm]), version=version, seed=5)  # type: ignore[arg-type]
    assert torch.equal(verdict.x_adv, x_adv)
    assert torch.equal(verdict.y_adv, y_adv)
    assert verdict.name.startswith("AutoAttack")


def test_every_shard_is_the_reference_alone_on_it() -> None:
    model, (x, y) = _net(), _data()
    verdict = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, seed=3, shard_size=8)
    for number, part in enumerate([slice(0, 8), slice(8, 16), slice(16, 20)]):
        reference = _reference(model, "linf", shard.shard_seed(3, number), None, steps=8, queries=40)
        x_adv, _ = reference.run_standard_evaluation(x[part], y[part], batch_size=8)
        assert torch.equal(verdict.x_adv[part], x_adv)
    assert len({shard.shard_seed(3, number) for number in range(50)} | {shard.shard_seed(4, 1)}) == 51


# Fast mode.


def _margins(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """Distance of x to the nearest other class of a linear model, in the norm whose dual is given."""
    logits = x.flatten(1) @ weight.T + bias
    distances = torch.full_like(logits, math.inf)
    for k in range(len(bias)):
        difference = weight[y] - weight[k]
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits[:, k]
        distances[:, k] = torch.where(
            y == k, math.inf, gap / torch.linalg.vector_norm(difference, ord=dual, dim=1)
        )
    return distances.amin(1)


@pytest.mark.parametrize("attack", ["apgd-t", "fab-t"])
@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize(("norm", "dual", "epsilon"), [("linf", 1, 0.02), ("l2", 2, 0.12)])
def test_gradient_attacks_are_exact_on_a_linear_model(
    norm: Any, dual: float, epsilon: float, mode: Any, attack: str
) -> None:
    """Away from the box's walls a linear model is broken exactly where its distance to a wall is below ε."""
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 6)).eval()
    with torch.no_grad():
        model[1].weight.normal_(generator=g)
    x = torch.rand(60, 2, 5, 5, generator=g) * 0.2 + 0.4
    y = model(x).argmax(1)
    distances = _margins(model[1].weight.detach(), model[1].bias.detach(), x, y, dual)
    clear = (distances / epsilon - 1).abs() > 0.02
    expected = distances > epsilon
    assert 0.2 < float(expected.float().mean()) < 0.8
    assert int(clear.sum()) > 50
    verdict = ensemble(model, x, y, ThreatModel(norm, epsilon), attacks=[attack], steps=40, mode=mode)
    assert torch.equal(verdict.robust[clear], expected[clear])
    _assert_sound(verdict, model, x, y)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fast_mode_is_sound_and_no_weaker_where_it_can_be_known(norm: Any) -> None:
    """On 60 points the two modes, which draw other random starts, differ by the few points at the edge."""
    model, (x, y) = _net(), _data(60)
    threat = ThreatModel(norm, EPSILON[norm])
    budget: dict[str, Any] = {"attacks": ALL, "steps": 20, "queries": 100}
    fast = ensemble(model, x, y, threat, **budget, mode="fast", batch_size=16)
    plain = ensemble(model, x, y, threat, **budget)
    _assert_sound(fast, model, x, y)
    assert fast.clean_accuracy == plain.clean_accuracy
    assert abs(fast.robust_accuracy - plain.robust_accuracy) <= 2 / 60
    assert "1 batch norm folded, channels last" in fast.notes[0]
    if norm == "linf":
        assert fast.forward_evaluations + 2 * fast.gradient_evaluations < (
            plain.forward_evaluations + 2 * plain.gradient_evaluations
        )


@pytest.mark.filterwarnings("ignore::curvact.attacks.threat.SuspectModelWarning")
def test_a_masked_gradient_does_not_mislead() -> None:
    """PGD on the cross-entropy takes the model for robust; the ensembles do not."""
    model, (x, y) = _model("hard"), _data()
    threat = ThreatModel("linf", 0.1)
    x_adv = pgd(model, x, y, threat, steps=20, step=0.2, start="none")
    weak = float((model(x_adv).argmax(1) == y).float().mean())
    true = ensemble(_net(), x, y, threat, attacks=["apgd-t"], steps=20).robust_accuracy
    for mode in ("plain", "fast"):
        assert (
            ensemble(model, x, y, threat, attacks=["apgd-ce", "apgd-t"], steps=20, mode=mode).robust_accuracy
            <= true + 0.051
        )  # type: ignore[arg-type]
    assert weak > true + 0.1


def test_fast_mode_does_not_depend_on_batch_or_shard_size() -> None:
    model, (x, y) = _net(), _data(30)
    verdicts = [
        ensemble(model, x, y, ThreatModel(norm, EPSILON[norm]), **SMALL, mode="fast", seed=1, **sizes)  # type: ignore[arg-type]
        for norm in ("linf", "l2")
        for sizes in ({"batch_size": 64}, {"batch_size": 7}, {"batch_size": 16, "shard_size": 11})
    ]
    for first, *others in (verdicts[:3], verdicts[3:]):
        for other in others:
            assert other.broken_by == first.broken_by
            # The convolutions round otherwise in other batches, and sign(gradient) can amplify that: not bit by bit.
            assert float((other.x_adv != first.x_adv).flatten(1).any(1).float().mean()) < 0.5


@pytest.mark.filterwarnings("ignore::curvact.attacks.threat.SuspectModelWarning")
def test_a_lying_twin_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed cannot invent a success: the plain model has the last word."""
    model, (x, y) = _net(), _data()
    honest = ensemble(model, x, y, ThreatModel("linf", 1e-4), **SMALL)
    monkeypatch.setattr(shard, "search_twin", lambda model, *a, **k: (lambda x: -model(x), []))
    lied = ensemble(model, x, y, ThreatModel("linf", 1e-4), **SMALL, mode="fast")
    assert lied.robust_accuracy == honest.robust_accuracy == honest.clean_accuracy
    _assert_sound(lied, model, x, y)


def test_less_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = _net(), _data()
    whole = shard.apgd

    def scarce(*arguments: Any, batch_size: int, **more: Any) -> int:
        if batch_size > 5:
            raise torch.OutOfMemoryError
        return whole(*arguments, batch_size=batch_size, **more)

    monkeypatch.setattr(shard, "apgd", scarce)
    verdict = ensemble(
        model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=4, mode="fast", batch_size=16
    )
    assert "batch size halved to 4: out of memory" in verdict.notes
    monkeypatch.setattr(shard, "apgd", lambda *a, **k: scarce(*a, **{**k, "batch_size": 9}))
    with pytest.raises(CurvactError, match="out of memory at batch size 1"):
        ensemble(model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=4, mode="fast")


def test_search_in_bf16_is_named_and_looks_twice() -> None:
    model, (x, y) = _net(), _data()
    verdict = ensemble(
        model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=8, mode="fast", precision="bf16"
    )
    assert list(verdict.accuracy_after) == ["clean", "apgd-ce", "apgd-ce (fp32)"]
    _assert_sound(verdict, model, x, y)
    steps = version_steps("standard", "linf", 10)
    assert ensemble_name("standard", steps, "bf16") == "AutoAttack (bf16 search, fp32 second look)"
    square = chosen_steps(["square"], "linf", 10, steps=5, queries=100)
    assert ensemble_name(None, square, "bf16") == "square(100 queries) (bf16 search)"


@pytest.mark.slow
def test_compiled_search_agrees() -> None:
    model, (x, y) = _net(), _data()
    compiled = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, mode="fast", compiled=True)
    _assert_sound(compiled, model, x, y)
    assert (
        compiled.robust_accuracy
        == ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, mode="fast").robust_accuracy
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Square took")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fast_and_plain_agree_at_full_budgets(norm: Any) -> None:
    model, (x, y) = _net(), _data(200)
    threat = ThreatModel(norm, EPSILON[norm])
    fast, plain = autoattack(model, x, y, threat, mode="fast"), autoattack(model, x, y, threat)
    assert abs(fast.robust_accuracy - plain.robust_accuracy) <= 0.005
    assert fast.name == plain.name == "AutoAttack"


# The parts of fast mode.


def test_checkpoints_are_those_of_the_paper() -> None:
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), w_j = p_j·N at N = 100."""
    p = [0, 22]
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    expected = [w for w in p[1:] if w <= 100]
    window = checkpoints(100)
    assert window.nonzero().squeeze(1).tolist() == expected
    assert window[expected].tolist() == [b - a for a, b in zip([0, *expected], expected, strict=False)]


def test_square_sizes_and_bumps_are_those_of_the_paper() -> None:
    """Against the reference's own helpers, which share no code with ours."""
    theirs = SquareAttack(lambda x: x, p_init=0.8, n_queries=5000, eps=1.0, norm="L2", resc_schedule=False)
    theirs.device = torch.device("cpu")
    for query in (0, 10, 11, 50, 51, 200, 201, 999, 1001, 2001, 4001, 4999):
        assert square.fraction(query) == pytest.approx(theirs.p_selection(query))
    for height, width in ((1, 3), (2, 5), (3, 7), (5, 5), (4, 9)):
        torch.testing.assert_close(square._bump(height, width), theirs.eta_rectangles(height, width))
    for side in (1, 3, 7):
        bumps = square.bumps(side, torch.Generator().manual_seed(side))
        assert float(bumps.norm()) == pytest.approx(1)
        assert side == 1 or abs(float(bumps.sum())) < float(bumps.abs().sum()) / 2


@given(
    seed=st.integers(0, 1000),
    query=st.sampled_from([0, 11, 60, 300, 3000]),
    epsilon=st.sampled_from([1e-3, 0.1, 0.7]),
    norm=st.sampled_from(["linf", "l2"]),
    height=st.integers(5, 11),
    width=st.integers(5, 11),
)
@settings(max_examples=25)
def test_square_stays_inside_the_threat_model(
    seed: int, query: int, epsilon: float, norm: Any, height: int, width: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    clean = torch.rand(3, 2, height, width, generator=g)
    threat = ThreatModel(norm, epsilon)
    best = square._start(clean, torch.arange(3), threat, seed)
    assert bool(allowed(best, clean, threat).all())
    propose = square._propose_linf if norm == "linf" else square._propose_l2
    for _ in range(4):
        rows, (top, bottom, left, right), patch = propose(best, clean, epsilon, query, g)
        assert norm == "l2" or bool((patch != best[rows, :, top:bottom, left:right]).flatten(1).any(1).all())
        best[rows, :, top:bottom, left:right] = patch
        assert bool(allowed(best, clean, threat).all())
    if norm == "linf":  # every pixel at a corner of its own box
        low, high = (clean - epsilon).clamp_min(0), (clean + epsilon).clamp_max(1)
        assert float(torch.minimum((best - low).abs(), (best - high).abs()).max()) < 1e-6


def test_square_finds_what_only_a_search_can() -> None:
    """A model without any gradient: the class is whether one corner is darker than 0.5 by more than 0.05."""

    class Stairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = (x[:, :, :3, :3].mean((1, 2, 3)) * 200).round() / 200
            return (
                torch.stack([mean, torch.full_like(mean, 0.45), *[torch.zeros_like(mean)] * 2], 1)
                + 0 * x.sum()
            )

    x = torch.full((4, 1, 8, 8), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    verdict = ensemble(
        Stairs().eval(), x, y, ThreatModel("linf", 0.1), attacks=["square"], queries=300, mode="fast"
    )
    assert verdict.robust_accuracy == 0
    assert set(verdict.broken_by) == {"square"}
    with (
        pytest.warns(SuspectModelWarning, match="zero gradient"),
        pytest.warns(SuspectModelWarning, match="Square took"),
    ):
        late = ensemble(
            Stairs().eval(),
            x,
            y,
            ThreatModel("linf", 0.1),
            attacks=["apgd-ce", "square"],
            steps=3,
            queries=300,
            mode="fast",
        )
    assert len(late.suspicions) == 2


def test_batch_norm_is_folded_only_where_the_logits_stay() -> None:
    x = torch.rand(4, 3, 16, 16)
    for name in ("resnet18", "mini_resnet"):
        model = build(name, width=4, channels=3, size=16).train()
        with torch.no_grad():
            model(torch.rand(32, 3, 16, 16))
        model.eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        without, count = folded(model, x)
        assert count == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert not any(isinstance(m, nn.BatchNorm2d) for m in without.modules())
        torch.testing.assert_close(without(x), model(x), rtol=1e-4, atol=1e-4)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        twin, notes = search.search_twin(model, x, compiled=False, precision="fp32")
        assert notes[:2] == [f"{count} batch norms folded", "channels last"]
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)

    class Twice(nn.Module):
        """The convolution's output is used beside the batch norm, too."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_var.fill_(9.0)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return (h + self.norm(h)).mean((2, 3))  # type: ignore[no-any-return]

    model = Twice().eval()
    twin, notes = search.search_twin(model, x, compiled=False, precision="fp32")
    assert notes[0] == "no batch norm folded"
    torch.testing.assert_close(twin(x), model(x))
    assert search.search_twin(lambda x: x, x, compiled=False, precision="fp32")[1][0].startswith(
        "search with the model"
    )


class _Odd(nn.Module):
    """Strides, dilation, groups, a sum of three, and a branch that windows do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, 1, 2, dilation=2, groups=2)
        self.b = nn.Conv2d(6, 6, (5, 1), (2, 1), (2, 0))
        self.c = nn.Conv2d(6, 6, 1, (2, 1))
        self.act, self.pool, self.linear = nn.SiLU(), nn.MaxPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        h = self.b(h) + self.c(h) + self.c(h)
        return self.linear((self.pool(h) * 2).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "odd"])
def test_windows_give_the_logits_of_the_whole(name: str) -> None:
    """Against the network itself, over many places and sizes, with some rows left out, some changes taken back."""
    g = torch.Generator().manual_seed(0)
    channels, size = (2, 16) if name == "odd" else (3, 32)
    model = _Odd() if name == "odd" else build(name, width=4, channels=3, size=32, activation="silu")
    model.requires_grad_(False).eval()
    x = torch.rand(6, channels, size, size, generator=g)
    made = windows.windowed(model, x[:2], model)
    assert made is not None
    made.begin(x)
    local = 0
    for _ in range(25):
        side = int(torch.randint(1, 7, (), generator=g))
        top, left = torch.randint(0, size - side + 1, (2,), generator=g).tolist()
        rows = torch.randperm(len(x), generator=g)[:4].sort().values
        patch = torch.rand(4, channels, side, side, generator=g)
        changed = x.clone()
        changed[rows, :, top : top + side, left : left + side] = patch
        logits = made.logits(rows, (top, top + side, left, left + side), patch)
        torch.testing.assert_close(
            logits, model(changed)[rows], rtol=1e-4, atol=1e-5 * float(logits.abs().max())
        )
        local += sum(isinstance(change, windows._Window) for change in made._changes.values())
        taken = torch.rand(4, generator=g) < 0.5
        made.accept(taken)
        x[rows[taken]] = changed[rows[taken]]
    assert local > 25 * 3
    keep = torch.tensor([True, False, True, True, False, True])
    made.keep(keep)
    logits = made.logits(torch.arange(4), (0, 1, 0, 1), x[keep][:, :, :1, :1])
    torch.testing.assert_close(logits, model(x[keep]), rtol=1e-4, atol=1e-5 * float(logits.abs().max()))


def test_windows_are_left_where_they_do_not_fit() -> None:
    class Shuffled(nn.Module):
        """Looks pointwise by its shape, but moves what it gets."""

        def forward(self, x: Tensor) -> Tensor:
            return x.flip(3)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x if x.sum() > 0 else -x).mean((2, 3))  # type: ignore[no-any-return]

    class Counting(Branching):
        """Looks at its shape, as it may, but holds on to the number of images."""

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).reshape(x.shape[0], 4, -1).mean(2)  # type: ignore[no-any-return]

    x = torch.rand(2, 3, 12, 12)
    assert windows.windowed(Counting().eval(), x, Counting().eval()) is None
    assert not windows._is_pointwise(Shuffled(), 3)
    assert not windows._is_pointwise(nn.InstanceNorm2d(3), 3)
    assert windows._is_pointwise(nn.BatchNorm2d(7).eval(), 7)
    assert windows._is_pointwise(activation("rctaf(curvature=6)"), 7)
    assert windows.windowed(Branching().eval(), x, Branching().eval()) is None
    assert windows.windowed(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), x, lambda x: x) is None
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert windows.windowed(net, x, net) is not None
    assert windows.windowed(net, x, lambda x: net(x) + 1) is None


@given(norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
@settings(max_examples=25)
def test_the_step_to_a_plane_is_that_of_the_reference(norm: str, seed: int, scale: float) -> None:
    """As short, and as near to the plane; where the plane misses the box any point that comes as near is as good."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.rand(8, 20, generator=g), torch.randn(8, 20, generator=g)
    x[:, :5], w[:, 7] = x[:, :5].round(), 0.0
    value = scale * torch.randn(8, generator=g)
    plane = (w * x).sum(1) - value
    theirs = {"linf": projection_linf, "l2": projection_l2}[norm](x.clone(), w.clone(), plane.clone())
    ours = onto_plane(x, w, value, norm)
    assert bool(((x + ours >= -1e-6) & (x + ours <= 1 + 1e-6)).all())
    miss = [(value + (w * d).sum(1)).abs() for d in (ours, theirs)]
    torch.testing.assert_close(miss[0], miss[1], rtol=1e-4, atol=1e-4)
    order = {"linf": math.inf, "l2": 2}[norm]
    length = [torch.linalg.vector_norm(d, ord=order, dim=1) for d in (ours, theirs)]
    reached = miss[0] < 1e-4
    torch.testing.assert_close(length[0][reached], length[1][reached], rtol=1e-3, atol=1e-5)


@given(size=st.floats(0, 2), seed=st.integers(0, 100), norm=st.sampled_from(["linf", "l2", "l1"]))
@settings(max_examples=25)
def test_only_the_ball_and_the_box_are_allowed(size: float, seed: int, norm: Any) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, 4, 4, generator=g) * 0.2 + 0.4
    delta = torch.randn(1, 1, 4, 4, generator=g)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    threat = ThreatModel(norm, 0.05)
    moved = x + size * 0.05 * delta / torch.linalg.vector_norm(delta.flatten(), ord=order)
    if abs(size - 1) > 1e-3:
        assert bool(allowed(moved, x, threat)) == (size < 1)
    for bad in (math.nan, math.inf, -1e-7, 1 + 1e-6):
        spoilt = x.clone()
        spoilt[0, 0, 0, 0] = bad
        assert not bool(allowed(spoilt, x, ThreatModel(norm, 100.0)))


# Sharing, resuming.


def _expected(**more: Any) -> tuple[nn.Module, Tensor, Tensor, AutoAttackResult]:
    model, (x, y) = _net(), _data()
    return model, x, y, ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=6, seed=2, **more)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_workers_alter_nothing(mode: Any) -> None:
    model, (x, y) = _net("rctaf(curvature=6)"), _data()
    alone = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=6, seed=2, mode=mode)
    seen: list[Progress] = []
    shared = ensemble(
        model,
        x,
        y,
        ThreatModel("linf", 0.1),
        **SMALL,
        shard_size=6,
        seed=2,
        mode=mode,
        workers=2,
        on_progress=seen.append,
    )
    _same(alone, shared)
    assert alone.gradient_evaluations == shared.gradient_evaluations
    assert len(seen) == 4 * 5
    assert seen[-1].points_done == len(x)


SCRIPT = """
import os, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from curvact.models import build
from curvact.attacks import ThreatModel
from curvact.attacks import ensemble

class Dies(torch.nn.Module):
    def __init__(self, marker):
        super().__init__()
        self.model, self.marker = build("mini_resnet", channels=1, width=2, blocks=1), marker
    def forward(self, x):
        try:
            with open(self.marker, "x") as file:
                file.write("")
            armed = True
        except FileExistsError:
            armed = False
        if armed and __name__ != "__main__":
            os._exit(9)
        return self.model(x)

if __name__ == "__main__":
    marker = Path(sys.argv[1])
    torch.manual_seed(0)
    model = Dies(str(marker)).eval()
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    run = lambda **more: ensemble(model, x, y, ThreatModel("linf", 0.05), attacks=["apgd-ce"], steps=3, shard_size=2, **more)
    marker.touch()
    alone = run()
    marker.unlink()
    shared = run(workers=2)
    assert torch.equal(shared.x_adv, alone.x_adv)
    print("same", marker.exists())
"""


def _python(code: str, *arguments: object, tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    process = _python(SCRIPT, tmp_path / "marker", tmp_path=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.split() == ["same", "True"]


def test_a_shard_whose_workers_always_die_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_jobs(work: Any, jobs: Any, *, on_event: Any, **_: Any) -> None:
        for attempt in (1, 2, 3):
            on_event(Event("died", 1, attempt))

    monkeypatch.setattr(parallel, "run_jobs", run_jobs)
    with pytest.raises(CurvactError, match="shard 1 died 3 times"):
        _expected(workers=2)


def test_what_workers_cannot_take_is_said(tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4]

    x, y = torch.rand(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(CurvactError, match=r"does not pickle.*use workers=1"):
        ensemble(
            Local().eval(),
            x,
            y,
            ThreatModel("linf", 0.1),
            attacks=["apgd-ce"],
            shard_size=2,
            workers=2,
            folder=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from curvact.data import load
from curvact.attacks import ThreatModel
from curvact.attacks import ensemble
model = torch.load(sys.argv[3], weights_only=False)
test = load("digits").test
x, y = test.inputs(slice(0, 20)), test.labels[:20]
def tell(progress):
    print(progress.attack, flush=True)
ensemble(model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce", "apgd-t", "fab-t", "square"], steps=8, queries=40,
    shard_size=6, seed=2, folder=sys.argv[1], on_progress=tell)
"""


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    model, x, y, whole = _expected()
    saved, folder = tmp_path / "model.pt", tmp_path / "run"
    torch.save(model, saved)
    process = _python(KILLED, folder, tmp_path, saved, tmp_path=tmp_path)
    assert process.stdout is not None
    for _ in range(7):
        assert process.stdout.readline(), process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    stored = len(list(folder.glob("*.safetensors")))
    assert 7 <= stored < 20
    resumed = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=6, seed=2, folder=folder)
    _same(whole, resumed)
    assert resumed.units_resumed == stored
    assert resumed.gradient_evaluations == whole.gradient_evaluations
    again = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=6, seed=2, folder=folder)
    _same(whole, again)
    assert again.units_resumed == 20
    told = json.loads((folder / "result.json").read_text())
    assert told["robust_accuracy"] == whole.robust_accuracy
    assert told["name"] == whole.name
    assert not list(folder.glob("*.tmp"))


def _folder(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    model, (x, y) = _net(), _data(8)
    arguments = {
        "model": model,
        "x": x,
        "y": y,
        "threat_model": ThreatModel("linf", 0.15),
        "attacks": ["apgd-ce", "apgd-t"],
        "steps": 4,
        "shard_size": 4,
        "folder": tmp_path / "run",
    }
    ensemble(**arguments)
    return tmp_path / "run", arguments


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "swapped"])
def test_a_damaged_file_is_run_again(tmp_path: Path, damage: str) -> None:
    folder, arguments = _folder(tmp_path)
    before = ensemble(**arguments)
    assert before.units_resumed == 6
    file = folder / "shard-00001.apgd-ce.safetensors"
    data = file.read_bytes()
    spoilt = {
        "truncated": data[:-7],
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "empty": b"",
        "swapped": (folder / "shard-00000.apgd-ce.safetensors").read_bytes(),
    }[damage]
    file.write_bytes(spoilt)
    after = ensemble(**arguments)
    _same(before, after)
    assert after.units_resumed == 4
    assert after.notes[0] == "shard-00001.apgd-ce.safetensors was damaged and is run again"
    assert file.read_bytes() != spoilt


def test_a_stored_success_is_checked_too(tmp_path: Path) -> None:
    """A file that claims, with a right checksum, what does not hold."""
    folder, arguments = _folder(tmp_path)
    before = ensemble(**arguments)
    run = config_hash(json.loads((folder / "autoattack.json").read_text())["config"])
    file = folder / "shard-00000.apgd-ce.safetensors"
    unit = read_unit(file.read_bytes(), run, 0, "apgd-ce")
    assert unit is not None
    robust = before.robust[:4].nonzero().squeeze(1)[:1]
    clean = arguments["x"][robust]
    for lie in (clean, 1 - clean, clean * math.nan):
        forged = replace(unit, index=robust, x_adv=lie, y_adv=torch.tensor([1]))
        file.write_bytes(write_unit(forged, run))
        after = ensemble(**arguments)
        _same(before, after)
        assert "damaged" in after.notes[0]


def test_an_address_in_the_printed_form_is_no_other_network() -> None:
    class Printed(nn.Module):
        def __init__(self, what: object) -> None:
            super().__init__()
            self.what = what

        def extra_repr(self) -> str:
            return f"what={self.what}"

    one, other = Printed(lambda: 0), Printed(lambda: 0)
    assert str(one) != str(other)
    assert hash_network(one) == hash_network(other) != hash_network(Printed(3))


def test_another_run_in_the_folder_is_said(tmp_path: Path) -> None:
    folder, arguments = _folder(tmp_path)
    x = arguments["x"].clone()
    x[0, 0, 0, 0] = 0.5
    changed = _net("rctaf(curvature=6)")
    for change, words in (
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"threat_model": ThreatModel("linf", 0.2)}, "epsilon is 0.15 there and 0.2 here"),
        ({"attacks": ["apgd-ce"]}, "attacks is "),
        ({"shard_size": 2}, "shard_size is 4 there and 2 here"),
        ({"batch_size": 2}, "batch_size is null there and 2 here"),
        ({"mode": "fast"}, "mode is plain there and fast here"),
        ({"x": x}, "data is "),
        ({"model": changed}, "model is "),
    ):
        with pytest.raises(CurvactError, match=words) as caught:
            ensemble(**{**arguments, **change})
        assert "\n" not in str(caught.value)
    hidden = _net().__class__(*_net())  # same weights and print; the forward pass is not seen in either

    def doubled(x: Tensor) -> Tensor:
        return 2 * type(hidden).forward(hidden, x)

    hidden.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(CurvactError, match="same weights, but other logits"):
        ensemble(**{**arguments, "model": hidden.eval()})
    (folder / "autoattack.json").write_text("{")
    with pytest.raises(CurvactError, match="damaged"):
        ensemble(**arguments)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(CurvactError, match="not empty"):
        ensemble(**{**arguments, "folder": other})
    with pytest.raises(CurvactError, match="cannot use"):
        ensemble(**{**arguments, "folder": other / "thesis.tex" / "run"})
    with pytest.raises(CurvactError, match=r"an nn\.Module"):
        ensemble(**{**arguments, "model": lambda x: _net()(x), "folder": tmp_path / "third"})


# What is said.


def test_only_a_whole_version_is_called_autoattack() -> None:
    names = [
        ensemble_name(version, version_steps(version, "linf", 10), "fp32")
        for version in ("standard", "plus", "rand")
    ]
    assert names == ["AutoAttack", "AutoAttack (plus)", "AutoAttack (rand)"]
    for attacks in (ALL, ["apgd-ce"], ["square", "fab"]):
        steps = chosen_steps(attacks, "linf", 10, steps=100, queries=5000)
        assert ensemble_name(None, steps, "fp32") == " + ".join(attacks)
    short = chosen_steps(ALL, "linf", 10, steps=10, queries=5000)
    assert (
        ensemble_name(None, short, "fp32")
        == "apgd-ce(10 steps) + apgd-t(10 steps) + fab-t(10 steps) + square"
    )
    assert [step.targets for step in version_steps("standard", "linf", 5)] == [0, 4, 4, 0]


def test_fewer_than_ten_classes() -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 5)).eval()
    x = torch.rand(6, 1, 5, 5, generator=g)
    y = model(x).argmax(1)
    for mode in ("plain", "fast"):
        _assert_sound(ensemble(model, x, y, ThreatModel("linf", 0.05), **SMALL, mode=mode), model, x, y)
    three = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).eval()
    with pytest.raises(CurvactError, match=r"apgd-t of version 'standard' needs 4 classes.*has 3"):
        autoattack(three, x, torch.zeros_like(y), ThreatModel("linf", 0.05))
    ensemble(three, x, torch.zeros_like(y), ThreatModel("linf", 0.05), attacks=["apgd-ce", "fab-t"], steps=3)


def test_progress_tells_where_the_run_stands() -> None:
    model, (x, y) = _net(), _data()
    seen: list[Progress] = []
    verdict = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=8, on_progress=seen.append)
    assert [p.attack for p in seen] == ["clean", *ALL] * 3
    assert [p.points_done for p in seen] == [0] * 4 + [8] * 5 + [16] * 5 + [20]
    assert [p.shards_done for p in seen[::5]] == [0, 1, 2]
    assert seen[-1].robust_accuracy == verdict.robust_accuracy
    assert seen[-1].seconds_left == 0
    assert math.isnan(seen[0].seconds_left)
    assert all(p.seconds_left > 0 for p in seen[1:-1])
    assert str(seen[-1]).startswith("20/20 points, robust accuracy so far")
    json.dumps(verdict.as_dict())
    assert "20 points" in str(verdict)


class _Noisy(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out + 0.01 * torch.randn_like(out)  # type: ignore[no-any-return]


class _Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        share = (x > 0.5).float().flatten(1).mean(1)
        return torch.stack([0.5 - share, share - 0.5], 1)


class _Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(x[:, 0, 0, 0] > 0.5, torch.nan, 1.0)
        return torch.stack([sign + x.flatten(1).sum(1), -sign], 1)


def test_suspect_models_are_warned_of() -> None:
    x, y = _data(6)
    model = _net()
    small: dict[str, Any] = {"attacks": ["apgd-ce"], "steps": 2}
    with pytest.warns(SuspectModelWarning, match="probabilities"):
        verdict = ensemble(
            nn.Sequential(model, nn.Softmax(1)).eval(), x, y, ThreatModel("linf", 0.01), **small
        )
    assert "probabilities" in verdict.suspicions[0]
    with pytest.warns(SuspectModelWarning, match="change from call to call"):
        ensemble(_Noisy(model).eval(), x, y, ThreatModel("linf", 0.01), **small)
    model.train()
    try:
        with pytest.warns(SuspectModelWarning, match="training mode: .*; attacked in evaluation mode"):
            trained = ensemble(model, x, y, ThreatModel("linf", 0.01), **small)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    _same(trained, ensemble(model, x, y, ThreatModel("linf", 0.01), **small))


def test_what_a_randomized_model_draws_depends_on_the_seed_alone() -> None:
    """Neither on the caller's generator, which is left alone, nor on who does the work."""
    x, y = _data(12)
    # torch's own, so that workers can load it; it draws its windows in evaluation mode too.
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5), nn.Flatten(), nn.Linear(25, 10)).eval()
    with torch.no_grad():
        model[2].weight.normal_(generator=torch.Generator().manual_seed(0))
        model[2].bias.zero_()
        y = model(x).argmax(1)
        assert not torch.equal(model(x), model(x))
    found = []
    for outside, processes, mode in ((1, 1, "plain"), (2, 2, "plain"), (3, 1, "fast"), (4, 2, "fast")):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # its outputs change
            found.append(
                ensemble(
                    model,
                    x,
                    y,
                    ThreatModel("linf", 0.05),
                    attacks=["apgd-ce", "square"],
                    steps=3,
                    queries=5,
                    shard_size=6,
                    workers=processes,
                    mode=mode,  # type: ignore[arg-type]
                )
            )
        assert torch.equal(torch.get_rng_state(), state)
    assert 0 < found[0].robust_accuracy < 1
    for one, other in (found[:2], found[2:]):
        assert one.broken_by == other.broken_by
        assert torch.equal(one.x_adv, other.x_adv)
        assert torch.equal(one.y_adv, other.y_adv)
        assert torch.equal(one.loss, other.loss)


def test_rand_on_a_model_without_chance_is_warned_of() -> None:
    x, y = _data(2)
    with pytest.warns(SuspectModelWarning, match="leaves out FAB-T and Square"):
        autoattack(_net(), x, y, ThreatModel("linf", 0.3), version="rand", mode="fast")


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_model_that_cuts_the_graph_is_attacked_and_said(mode: Any) -> None:
    """Class 1 if most pixels are above ½: gradients are blind, Square is not."""
    x = torch.full((4, 1, 12, 12), 0.52)
    x[2:] = 0.9
    y = torch.ones(4, dtype=torch.int64)
    said = ["only Square sees anything", "Square took"]
    if mode == "fast":  # the reference looks for zero gradients of the DLR loss only
        said.append("zero gradient")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verdict = ensemble(
            _Rounded().eval(),
            x,
            y,
            ThreatModel("linf", 0.1),
            attacks=["apgd-ce", "fab", "square"],
            steps=3,
            queries=200,
            mode=mode,
        )
    assert verdict.broken_by == ("square", "square", None, None)
    assert all(any(words in str(w.message) for w in caught) for words in said)
    assert len(verdict.suspicions) == len(said)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_not_a_number_is_no_right_answer(mode: Any) -> None:
    """Of 40 images the last 5 have NaN logits, past those that the first look sees; class 0 is what argmax would say."""
    x, y = (
        torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(40, dtype=torch.int64),
    )
    x[35:, 0, 0, 0] = 1.0
    x[:35, 0, 0, 0] = 0.0
    with pytest.warns(SuspectModelWarning, match="logits of 5 points.*NaN"):
        verdict = ensemble(
            _Undefined().eval(), x, y, ThreatModel("linf", 1e-3), attacks=["apgd-ce"], steps=2, mode=mode
        )
    assert verdict.broken_by == (None,) * 35 + ("clean",) * 5
    assert verdict.y_adv.tolist() == [0] * 35 + [-1] * 5


@pytest.mark.slow
def test_a_randomized_model_runs_by_the_rand_version() -> None:
    x, y = _data(6)
    for mode in ("plain", "fast"):
        verdict = autoattack(_Noisy(_net()).eval(), x, y, ThreatModel("linf", 0.1), version="rand", mode=mode)  # type: ignore[arg-type]
        assert verdict.name == "AutoAttack (rand)"
        assert not verdict.suspicions


X, Y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": X - 0.5}, r"images lie in \[-0"),
        ({"x": X * math.nan}, "images lie in"),
        ({"x": X.double()}, "float64: float32 in"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X[0]}, "N×C×H×W"),
        ({"y": Y[:3]}, r"int64 of shape \(4,\)"),
        ({"y": Y.float()}, "torch.float32"),
        ({"y": Y + 7}, "labels lie in 7 … 10, the model has 10 classes"),
        ({"y": Y - 1}, "labels lie in -1"),
        ({"threat_model": ThreatModel("linf", 0.0)}, "epsilon=0"),
        ({"version": "standart"}, "did you mean 'standard'"),
        ({"version": "custom"}, "subsets run by `ensemble`"),
        ({"mode": "quick"}, "mode='quick'"),
        ({"precision": "fp16"}, "precision='fp16'.*did you mean"),
        ({"precision": "bf16"}, "need mode='fast'"),
        ({"compiled": True}, "need mode='fast'"),
        ({"precision": "bf16", "mode": "fast", "version": "rand"}, "only fp32"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"workers": 0}, "workers=0"),
        ({"threads": 0}, "threads=0"),
        ({"devices": "cpu"}, "a list of at least one"),
        ({"devices": []}, "a list of at least one"),
        ({"devices": ["gpu0"]}, "unknown device 'gpu0'"),
        ({"devices": ["cuda:99"]}, "is not there"),
        ({"model": nn.Flatten()}, "labels lie in|4 classes"),
        ({"model": nn.Identity()}, "outputs have shape"),
        ({"model": lambda x: x.flatten(1) * math.inf}, "NaN or infinity"),
        ({"model": lambda x: x.flatten(1).half()}, "logits are torch.float16"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()},
            "parameter '1.weight' is torch.float64",
        ),
        (
            {"x": X.repeat(1, 1, 2, 2)[..., :14, :14], "threat_model": ThreatModel("l2", 0.5)},
            "cannot tile 14×14",
        ),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], words: str) -> None:
    pool = nn.AdaptiveAvgPool2d(8)
    model = nn.Sequential(pool, nn.Flatten(), nn.Linear(64, 10)).eval()
    arguments = {"model": model, "x": X, "y": Y, "threat_model": ThreatModel("linf", 0.1), **change}
    if change.get("model") is not None and isinstance(change["model"], nn.Flatten):
        arguments["y"] = Y + 60 + 1
    with pytest.raises(CurvactError, match=words) as caught:
        autoattack(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": []}, "at least one of"),
        ({"attacks": "square"}, "a list"),
        ({"attacks": ["apgd-ce", "apgd-ce"]}, "each attack once"),
        ({"attacks": ["apgd"]}, "unknown attack 'apgd'; did you mean"),
        ({"attacks": ["square"], "queries": 0}, "queries=0"),
        ({"attacks": ["square"], "version": "plus"}, "takes no 'version'"),
    ],
)
def test_bad_ensembles_are_one_clear_line(change: dict[str, Any], words: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(CurvactError, match=words):
        ensemble(model, X, Y, ThreatModel("linf", 0.1), **change)


def test_the_default_settings_of_both_are_one() -> None:
    assert list(AutoAttackSettings.__annotations__) == [f.name for f in fields(_Settings)]
