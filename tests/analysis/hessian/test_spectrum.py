"""Trace, ends and density of the spectrum against dense eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.analysis import Loss, SpectralDensity, spectral_density, top_eigenvalues, trace
from curvact.analysis.hessian.spectrum import extreme_eigenvalues, lanczos_quadrature
from curvact.analysis.products import Operator
from curvact.errors import CurvactError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> tuple[nn.Module, Tensor, Tensor]:
    """Convolution, batch norm in eval mode, a smooth activation and a classifier: 65 parameters in
    float64.
    """
    g = seeded(1)
    layers = [
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.Softplus(beta=3),
        nn.Flatten(),
        nn.Linear(12, 2),
    ]
    model = nn.Sequential(*layers).double()
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.7)
    x = torch.randn(8, 1, 4, 4, generator=g, dtype=torch.float64)
    return model.eval(), x, torch.randint(2, (8,), generator=g)


def dense(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def value(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in names.values()])
        named = {n: part.view(p.shape) for (n, p), part in zip(names.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    return torch.func.hessian(value)(flat)


def symmetric(size: int, seed: int) -> Tensor:
    a = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return a + a.T


def times(h: Tensor) -> Operator:
    return lambda rows: rows @ h


# ---- of a model ----


def test_trace_exact_and_by_probes() -> None:
    model, x, y = network()
    d = dense(model, x, y).diagonal()
    exact = trace(Loss(model, x, y), exact=True)
    assert exact.value == pytest.approx(d.sum().item(), rel=1e-10)
    assert exact.mean_eigenvalue == pytest.approx(d.mean().item(), rel=1e-10)
    start = 0
    for name, p in model.named_parameters():
        assert exact.by_parameter[name][0] == pytest.approx(
            d[start : start + p.numel()].sum().item(), abs=1e-10
        )
        start += p.numel()
    for deflation in (0, 6):
        got = trace(Loss(model, x, y), probes=100, deflation=deflation, generator=seeded(2))
        assert got.probes == 100
        assert got.standard_error > 0
        assert abs(got.value - exact.value) <= 4 * got.standard_error
        for name, (value, error) in got.by_parameter.items():
            assert abs(value - exact.by_parameter[name][0]) <= 4.5 * error + 1e-9, name
    some = trace(Loss(model, x, y, batch_size=3), relative_error=0.05, generator=seeded(3))
    assert some.standard_error <= 0.05 * abs(some.value)
    assert abs(some.value - exact.value) <= 0.2 * abs(exact.value)


def test_deflation_makes_the_trace_less_noisy() -> None:
    model, x, y = network()
    errors = [
        trace(Loss(model, x, y), probes=40, deflation=m, generator=seeded()).standard_error for m in (0, 8)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_top_eigenvalues_of_both_ends_and_their_vectors() -> None:
    model, x, y = network()
    h = dense(model, x, y)
    true = torch.linalg.eigvalsh(h)
    got = top_eigenvalues(Loss(model, x, y), count=3, ends="both", tolerance=1e-8, generator=seeded())
    assert got.converged
    # A residual r bounds the error by r, and by about r²/gap.
    torch.testing.assert_close(
        torch.tensor(got.largest, dtype=torch.float64), true.flip(0)[:3], rtol=1e-7, atol=1e-10
    )
    torch.testing.assert_close(
        torch.tensor(got.smallest, dtype=torch.float64), true[:3], rtol=1e-6, atol=1e-9
    )
    values = torch.tensor([*got.largest, *got.smallest], dtype=torch.float64)
    residuals = (got.vectors @ h - values[:, None] * got.vectors).norm(dim=1)
    torch.testing.assert_close(
        got.vectors @ got.vectors.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10
    )
    said = torch.tensor([*got.largest_residuals, *got.smallest_residuals], dtype=torch.float64)
    torch.testing.assert_close(residuals, said, rtol=1e-3, atol=1e-9)
    parts = top_eigenvalues(Loss(model, x, y, batch_size=3), generator=seeded())
    assert parts.smallest == ()
    assert parts.largest[0] == pytest.approx(true[-1].item(), rel=1e-3)
    single = top_eigenvalues(Loss(model.float(), x.float(), y), ends="both", generator=seeded())
    # Three digits, in float32.
    assert single.largest[0] == pytest.approx(true[-1].item(), rel=1e-3)
    assert single.smallest[0] == pytest.approx(true[0].item(), rel=1e-3)


def test_uneven_batches_give_the_spectrum_of_all_data_at_once() -> None:
    model, x, y = network()
    pieces = list(zip(torch.split(x, 5), torch.split(y, 5), strict=True))  # 5 and 3 images
    exact, batched = trace(Loss(model, x, y), exact=True), trace(Loss(model, batches=pieces), exact=True)
    assert batched.value == pytest.approx(exact.value, rel=1e-10)
    some, again = (
        trace(Loss(model, **data), probes=8, generator=seeded())  # type: ignore[arg-type]
        for data in ({"x": x, "y": y}, {"batches": lambda: iter(pieces)})
    )
    assert (again.value, again.standard_error) == pytest.approx((some.value, some.standard_error), rel=1e-8)
    ends, same = (
        top_eigenvalues(Loss(model, **data), ends="both", tolerance=1e-8, generator=seeded())  # type: ignore[arg-type]
        for data in ({"x": x, "y": y}, {"batches": pieces})
    )
    assert same.largest + same.smallest == pytest.approx(ends.largest + ends.smallest, rel=1e-7)
    density, other = (
        spectral_density(Loss(model, **data), probes=2, steps=8, generator=seeded())  # type: ignore[arg-type]
        for data in ({"x": x, "y": y}, {"batches": pieces})
    )
    # Rounding grows along Lanczos steps.
    torch.testing.assert_close(other.nodes, density.nodes, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(other.weights, density.weights, rtol=1e-6, atol=1e-8)


def test_density_has_the_moments_and_the_shape_of_the_eigenvalues() -> None:
    model, x, y = network()
    true = torch.linalg.eigvalsh(dense(model, x, y))
    got = spectral_density(Loss(model, x, y), probes=60, steps=40, generator=seeded())
    torch.testing.assert_close(got.weights.sum(1), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-10)
    for power in (1, 2, 3):
        value, error = got.mean(lambda t, power=power: t**power)  # type: ignore[misc]
        assert abs(value - (true**power).mean().item()) <= 4 * error
    # All eigenvalues but the ends are near 0, where the distribution jumps: compared at gaps.
    gaps = true.diff()
    at = (true[:-1] + gaps / 2)[gaps > 0.02 * (true[-1] - true[0])]
    assert len(at) >= 3
    share = torch.stack([(true <= a).double().mean() for a in at])
    # 60 probes of 65 entries: each share is known to about √(2·share(1−share)/65/60) < 0.012.
    torch.testing.assert_close(got.below(at), share, rtol=0, atol=0.05)


# ---- of any symmetric matrix ----


@settings(max_examples=25)
@given(size=st.integers(1, 12), seed=st.integers(0, 10**6), steps=st.integers(1, 12))
def test_quadrature_is_exact_for_low_powers(size: int, seed: int, steps: int) -> None:
    h = symmetric(size, seed)
    h = h / (h.norm() + 1e-300)
    v = torch.randn(size, generator=seeded(seed + 1), dtype=torch.float64)
    nodes, weights = lanczos_quadrature(times(h), v, steps)
    assert len(nodes) <= min(size, steps)
    assert weights.min() >= 0
    u, w = v / v.norm(), v / v.norm()
    for power in range(2 * min(steps, size)):
        # Eigenvalues are at most 1 in size: sums of powers keep the rounding of the matrix.
        assert (weights * nodes**power).sum().item() == pytest.approx((u @ w).item(), abs=1e-11)
        w = h @ w


def test_full_quadrature_gives_every_eigenvalue_and_the_weight_of_the_vector_on_it() -> None:
    h = symmetric(9, 4)
    values, vectors = torch.linalg.eigh(h)
    v = torch.randn(9, generator=seeded(5), dtype=torch.float64)
    nodes, weights = lanczos_quadrature(times(h), v, 20)
    torch.testing.assert_close(nodes, values, rtol=0, atol=1e-10)
    torch.testing.assert_close(weights, (v @ vectors) ** 2 / (v @ v), rtol=0, atol=1e-10)
    # In an invariant subspace it ends.
    nodes, weights = lanczos_quadrature(times(h), vectors[:, 2] + vectors[:, 6], 20)
    torch.testing.assert_close(nodes, values[[2, 6]], rtol=0, atol=1e-9)


def test_density_of_a_known_spectrum_is_its_smoothed_histogram() -> None:
    """400 eigenvalues from a half circle and two outliers; the density is compared with the widened
    true one.
    """
    angles = (torch.arange(398, dtype=torch.float64) + 0.5) / 398
    bulk = 2 * (2 * angles - 1) * (1 - 0.3 * (2 * angles - 1).abs())
    true = torch.cat([bulk, torch.tensor([6.0, 9.0], dtype=torch.float64)])
    q = torch.linalg.qr(torch.randn(400, 400, generator=seeded(), dtype=torch.float64)).Q
    h = q @ true.diag() @ q.T
    signs = torch.randint(2, (20, 400), generator=seeded(1)).double() * 2 - 1
    found = [lanczos_quadrature(times(h), v, 50) for v in signs]
    density = SpectralDensity(torch.stack([n for n, _ in found]), torch.stack([w for _, w in found]), 400)
    grid = torch.linspace(-3, 10, 400, dtype=torch.float64)
    width = 0.25
    smooth = torch.exp(-(((grid[:, None] - true) / width) ** 2) / 2).mean(1) / (
        width * math.sqrt(2 * math.pi)
    )
    got = density.density(grid, width)
    step = (grid[1] - grid[0]).item()
    assert got.sum().item() * step == pytest.approx(1, abs=0.01)
    # The area between two densities: 20 probes of 400 entries leave about 2 %.
    assert (got - smooth).abs().sum().item() * step < 0.05
    value, error = density.mean(torch.exp)
    assert abs(value - true.exp().mean().item()) <= 4 * error


@settings(max_examples=25)
@given(size=st.integers(2, 40), seed=st.integers(0, 10**6), count=st.integers(1, 2), room=st.integers(0, 4))
def test_extreme_eigenvalues_of_random_matrices_with_restarts(
    size: int, seed: int, count: int, room: int
) -> None:
    h = symmetric(size, seed)
    true = torch.linalg.eigvalsh(h)
    for ends in ("largest", "smallest", "both"):
        wanted = count * (2 if ends == "both" else 1)
        if wanted > size:
            continue
        got = extreme_eigenvalues(
            times(h),
            torch.randn(size, generator=seeded(seed), dtype=torch.float64),
            count=count,
            ends=ends,  # type: ignore[arg-type]
            tolerance=1e-7,
            max_products=5000,
            basis=min(size, 2 * wanted + 4 + room),
            generator=seeded(),
        )
        assert got.converged
        largest = got.largest if ends != "smallest" else ()
        # A residual of 1e-7 of the largest bounds the error of some eigenvalue; random matrices
        # hide none.
        close = 1e-6 * true.abs().max().item()
        assert np.allclose(largest, true.flip(0)[: len(largest)], rtol=0, atol=close)
        assert np.allclose(got.smallest, true[: len(got.smallest)], rtol=0, atol=close)


def test_invariant_subspaces_low_rank_and_zero() -> None:
    h = torch.diag(torch.tensor([5.0, 5.0, 3.0, 0, 0, 0, 0, -1], dtype=torch.float64))
    start = torch.zeros(8, dtype=torch.float64)
    start[0] = 1
    got = extreme_eigenvalues(times(h), start, count=2, ends="both", tolerance=1e-9, generator=seeded())
    assert got.largest == pytest.approx((5, 5), abs=1e-8)
    assert got.smallest == pytest.approx((-1, 0), abs=1e-8)
    zero = extreme_eigenvalues(times(h * 0), start + 1, count=1, ends="both", generator=seeded())
    assert zero.largest == zero.smallest == (0.0,)
    short = extreme_eigenvalues(
        times(symmetric(60, 1)),
        torch.ones(60, dtype=torch.float64),
        max_products=8,
        tolerance=1e-12,
        generator=seeded(),
    )
    assert not short.converged
    assert short.products == 8


def test_bad_input_is_named() -> None:
    model, x, y = network()
    cases = [
        (trace, {"probes": 1}, "probes=1 in trace: at least 2"),
        (trace, {"generator": None}, "generator=None in trace"),
        (trace, {"relative_error": 0.0}, "relative_error=0.0"),
        (trace, {"relative_error": 0.1, "max_probes": 1}, "max_probes=1 in trace: it must be at least 2"),
        (trace, {"deflation": -2}, "deflation=-2"),
        (top_eigenvalues, {"count": 0}, "count=0"),
        (top_eigenvalues, {"count": 40, "ends": "both"}, "count=40"),
        (top_eigenvalues, {"ends": "top"}, "ends='top'"),
        (top_eigenvalues, {"tolerance": 0.0}, "tolerance=0.0"),
        (top_eigenvalues, {"basis": 3}, "basis=3"),
        (top_eigenvalues, {"max_products": 2}, "max_products=2"),
        (spectral_density, {"steps": 0}, "steps=0"),
        (spectral_density, {"probes": 0}, "probes=0"),
    ]
    for function, options, message in cases:
        with pytest.raises(CurvactError, match=message) as error:
            function(Loss(model, x, y), **{"generator": seeded(), **options})  # type: ignore[operator]
        assert "\n" not in str(error.value)
