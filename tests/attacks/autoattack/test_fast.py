"""Fast mode against closed forms, the paper, the reference's helpers and plain mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from curvact.attacks import (
    SuspectModelWarning,
    ThreatModel,
    autoattack,
    ensemble,
    pgd,
)
from curvact.attacks.autoattack import search, shard, square
from curvact.attacks.autoattack.apgd import checkpoints
from curvact.attacks.autoattack.ensemble import chosen_steps, ensemble_name, version_steps
from curvact.attacks.autoattack.fab import onto_plane
from curvact.attacks.autoattack.shard import allowed
from curvact.attacks.threat import ball
from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.folding import folded

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}


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
    assert_sound: Any, norm: Any, dual: float, epsilon: float, mode: Any, attack: str
) -> None:
    """Away from the box's walls a linear model is broken exactly where its distance to a wall is
    below ε.
    """
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
    result = ensemble(model, x, y, ThreatModel(norm, epsilon), attacks=[attack], steps=40, mode=mode)
    assert torch.equal(result.robust[clear], expected[clear])
    assert_sound(result, model, x, y)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fast_mode_is_sound_and_no_weaker_where_it_can_be_known(
    net: Any, images: Any, assert_sound: Any, norm: Any
) -> None:
    """On 60 points the two modes, which draw other random starts, differ by the few points at the
    edge.
    """
    model, (x, y) = net(), images(60)
    threat = ThreatModel(norm, EPSILON[norm])
    budget: dict[str, Any] = {"attacks": ALL, "steps": 10, "queries": 60}
    fast = ensemble(model, x, y, threat, **budget, mode="fast", batch_size=16)
    plain = ensemble(model, x, y, threat, **budget)
    assert_sound(fast, model, x, y)
    assert fast.clean_accuracy == plain.clean_accuracy
    assert abs(fast.robust_accuracy - plain.robust_accuracy) <= 2 / 60
    assert "1 batch norm folded, channels last" in fast.notes[0]
    if norm == "linf":
        assert fast.forward_evaluations + 2 * fast.gradient_evaluations < (
            plain.forward_evaluations + 2 * plain.gradient_evaluations
        )


@pytest.mark.filterwarnings("ignore::curvact.attacks.SuspectModelWarning")
def test_a_masked_gradient_does_not_mislead(net: Any, images: Any) -> None:
    """PGD on the cross-entropy takes the model for robust; the ensembles do not."""
    model, (x, y) = net("hard"), images()
    threat = ThreatModel("linf", 0.1)
    x_adv = pgd(model, x, y, threat, steps=20, step=0.2, start="none")
    weak = float((model(x_adv).argmax(1) == y).float().mean())
    true = ensemble(net(), x, y, threat, attacks=["apgd-t"], steps=20).robust_accuracy
    for mode in ("plain", "fast"):
        assert (
            ensemble(model, x, y, threat, attacks=["apgd-ce", "apgd-t"], steps=20, mode=mode).robust_accuracy
            <= true + 0.051
        )
    assert weak > true + 0.1


def test_fast_mode_does_not_depend_on_batch_or_shard_size(net: Any, images: Any) -> None:
    model, (x, y) = net(), images(16)
    results = [
        ensemble(model, x, y, ThreatModel(norm, EPSILON[norm]), **SMALL, mode="fast", seed=1, **sizes)
        for norm in ("linf", "l2")
        for sizes in ({"batch_size": 64}, {"batch_size": 5, "shard_size": 11})
    ]
    for first, other in (results[:2], results[2:]):
        assert other.broken_by == first.broken_by
        # The convolutions round otherwise in other batches, and sign(gradient) can amplify that: not bit
        # by bit. Another seed moves pixels of 9 (linf) and 10 (l2) of the 16 images by more than this.
        moved = (other.x_adv - first.x_adv).abs().flatten(1).amax(1) > 1e-3
        assert float(moved.float().mean()) < 0.5


@pytest.mark.filterwarnings("ignore::curvact.attacks.SuspectModelWarning")
def test_a_lying_twin_breaks_nothing(
    net: Any, images: Any, assert_sound: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speed cannot invent a success: the plain model has the last word."""
    model, (x, y) = net(), images()
    honest = ensemble(model, x, y, ThreatModel("linf", 1e-4), **SMALL)
    monkeypatch.setattr(shard, "search_twin", lambda model, *a, **k: (lambda x: -model(x), []))
    lied = ensemble(model, x, y, ThreatModel("linf", 1e-4), **SMALL, mode="fast")
    assert lied.robust_accuracy == honest.robust_accuracy == honest.clean_accuracy
    assert_sound(lied, model, x, y)


def test_less_memory_halves_the_batch(net: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = net(), images()
    whole = shard.apgd

    def scarce(*arguments: Any, batch_size: int, **more: Any) -> int:
        if batch_size > 5:
            raise torch.OutOfMemoryError
        return whole(*arguments, batch_size=batch_size, **more)

    monkeypatch.setattr(shard, "apgd", scarce)
    result = ensemble(
        model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=4, mode="fast", batch_size=16
    )
    assert "batch size halved to 4: out of memory" in result.notes
    monkeypatch.setattr(shard, "apgd", lambda *a, **k: scarce(*a, **{**k, "batch_size": 9}))
    with pytest.raises(CurvactError, match="out of memory at batch size 1"):
        ensemble(model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=4, mode="fast")


def test_search_in_bf16_is_named_and_looks_twice(net: Any, images: Any, assert_sound: Any) -> None:
    model, (x, y) = net(), images()
    result = ensemble(
        model, x, y, ThreatModel("linf", 0.1), attacks=["apgd-ce"], steps=8, mode="fast", precision="bf16"
    )
    assert list(result.accuracy_after) == ["clean", "apgd-ce", "apgd-ce (fp32)"]
    assert_sound(result, model, x, y)
    steps = version_steps("standard", "linf", 10)
    assert ensemble_name("standard", steps, "bf16") == "AutoAttack (bf16 search, fp32 second look)"
    square = chosen_steps(["square"], "linf", 10, steps=5, queries=100)
    assert ensemble_name(None, square, "bf16") == "square(100 queries) (bf16 search)"


@pytest.mark.slow
def test_compiled_search_agrees(net: Any, images: Any, assert_sound: Any) -> None:
    model, (x, y) = net(), images()
    compiled = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, mode="fast", compiled=True)
    assert_sound(compiled, model, x, y)
    assert (
        compiled.robust_accuracy
        == ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, mode="fast").robust_accuracy
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Square took")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fast_and_plain_agree_at_full_budgets(net: Any, images: Any, norm: Any) -> None:
    model, (x, y) = net(), images(200)
    threat = ThreatModel(norm, EPSILON[norm])
    fast, plain = autoattack(model, x, y, threat, mode="fast"), autoattack(model, x, y, threat)
    assert abs(fast.robust_accuracy - plain.robust_accuracy) <= 0.005
    assert fast.name == plain.name == "AutoAttack"


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
    """A model without any gradient: the class is whether one corner is darker than 0.5 by more than
    0.05.
    """

    class Stairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = (x[:, :, :3, :3].mean((1, 2, 3)) * 200).round() / 200
            return (
                torch.stack([mean, torch.full_like(mean, 0.45), *[torch.zeros_like(mean)] * 2], 1)
                + 0 * x.sum()
            )

    x = torch.full((4, 1, 8, 8), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    result = ensemble(
        Stairs().eval(), x, y, ThreatModel("linf", 0.1), attacks=["square"], queries=300, mode="fast"
    )
    assert result.robust_accuracy == 0
    assert set(result.broken_by) == {"square"}
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


@given(norm=st.sampled_from(["linf", "l2"]), seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
@settings(max_examples=25)
def test_the_step_to_a_plane_is_that_of_the_reference(norm: str, seed: int, scale: float) -> None:
    """As short, and as near to the plane; where the plane misses the box any point that comes as
    near is as good.
    """
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
        assert not bool(allowed(spoilt, x, ball(norm, 100.0)))
