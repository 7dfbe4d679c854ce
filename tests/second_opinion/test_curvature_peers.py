"""Curvature of others against ours, on one small trained network: curvlinops 3.0.1 and PyHessian
0.1 share no code with us.

`bash tests/second_opinion/setup.sh` makes an environment with the peers and runs this; without them
the tests are skipped. By hand:

    python -m venv V
    echo /path/to/project/.venv/lib/python3.11/site-packages >
    V/lib/python3.11/site-packages/project.pth V/bin/pip install --no-deps
    curvlinops-for-pytorch==3.0.1 pyhessian einops einconv linear-operator tqdm \\
        jaxtyping typeguard backpack-for-pytorch

(--no-deps: backpack and others ask for torchvision, whose wheel breaks a CPU build of torch.)
PyHessian's trace and our estimate
are both random: its products, one for each unit vector, give its trace without noise. Its spectral
density uses torch.eig, which is gone, and is not compared. PyHessian computes in float32.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations import activation
from curvact.analysis import (
    Loss,
    diagonal_norms,
    exact_diagonal,
    ggn_diagonal,
    spectral_density,
    split_vectors,
    top_eigenvalues,
    trace,
)
from curvact.data import load

THREE_DIGITS = 5e-4
Network = tuple[nn.Module, Tensor, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def network() -> Network:
    """Convolutions, batch norm and RCT-AF on digits, trained for a moment, in eval mode; 498
    parameters in float64.
    """
    data = load("digits")
    act = activation("rctaf(curvature=3, beta=1)")
    layers = [
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        act,
        nn.Conv2d(4, 6, 3),
        act,
        nn.AvgPool2d(2),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 10))
    for p in model.parameters():
        if p.dim() > 1:
            p.data.copy_(torch.randn(p.shape, generator=seeded(p.numel())) / math.sqrt(p[0].numel()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(60):
        chosen = torch.arange(64 * step, 64 * step + 64) % 1000
        x, y = data.train.inputs(chosen), data.train.labels[chosen]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.double().eval()
    return model, data.train.inputs(slice(0, 48)).double(), data.train.labels[:48]


def linear_operator(kind: str, network: Network) -> Any:
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = network
    return getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])


def matrix(operator: Any) -> Tensor:
    dense: Tensor = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    return dense


def test_curvlinops_agrees_on_diagonal_trace_and_ends(network: Network) -> None:
    model, x, y = network
    h = matrix(linear_operator("HessianLinearOperator", network))
    d = h.diagonal()
    ours = exact_diagonal(Loss(model, x, y))
    torch.testing.assert_close(ours, d, rtol=0, atol=1e-9 * d.abs().max().item())
    assert trace(Loss(model, x, y), exact=True).value == pytest.approx(d.sum().item(), rel=1e-9)
    found = top_eigenvalues(Loss(model, x, y), count=2, ends="both", tolerance=1e-6, generator=seeded())
    values = torch.linalg.eigvalsh(h)
    assert found.largest == pytest.approx(values.flip(0)[:2].tolist(), rel=THREE_DIGITS)
    assert found.smallest == pytest.approx(values[:2].tolist(), rel=THREE_DIGITS)
    norms = diagonal_norms(Loss(model, x, y), relative_error=0.02, generator=seeded())
    assert abs(norms.rms.value * math.sqrt(len(d)) / d.norm().item() - 1) < 0.08  # 4 standard errors
    estimate = trace(Loss(model, x, y), relative_error=0.02, generator=seeded())
    assert abs(estimate.value / d.sum().item() - 1) < 0.08
    density = spectral_density(Loss(model, x, y), probes=20, steps=60, generator=seeded())
    at = values[-1] / 100
    assert density.below(at).item() == pytest.approx((values <= at).double().mean().item(), abs=0.02)


def test_curvlinops_estimates_agree_within_their_noise(network: Network) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = network
    operator = linear_operator("HessianLinearOperator", network)
    d = exact_diagonal(Loss(model, x, y))
    theirs = curvlinops.hutchinson_diag(operator, num_matvecs=400)
    noise = (matrix(operator) ** 2).sum().sqrt().item() / 20
    assert (theirs - d).norm().item() < 1.5 * noise


def test_curvlinops_agrees_on_the_ggn(network: Network) -> None:
    model, x, y = network
    g = matrix(linear_operator("GGNLinearOperator", network)).diagonal()
    ours = ggn_diagonal(Loss(model, x, y))
    # The square roots of eigenvalues near 0 keep half their digits.
    torch.testing.assert_close(ours, g, rtol=0, atol=1e-7 * g.max().item())
    parts = split_vectors(Loss(model, x, y))
    torch.testing.assert_close(parts.ggn, g, rtol=0, atol=1e-9 * g.max().item())
    assert parts.holds


def test_pyhessian_agrees_on_top_eigenvalue_and_trace(network: Network) -> None:
    pyhessian = pytest.importorskip("pyhessian")
    utils = pytest.importorskip("pyhessian.utils")
    model, x, y = network
    model = nn.Sequential(*model.float().children())
    try:
        with pytest.warns(UserWarning, match="create_graph=True"):
            theirs = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x.float(), y), cuda=False)
        torch.manual_seed(0)  # it draws from the global state
        value = theirs.eigenvalues(maxIter=500, tol=1e-6)[0][0]
        total = 0.0
        for own, unit in ((q, u) for q in theirs.params for u in torch.eye(q.numel())):
            v = [unit.view(q.shape) if q is own else torch.zeros_like(q) for q in theirs.params]
            product = utils.hessian_vector_product(theirs.gradsH, theirs.params, v)
            total += utils.group_product(product, v).item()
        guesses = torch.tensor(theirs.trace(maxIter=300, tol=0.0))
        ours = top_eigenvalues(Loss(model, x.float(), y), generator=seeded())
        mine = trace(Loss(model, x.float(), y), exact=True)
    finally:
        for p in model.parameters():
            p.grad = None
        model.double()
    assert ours.largest[0] == pytest.approx(value, rel=THREE_DIGITS)
    assert mine.value == pytest.approx(total, rel=THREE_DIGITS)
    assert abs(guesses.mean() - mine.value) <= 4 * guesses.std() / math.sqrt(len(guesses))
