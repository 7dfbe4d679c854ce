"""AWP's and SAM's perturbations against numpy and by hand, exact restoration, scale, and bad
gradients.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.errors import CurvactError
from curvact.random import generator
from curvact.training.methods.perturbation import add, awp, carried, restore, sam

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
import weight_perturbations as reference


def _net(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Weights of four, two and one dimensions, biases, a parameter with another name; all with
    gradients.
    """
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).to(dtype)
    model.scale = nn.Parameter(torch.ones(2, 2, dtype=dtype))
    random = generator(seed, "net")
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=dtype)
        p.grad = torch.randn(p.shape, generator=random, dtype=dtype)
    return model


def _values(model: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    named = dict(model.named_parameters())
    return (
        {name: p.detach().double().numpy() for name, p in named.items()},
        {name: p.grad.double().numpy() for name, p in named.items()},
    )


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.floats(1e-4, 10),
    scale=st.sampled_from([1.0, 65536.0, 1e-30, 1e30]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_both_are_the_formulas_whatever_the_scale_of_the_loss(
    seed: int, size: float, scale: float, dtype: torch.dtype
) -> None:
    """At 1e±30 the squares of float32 gradients overflow or vanish."""
    model = _net(dtype, seed)
    weights, gradients = _values(model)
    for p in model.parameters():
        p.grad.mul_(scale)
    names = {id(p): name for name, p in model.named_parameters()}
    close = {
        "rtol": 1e-12 if dtype == torch.float64 else 1e-5,
        "atol": 0.0,
    }  # roundings of a sum of 54 squares
    for pairs, expected in (
        (awp(model.named_parameters(), size), reference.awp(weights, gradients, size)),
        (sam(model.parameters(), size), reference.sam(gradients, size)),
    ):
        found = {names[id(p)]: nu for p, nu in pairs}
        assert found.keys() == expected.keys()
        for name, nu in found.items():
            assert nu.dtype == dtype
            np.testing.assert_allclose(nu.double().numpy(), expected[name], **close)


def test_which_tensors_awp_perturbs() -> None:
    model = _net()
    pairs = awp(model.named_parameters())
    assert [p is q for (p, _), q in zip(pairs, (model[0].weight, model[3].weight), strict=True)] == [True] * 2
    for p, nu in pairs:
        assert float(nu.norm() / p.detach().norm()) == pytest.approx(0.01, rel=1e-12)
        assert float((nu * p.grad).sum() / nu.norm() / p.grad.norm()) == pytest.approx(1, rel=1e-12)
    model[0].weight.grad = None
    assert len(awp(model.named_parameters())) == 1
    assert len(sam(model.parameters())) == 6
    assert sam(nn.Linear(2, 2).parameters()) == []


def test_a_quadratic_by_hand() -> None:
    """f(w) = ½(3w₁² + w₂²) at (1, 4): gradient (3, 4), norm 5."""
    for method in ("awp", "sam"):
        model = nn.Linear(2, 1, bias=False).double()
        model.weight.data = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
        curvatures = torch.tensor([3.0, 1.0], dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def backward() -> None:
            optimizer.zero_grad()  # noqa: B023
            (0.5 * curvatures * model.weight**2).sum().backward()  # noqa: B023

        backward()
        pairs = (
            sam(model.parameters(), rho=0.5) if method == "sam" else awp(model.named_parameters(), gamma=0.5)
        )
        length = 0.5 if method == "sam" else 0.5 * 17**0.5
        nu = length * torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        torch.testing.assert_close(pairs[0][1], nu, rtol=1e-14, atol=0)
        add(pairs)
        backward()
        if method == "sam":
            restore(pairs)
        optimizer.step()
        if method == "awp":
            add(pairs, -1)
        start = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
        expected = start - 0.1 * curvatures * (start + nu)
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_restoring_is_exact_where_subtracting_is_not(dtype: torch.dtype) -> None:
    model = _net(dtype)
    before = copy.deepcopy(model)
    pairs = sam(model.parameters(), 30.0)
    add(pairs)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    restore(pairs)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    add(pairs)
    add(pairs, -1)
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_a_parameter_knows_what_it_carries() -> None:
    model = _net()
    pairs = sam(model.parameters())
    assert [carried(p) for p, _ in pairs] == [None] * 7
    add(pairs)
    assert all(carried(p) is nu for p, nu in pairs)
    assert all(carried(p) is None for p in copy.deepcopy(model).parameters())
    restore(pairs)
    assert [carried(p) for p, _ in pairs] == [None] * 7
    add(pairs)
    add(pairs, -1)
    assert [carried(p) for p, _ in pairs] == [None] * 7
    values = [p.detach().clone() for p, _ in pairs]
    add(pairs[:3])
    with pytest.raises(CurvactError, match="carries no perturbation"):
        restore(pairs)
    assert carried(pairs[0][0]) is not None
    assert all(torch.equal(p, v) for (p, _), v in zip(pairs[3:], values[3:], strict=True))


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_bad_gradients_give_no_perturbation(bad: float) -> None:
    model = _net()
    weight = model[0].weight
    if bad:
        weight.grad[0, 0, 0, 0] = bad
    else:
        weight.grad.zero_()
    pairs = awp(model.named_parameters())
    assert torch.equal(pairs[0][1], torch.zeros_like(weight))
    assert float(pairs[1][1].norm()) > 0
    if not bad:
        for p in model.parameters():
            p.grad.zero_()
    for p, nu in sam(model.parameters()):
        assert torch.equal(nu, torch.zeros_like(p))


def test_nothing_is_read_back_from_the_device() -> None:
    """Meta tensors have no values: whatever asked for one would fail."""
    model = nn.Linear(3, 2, device="meta")
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    for pairs in (awp(model.named_parameters()), sam(model.parameters())):
        add(pairs)
        restore(pairs)
        add(pairs)
        add(pairs, -1)


def test_gradients_are_left_alone() -> None:
    model = _net()
    before: list[Tensor] = [p.grad.clone() for p in model.parameters()]
    add(sam(model.parameters()))
    awp(model.named_parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_bad_arguments_are_one_line() -> None:
    model = _net()
    with pytest.raises(CurvactError, match=r"gamma of awp is -1: a number >= 0"):
        awp(model.named_parameters(), -1)
    with pytest.raises(CurvactError, match=r"rho of sam is 'x': a number >= 0"):
        sam(model.parameters(), "x")  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match=r"sign=2 of a perturbation: 1 or -1"):
        add([], 2)
