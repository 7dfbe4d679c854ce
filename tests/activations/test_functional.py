"""Functional forms against the modules of the same parameters, and their gradients against finite
differences.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import curvact
from curvact.activations import activation
from curvact.activations import functional as A
from curvact.errors import CurvactError

CASES: list[tuple[str, dict[str, float], dict[str, Any]]] = [
    # function, parameters that may be tensors, other parameters
    *(("rctaf", {"alpha": 2.5}, {"beta": beta}) for beta in range(4)),
    ("rcraf", {"alpha": 2.5}, {}),
    ("rcraf", {"alpha": 2.5, "gamma": 1.25}, {}),
    ("softplus", {"beta": 2.5}, {}),
    ("swish", {"beta": 2.5}, {}),
    ("squareplus", {"b": 0.3}, {}),
    ("power_gate", {"alpha": 2.5}, {"n": 3}),
    ("gelu", {"alpha": 2.5}, {}),
    ("mish", {"alpha": 2.5}, {}),
    *((name, {"alpha": 0.5}, {}) for name in ("prelu", "pelu", "prelu_plus", "reblu")),
    *((name, {"alpha": -2.5}, {}) for name in ("psilu", "psoftplus")),
    ("ssilu", {"beta": 0.25}, {}),
    ("pssilu_fixed", {"alpha": -2.5, "beta": -0.25}, {}),
    ("pssilu", {"alpha": -2.5, "beta": -0.25}, {}),
    ("ctu", {"beta": 0.6, "c": 0.3}, {}),
]


def module(name: str, parameters: dict[str, Any]) -> torch.nn.Module:
    written = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    return activation(f"{name.replace('power_gate', 'powergate')}({written})").double().requires_grad_(False)


@pytest.mark.parametrize(("name", "scales", "others"), CASES)
def test_values_are_those_of_the_module(name: str, scales: dict[str, float], others: dict[str, Any]) -> None:
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    function = getattr(A, name)
    want = module(name, {**scales, **others})(x)
    assert torch.equal(function(x, **scales, **others), want)
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in scales.items()}
    # A tensor's 1/√b or β/(1 − β) may round otherwise than a number's.
    torch.testing.assert_close(function(x, **tensors, **others), want, rtol=1e-14, atol=1e-15)
    # A value for each channel: C×1×1 against N×C×H×W.
    channels = {key: value.expand(3, 1, 1) for key, value in tensors.items()}
    maps = x[:300].view(5, 3, 4, 5)
    torch.testing.assert_close(
        function(maps, **channels, **others), want[:300].view(maps.shape), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize(("name", "scales", "others"), CASES)
def test_gradients_of_x_and_of_the_parameters(
    name: str, scales: dict[str, float], others: dict[str, Any]
) -> None:
    def call(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = getattr(A, name)(x, **dict(zip(scales, values, strict=True)), **others)
        return out

    x = torch.tensor([-2.1, -0.4, 0.3, 0.8, 1.9], dtype=torch.float64, requires_grad=True)
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in scales.values()]
    assert gradcheck(call, (x, *values), check_forward_ad=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: A.rctaf(x, 0.0), "alpha=0.0 in rctaf: alpha must be a finite number > 0"),
        (lambda x: A.rctaf(x, 1.0, beta=4), "beta=4 in rctaf"),
        (lambda x: A.squareplus(x, -1.0), "b=-1.0 in squareplus"),
        (lambda x: A.psilu(x, 0.0), "alpha=0.0 in psilu: alpha must not be 0"),
        (lambda x: A.pssilu(x, 1.0, 1.0), "beta=1.0 in pssilu"),
        (lambda x: A.swish(x.long()), "int64"),
    ],
)
def test_bad_numbers_are_one_clear_line(call: Any, message: str) -> None:
    with pytest.raises(CurvactError, match=message):
        call(torch.zeros(2))


def test_they_are_in_the_public_names() -> None:
    assert curvact.functional is A
    assert torch.equal(
        curvact.functional.rctaf(torch.ones(2), 16.0, beta=1),
        activation("rctaf(curvature=6, beta=1)")(torch.ones(2)),
    )
