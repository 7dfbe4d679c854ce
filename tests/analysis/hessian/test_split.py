"""The split of the Hessian diagonal against dense Hessians of models with straightened activations,
built here by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvact.activations import activation, activation_names
from curvact.analysis import Loss, diagonal_split, split_vectors
from curvact.analysis.hessian.ggn import NotByExample, ggn_diagonal, output_hessian
from curvact.errors import CurvactError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic from a seed, away from 0 and 1, in float64; activations
    keep theirs.
    """
    g = seeded(seed)
    model.double()
    for module in model.modules():
        if hasattr(module, "slope"):
            continue
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in named:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=g, dtype=torch.float64)
                fan = tensor[0].numel() if tensor.dim() > 1 else 2
                tensor.data.copy_(
                    0.5 + noise.abs() if "running_var" in name else noise * 1.5 / math.sqrt(fan)
                )
    return model


class Block(nn.Module):
    """Convolution (weight sharing), batch norm, a residual sum, and one activation module called
    twice.
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 2, 2, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.norm2 = nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))) + x)


def network(act: nn.Module, seed: int = 0) -> nn.Module:
    """The activation is called three times: '1', 'act' of the block twice. P = 54."""
    layers = [
        nn.Conv2d(1, 2, 2, bias=False),
        act,
        Block(act),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(2, 3),
    ]
    return fill(nn.Sequential(*layers), seed).eval()


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    g = seeded(7)
    return torch.randn(n, 1, 3, 3, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def dense(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[..., Tensor] = F.cross_entropy,
    skip: str = "nothing",
) -> Tensor:
    """The whole Hessian in all parameters but those whose name contains `skip`."""
    names = {n: p for n, p in model.named_parameters() if skip not in n}
    flat = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def value(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in names.values()])
        named = {n: part.view(p.shape) for (n, p), part in zip(names.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, named, (x,)), y)

    result: Tensor = torch.func.hessian(value)(flat)
    return result


def dense_by_rows(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same by double backward, for what torch.func refuses: batch norm in train mode, fused
    attention.
    """
    params = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [
        torch.autograd.grad(g, params, retain_graph=True, allow_unused=True, materialize_grads=True)
        for g in gradient
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


class Straight(nn.Module):
    """An activation whose calls are straight lines through remembered points, but for one call."""

    def __init__(self, act: nn.Module, bent: int | None) -> None:
        super().__init__()
        self.inner = [act]  # no submodule: its parameters are not the model's
        self.bent = bent
        self.points: list[Tensor] = []
        self.values: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.calls = 0
        self.remember = True

    def forward(self, x: Tensor) -> Tensor:
        act = self.inner[0]
        if self.remember:
            at = x.detach().clone().requires_grad_()
            value = act(at * 1)
            (slope,) = torch.autograd.grad(value.sum(), at)
            self.points.append(at.detach())
            self.values.append(value.detach())
            self.slopes.append(slope)
            return act(x)
        number, self.calls = self.calls % len(self.points), self.calls + 1
        if number == self.bent:
            return act(x)
        return self.values[number] + self.slopes[number] * (x - self.points[number])


def straightened(
    build: Callable[[nn.Module], nn.Module], act: nn.Module, x: Tensor, bent: int | None
) -> nn.Module:
    straight = Straight(act, bent)
    model = build(straight)
    model(x)
    straight.remember = False
    return model


# Sparta is a convolution and a gate: not elementwise.
FAMILIES = [name for name in activation_names() if not name.endswith("doctest") and name != "sparta"]


PIECEWISE_LINEAR = {"relu", "leaky_relu", "prelu", "prelu_plus", "reblu"}
"""At their default parameters."""


@pytest.mark.parametrize(
    "name",
    [*FAMILIES, "rctaf(curvature=6, beta=2)", "swish(curvature=3, learnable=True)", "reblu(alpha=0.7)"],
)
def test_split_equals_dense_hessians_for_every_family(name: str) -> None:
    x, y = batch()
    act = activation(name).double()
    model = network(act)
    h = dense(model, x, y, skip="alpha").diagonal()
    parts = split_vectors(Loss(model, x, y))
    # Float64: 1e-10 of the largest entry, rounding is a thousand times below.
    close = 1e-10 * h.abs().max().item()
    assert parts.holds
    assert list(parts.sites) == ["1", "2.act", "2.act#2"]
    torch.testing.assert_close(parts.diagonal, h, rtol=0, atol=close)
    assert parts.mixed.abs().max() <= close
    h0 = dense(straightened(network, act, x, None), x, y).diagonal()
    torch.testing.assert_close(parts.ggn, h0, rtol=0, atol=close)
    for number, c in enumerate(parts.sites.values()):
        one = dense(straightened(network, act, x, number), x, y).diagonal()
        torch.testing.assert_close(c, one - h0, rtol=0, atol=close)
        if name in PIECEWISE_LINEAR:
            assert not c.any()
        elif number == 0:
            assert c.any()


def test_modules_of_torch_and_functional_calls_are_call_sites_too() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.act = nn.SELU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = F.silu(self.one(x))
            z = self.two(h * 1)
            self.act(z)  # in place, its result thrown away
            h += z  # written to after F.silu has returned it
            return self.three((torch.tanh(h) + 0.1).relu_())

    model = fill(Functional())
    g = seeded(3)
    x, y = torch.randn(6, 4, generator=g, dtype=torch.float64), torch.randint(2, (6,), generator=g)
    parts = split_vectors(Loss(model, x, y))
    assert list(parts.sites) == [":silu", "act", ":tanh", ":relu"] or len(parts.sites) == 4
    assert parts.holds
    scale = parts.diagonal.abs().max().item()
    assert parts.mixed.abs().max() <= 1e-10 * scale
    torch.testing.assert_close(parts.diagonal, dense(model, x, y).diagonal(), rtol=0, atol=1e-10 * scale)
    bent = [c.abs().max().item() > 1e-3 * scale for c in parts.sites.values()]
    assert bent == [True, True, True, False]


def test_ggn_diagonal_equals_its_definition() -> None:
    x, y = batch(6)
    model = network(nn.Tanh())
    names = dict(model.named_parameters())

    def outputs(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    jacobians = torch.func.jacrev(outputs, argnums=tuple(range(len(names))))(
        *(p.detach() for p in names.values())
    )
    j = torch.cat([row.reshape(6 * 3, -1) for row in jacobians], 1)
    out = model(x).detach()
    weighted = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    losses = {
        "cross entropy": F.cross_entropy,
        "not convex": lambda o, t: (torch.sin(o).sum(1) * (t + 1)).mean(),
        "linear": lambda o, t: (o * weighted).sum(1).mean(),
    }
    for name, loss in losses.items():
        h_l = torch.func.hessian(lambda o, loss=loss: loss(o.view(6, 3), y))(out.reshape(-1))
        truth = torch.einsum("ap,ab,bp->p", j, h_l, j)
        for batch_size in (None, 4):
            got = ggn_diagonal(Loss(model, x, y, loss=loss, batch_size=batch_size))
            # Float64; the roots of the eigenvalues cost half the digits of those that are nearly 0.
            torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-12, msg=name)


class NoRules(torch.autograd.Function):
    """sin, differentiable backward only: no jvp, no vmap."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return grad * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NoRules.apply(x)


class TorchSine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_operations_without_rules_for_forward_mode_and_vmap_take_the_slow_way() -> None:
    x, y = batch()
    results = []
    for kind in (Sine, TorchSine):
        model = network(kind())
        exact = split_vectors(Loss(model, x, y), match=kind)
        probed = diagonal_split(Loss(model, x, y), match=kind, generator=seeded(), probes=16)
        results.append((exact, probed))
    for field in ("diagonal", "ggn"):
        torch.testing.assert_close(
            getattr(results[0][0], field), getattr(results[1][0], field), rtol=1e-9, atol=1e-13
        )
    for a, b in zip(results[0][0].sites.values(), results[1][0].sites.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    a, b = (result[1].total for result in results)
    assert a.curvature.value == pytest.approx(b.curvature.value, rel=1e-9)
    assert a.base.value == pytest.approx(b.base.value, rel=1e-9)


def test_exact_result_has_the_shares_of_the_vectors() -> None:
    x, y = batch()
    model = network(nn.SiLU())
    v = split_vectors(Loss(model, x, y))
    for by in ("layer", "parameter"):
        split = diagonal_split(Loss(model, x, y), exact=True, by=by)
        assert split.probes == 0
        assert split.residual is not None
        assert split.residual < 1e-12
        places = {"total": torch.ones(len(v.diagonal), dtype=torch.bool)}
        start = 0
        for name, size in v.names.items():
            key = name if by == "parameter" else name.rpartition(".")[0]
            places.setdefault(key, torch.zeros(len(v.diagonal), dtype=torch.bool))[start : start + size] = (
                True
            )
            start += size
        for key, where in places.items():
            layer = split.total if key == "total" else split.layers[key]
            d, g = v.diagonal[where], v.ggn[where]
            c = sum(site[where] for site in v.sites.values())
            assert layer.parameters == where.sum()
            assert layer.diagonal.value == pytest.approx(d.norm().item(), rel=1e-12)
            assert layer.base.value == pytest.approx(g.norm().item(), rel=1e-12)
            assert layer.curvature.value == pytest.approx(c.norm().item(), rel=1e-9)
            assert layer.base_share.value == pytest.approx((g @ d / (d @ d)).item(), rel=1e-9)
            assert layer.base_share.value + layer.curvature_share.value == pytest.approx(1, abs=1e-12)
            if c.any():
                assert layer.cosine.value == pytest.approx(
                    (F.cosine_similarity(g, c, dim=0)).item(), rel=1e-9
                )
            for name, site in layer.sites.items():
                own = v.sites[name][where]
                assert site.norm.value == pytest.approx(own.norm().item(), rel=1e-9)
                assert site.share.value == pytest.approx((own @ d / (d @ d)).item(), rel=1e-9)
            shares = sum(site.share.value for site in layer.sites.values())
            assert shares == pytest.approx(layer.curvature_share.value, abs=1e-12)
    # A layer sees the call sites before it only.
    assert list(split.layers["2.conv2.weight"].sites) == ["2.act#2"]
    assert list(split.layers["5.weight"].sites) == []
    assert list(split.layers["0.weight"].sites) == ["1", "2.act", "2.act#2"]


def test_relu_is_all_ggn() -> None:
    x, y = batch()
    for act in (nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.PReLU()):
        split = diagonal_split(Loss(network(act), x, y), generator=seeded(), probes=16)
        assert split.holds
        assert split.total.curvature.value == 0
        assert split.total.base_share.value == pytest.approx(1, abs=1e-12)
        assert split.total.diagonal.standard_error == pytest.approx(0, abs=1e-6)
        assert all(site.share.value == 0 for site in split.total.sites.values())


# ---- the estimate ----


def scores(got: object, true: object) -> list[float]:
    """Errors in standard errors of everything that a layer holds."""
    out = []
    for name in ("diagonal", "base", "curvature", "base_share", "curvature_share", "cosine"):
        a, b = getattr(got, name), getattr(true, name)
        if math.isfinite(b.value) and a.standard_error > 1e-9:
            out.append((a.value - b.value) / a.standard_error)
    for site, part in got.sites.items():  # type: ignore[attr-defined]
        for name in ("share", "norm"):
            a, b = getattr(part, name), getattr(true.sites[site], name)  # type: ignore[attr-defined]
            if a.standard_error > 1e-9:
                out.append((a.value - b.value) / a.standard_error)
    return out


def test_estimates_agree_with_the_exact_split_within_their_errors() -> None:
    x, y = batch()
    model = network(nn.SiLU())
    truth = diagonal_split(Loss(model, x, y), exact=True)
    all_scores: list[float] = []
    for seed in range(3):
        got = diagonal_split(Loss(model, x, y), probes=96, generator=seeded(seed))
        assert got.holds
        assert got.probes == 96
        assert got.sites == truth.sites
        assert list(got.total.sites) == list(truth.total.sites)
        assert got.loss == pytest.approx(truth.loss)
        assert got.total.base.value == pytest.approx(truth.total.base.value, rel=1e-9)  # exact
        shares = sum(s.share.value for s in got.total.sites.values())
        assert shares == pytest.approx(got.total.curvature_share.value, abs=1e-12)
        assert got.total.base_share.value + shares == pytest.approx(1, abs=1e-12)
        for name in ("0", "2.conv1", "2.norm1"):
            all_scores += scores(got.layers[name], truth.layers[name])
        all_scores += scores(got.total, truth.total)
    # Some 130 correlated scores from standard errors of 15 degrees of freedom (t: 4.1 in a
    # thousand).
    assert max(map(abs, all_scores)) < 6
    assert sum(abs(s) < 2 for s in all_scores) > 0.8 * len(all_scores)
    joined = diagonal_split(Loss(model, x, y), probes=96, generator=seeded(2), by_site=False)
    assert joined.total.sites == {}
    assert joined.total.curvature.value == pytest.approx(got.total.curvature.value, rel=1e-9)


def test_stopping_rule_meets_its_error_or_its_number_of_probes() -> None:
    x, y = batch()
    model = network(activation("swish(curvature=6)"))
    truth = diagonal_split(Loss(model, x, y), exact=True).total.diagonal.value
    some, more = (
        diagonal_split(Loss(model, x, y), relative_error=r, by_site=False, generator=seeded(1))
        for r in (0.2, 0.05)
    )
    for got, r in ((some, 0.2), (more, 0.05)):
        assert got.total.diagonal.standard_error <= r * got.total.diagonal.value
        assert abs(got.total.diagonal.value - truth) <= 5 * r * truth
    assert more.probes > some.probes
    short = diagonal_split(
        Loss(model, x, y), relative_error=1e-9, max_probes=40, generator=seeded(), by_site=False
    )
    assert short.probes == 32


def test_batches_give_the_answer_of_all_data_at_once() -> None:
    x, y = batch(7)
    model = network(nn.GELU())
    pieces = list(zip(torch.split(x, 3), torch.split(y, 3), strict=True))  # 3, 3 and 1 images
    whole = split_vectors(Loss(model, x, y))
    parts = split_vectors(Loss(model, batches=pieces))
    torch.testing.assert_close(parts.diagonal, whole.diagonal, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(parts.ggn, whole.ggn, rtol=1e-9, atol=1e-13)
    for a, b in zip(parts.sites.values(), whole.sites.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    one = diagonal_split(Loss(model, x, y), generator=seeded(), probes=16)
    many = diagonal_split(Loss(model, batches=lambda: iter(pieces)), generator=seeded(), probes=16)
    for a, b in ((one.total, many.total), (one.layers["2.conv1"], many.layers["2.conv1"])):
        for name in ("diagonal", "base", "curvature", "base_share", "cosine"):
            assert getattr(b, name).value == pytest.approx(getattr(a, name).value, rel=1e-8)


# ---- where it does not hold ----


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.last = (nn.Linear(3, 3) for _ in range(4))
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        return self.last(torch.sigmoid(self.left(h)) * self.right(h))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.act, self.last = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.SiLU(),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, 4)
        return self.last(self.act(self.attend(x, x, x, need_weights=False)[0]).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.two(self.act(self.one(x)))))


def norms(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), kind(4), nn.SiLU(), nn.Linear(4, 3))


CASES = {
    "train-mode batch norm": (
        lambda: norms(nn.BatchNorm1d),
        (5, 3),
        True,
        "BatchNorm1d with statistics of the batch",
    ),
    "batch norm without statistics": (
        lambda: norms(lambda n: nn.BatchNorm1d(n, track_running_stats=False)),  # type: ignore[arg-type]
        (5, 3),
        False,
        "BatchNorm1d with statistics of the batch",
    ),
    "layer norm": (lambda: norms(nn.LayerNorm), (5, 3), False, "LayerNorm"),
    "attention": (Attention, (4, 8), False, "MultiheadAttention"),
    "gate": (Gate, (5, 3), False, "first.weight"),
    "tied weights": (Tied, (5, 3), False, "one.weight = two.weight"),
}


@pytest.mark.parametrize("case", CASES)
def test_where_it_does_not_hold_it_says_so_and_reports_h_minus_h0(case: str) -> None:
    make, shape, training, word = CASES[case]
    model = fill(make()).train(training)
    g = seeded(5)
    x, y = torch.randn(shape, generator=g, dtype=torch.float64), torch.randint(3, (shape[0],), generator=g)
    split = diagonal_split(Loss(model, x, y, training=training), exact=True)
    assert not split.holds
    assert any(word in line for line in split.why), split.why
    v = split_vectors(Loss(model, x, y, training=training))
    h = dense_by_rows(model, x, y).diagonal()
    scale = h.abs().max().item()
    torch.testing.assert_close(v.diagonal, h, rtol=0, atol=1e-10 * scale)

    def straight() -> nn.Module:
        act = Straight(nn.SiLU(), None)
        twin = fill(make()).train(training)
        for parent in list(twin.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.SiLU):
                    setattr(parent, name, act)
        twin(x)
        act.remember = False
        return twin

    h0 = dense_by_rows(straight(), x, y).diagonal()
    # c is H − H₀ still, but H₀ is not the GGN.
    torch.testing.assert_close(sum(v.sites.values()), h - h0, rtol=0, atol=1e-9 * scale)
    assert v.mixed.abs().max() > 1e-4 * scale
    assert split.total.base.value == pytest.approx(h0.norm().item(), rel=1e-8)
    got = diagonal_split(Loss(model, x, y, training=training), probes=128, generator=seeded(1))
    assert not got.holds
    assert abs(got.total.base.value - h0.norm().item()) <= 5 * got.total.base.standard_error
    assert abs(got.total.curvature.value - (h - h0).norm().item()) <= 5 * got.total.curvature.standard_error


def test_sparta_is_a_gate_and_no_call_site() -> None:
    def net(*middle: nn.Module) -> nn.Module:
        layers = (nn.Conv2d(1, 2, 2), *middle, nn.Flatten(), nn.Linear(8, 3))
        return fill(nn.Sequential(*layers)).eval()

    x, y = batch()
    gate = activation("sparta(channels=2)")
    alone = diagonal_split(Loss(net(gate), x, y), exact=True)
    assert alone.sites == ()
    assert not alone.holds
    assert any("Sparta" in line for line in alone.why)
    assert alone.total.curvature.value == 0
    assert alone.total.base_share.value == pytest.approx(1)
    both = diagonal_split(Loss(net(nn.Conv2d(2, 2, 1), nn.SiLU(), gate), x, y), generator=seeded(), probes=16)
    assert both.sites == ("2",)
    assert not both.holds
    with pytest.raises(CurvactError, match="not elementwise"):
        diagonal_split(Loss(net(nn.Softmax(1)), x, y), match=nn.Softmax, exact=True)


def test_ggn_refuses_what_mixes_examples() -> None:
    model = fill(norms(lambda n: nn.BatchNorm1d(n, track_running_stats=False)))  # type: ignore[arg-type]
    x, y = torch.randn(5, 3, generator=seeded(), dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(NotByExample):
        ggn_diagonal(Loss(model, x, y))
    with pytest.raises(NotByExample, match="depends on others"):
        output_hessian(lambda out, _: out.mean(0).square().sum(), torch.ones(4, 3), y)
    with pytest.raises(NotByExample, match="200 outputs"):
        output_hessian(F.cross_entropy, torch.ones(2, 200), y[:2])
    # Then diag GGN is estimated, and the split still holds.
    flat = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    pulled = Loss(flat, x, y, loss=lambda out, _: out.mean(0).square().sum() + out.square().mean())
    got = diagonal_split(pulled, probes=128, generator=seeded())
    true = diagonal_split(pulled, exact=True)
    assert got.holds
    assert true.holds
    assert 0 < got.total.base.standard_error < 0.2 * true.total.base.value
    assert max(map(abs, scores(got.total, true.total))) < 5


# ---- models and their state; bad input ----


class Keeps(nn.Module):
    """Keeps what went through it, and counts."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def test_the_model_is_left_as_it_was() -> None:
    x, y = batch()
    model = nn.Sequential(network(activation("swish(curvature=3, learnable=True)").double()), Keeps())
    model.train()
    model[0][2].norm1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    diagonal_split(Loss(model, x, y), generator=seeded(), probes=16)
    diagonal_split(Loss(model, x, y, training=True), exact=True)
    with pytest.raises(CurvactError):
        diagonal_split(Loss(model, x * math.nan, y), generator=seeded())
    assert [m.training for m in model.modules()].count(False) == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_activation_parameters_are_not_counted_and_others_can_be_left_out() -> None:
    x, y = batch()
    model = network(activation("swish(curvature=3, learnable=True)").double())
    everything = sum(p.numel() for p in model.parameters())
    parts = split_vectors(Loss(model, x, y))
    assert len(parts.diagonal) == everything - 1
    assert "1.alpha" not in parts.names
    fewer = split_vectors(Loss(model, x, y, exclude=["0.weight"]))
    torch.testing.assert_close(fewer.diagonal, parts.diagonal[8:], rtol=1e-10, atol=1e-14)


def test_float32_is_close_to_float64() -> None:
    x, y = batch()
    precise = diagonal_split(Loss(network(nn.SiLU()), x, y), generator=seeded(), probes=16)
    single = diagonal_split(Loss(network(nn.SiLU()).float(), x.float(), y), generator=seeded(), probes=16)
    assert single.holds
    # Float32 rounding through six layers.
    for name in ("diagonal", "base", "curvature"):
        assert getattr(single.total, name).value == pytest.approx(
            getattr(precise.total, name).value, rel=1e-3
        )


class NotElementwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class Narrowing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Moody(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x * (1 + 0.1 * self.calls)


def test_bad_input_is_named() -> None:
    x, y = torch.randn(4, 3, generator=seeded()), torch.tensor([0, 1, 0, 1])
    net = nn.Sequential(nn.Linear(3, 2), nn.SiLU(), nn.Linear(2, 2))
    cases: list[tuple[nn.Module, dict[str, object], str]] = [
        (net, {"generator": None}, "generator=None"),
        (net, {"by": "site"}, "by='site'"),
        (net, {"probes": 0}, "probes=0"),
        (net, {"relative_error": -1.0}, "relative_error=-1.0"),
        (net, {"relative_error": 0.1, "max_probes": 8}, "max_probes=8"),
        (nn.Linear(3, 2), {}, "no activation"),
        (nn.Sequential(nn.Linear(3, 2), NotElementwise()), {"match": NotElementwise}, "not elementwise"),
        (nn.Sequential(nn.Linear(3, 4), Narrowing()), {"match": Narrowing}, r"not elementwise|maps shape"),
        (nn.Sequential(nn.Linear(3, 2), nn.SiLU(), Moody()), {}, "differ"),
    ]
    for model, options, message in cases:
        given = {"generator": seeded(), **options}
        with pytest.raises(CurvactError, match=message) as error:
            diagonal_split(Loss(model, x, y), **given)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
