from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvact.analysis import Loss, input_flatness, input_gradient, input_spectrum, linearity_error
from curvact.attacks.losses import ce
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError


class Quadratic(nn.Module):
    """½ zᵀA z + bᵀz with z = x − ½, one number an example."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) - 0.5
        return (z @ self.a * z).sum(1) / 2 + z @ self.b


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def symmetric(size: int, seed: int) -> Tensor:
    m = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (m + m.T) / 2


def network(activation: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """Convolution, batch norm with statistics of its own, and a head, in float64 and training mode;
    6 inputs of 2×4×4.
    """
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), activation, nn.Flatten(), nn.Linear(64, 3)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64) * 0.6)
        model[1].running_mean.normal_(generator=random)  # type: ignore[union-attr,operator]
        model[1].running_var.uniform_(0.5, 2, generator=random)  # type: ignore[union-attr,operator]
    x = torch.rand(6, 2, 4, 4, generator=random, dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 2, 0, 1, 2])


def dense(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each example's input Hessian, (N, d, d), in eval mode, by autograd's own function, one
    example at a time.
    """
    model = copy.deepcopy(model).eval()
    size = x[0].numel()
    return torch.stack(
        [
            hessian(lambda one, y=y[i : i + 1]: ce(model(one), y).sum(), x[i : i + 1]).reshape(size, size)  # type: ignore[no-untyped-call]
            for i in range(len(x))
        ]
    )


@pytest.mark.parametrize("activation", [nn.Softplus(), nn.Tanh(), nn.ReLU()], ids=lambda a: type(a).__name__)
def test_the_ends_of_the_spectrum_are_those_of_the_dense_hessian(activation: nn.Module) -> None:
    model, x, y = network(activation)
    values = torch.linalg.eigvalsh(dense(model, x, y))
    found = input_spectrum(Loss(model, x, y), steps=32)  # as many as there are inputs: exact up to rounding
    torch.testing.assert_close(found.top, values[:, -1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.bottom, values[:, 0], rtol=1e-9, atol=1e-10)
    assert (found.residual < 1e-7).all()
    # Fewer steps stay within the spectrum, and an eigenvalue lies within the residual.
    rough = input_spectrum(Loss(model, x, y), steps=6)
    assert (rough.top <= values[:, -1] + 1e-10).all()
    assert (rough.bottom >= values[:, 0] - 1e-10).all()
    assert ((values - rough.top[:, None]).abs().amin(1) <= rough.residual + 1e-10).all()


class Transformer(nn.Module):
    """Torch's own layer, whose fused attention has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean(1))
        return out


def test_torchs_attention_has_an_input_hessian() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer().double()
    x, y = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 2])
    found = input_spectrum(Loss(model, x, y), steps=12)  # as many as there are inputs
    with sdpa_kernel(SDPBackend.MATH):
        values = torch.linalg.eigvalsh(dense(model, x, y))
    torch.testing.assert_close(found.top, values[:, -1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.bottom, values[:, 0], rtol=1e-9, atol=1e-10)


def test_float32_gives_the_same_to_its_precision() -> None:
    model, x, y = network(nn.Softplus())
    values = torch.linalg.eigvalsh(dense(model, x, y))
    found = input_spectrum(Loss(model.float(), x.float(), y), steps=20)
    torch.testing.assert_close(found.top, values[:, -1], rtol=1e-3, atol=1e-4)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 7),
    kind=st.sampled_from(["full", "negative", "scalar", "rank one", "zero"]),
)
def test_any_symmetric_matrix_even_one_whose_krylov_space_ends_early(seed: int, size: int, kind: str) -> None:
    a = symmetric(size, seed)
    if kind == "negative":
        a = a - (torch.linalg.eigvalsh(a)[-1] + 1) * torch.eye(size, dtype=torch.float64)
    elif kind == "scalar":
        a = -2.5 * torch.eye(size, dtype=torch.float64)
    elif kind == "rank one":
        a = -torch.outer(a[0], a[0])
    elif kind == "zero":
        a = torch.zeros(size, size, dtype=torch.float64)
    model = Quadratic(a, a[0].clone())
    found = input_spectrum(
        Loss(model, torch.rand(3, size, dtype=torch.float64), torch.zeros(3), loss=own_loss)
    )
    values = torch.linalg.eigvalsh(a)
    torch.testing.assert_close(found.top, values[-1].expand(3), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.bottom, values[0].expand(3), rtol=1e-8, atol=1e-9)


def test_a_linear_loss_is_flat() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    found = input_flatness(
        Loss(model, x, torch.zeros(3), loss=lambda outputs, y: outputs[:, 0]), {"l2": ThreatModel("l2", 0.1)}
    )
    assert found.top_eigenvalue.tolist() == [0, 0, 0]
    assert (found.linearity_error["l2"] < 1e-15).all()
    weight = model[1].weight.detach()[0]  # type: ignore[union-attr,index]
    torch.testing.assert_close(found.gradient_norm, weight.norm().expand(3))
    torch.testing.assert_close(found.gradient_l1, weight.abs().sum().expand(3))


def test_the_gradient_is_the_closed_form() -> None:
    a, b = symmetric(4, 1), torch.arange(4.0, dtype=torch.float64)
    x = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    expected = ((x.flatten(1) - 0.5) @ a + b).view_as(x)
    torch.testing.assert_close(
        input_gradient(Loss(Quadratic(a, b), x, torch.zeros(5), loss=own_loss)), expected
    )


def test_batch_norm_is_in_eval_mode() -> None:
    model, x, y = network(nn.Softplus())
    whole = input_gradient(Loss(model, x, y))
    alone = torch.cat([input_gradient(Loss(model, x[i : i + 1], y[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("seed", range(3))
def test_the_linearity_error_of_a_quadratic(seed: int) -> None:
    """L2: ½ε² times the largest |eigenvalue|. L∞: the best corner of 2ᵈ, for a matrix of one sign."""
    a = symmetric(5, seed)
    model = Quadratic(a, torch.ones(5, dtype=torch.float64))
    x = 0.5 + 0.2 * (
        torch.rand(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    )
    found = linearity_error(
        Loss(model, x, torch.zeros(2), loss=own_loss), ThreatModel("l2", 0.2), steps=60, restarts=8
    )
    exact = 0.5 * 0.2**2 * torch.linalg.eigvalsh(a).abs().max()
    assert (found <= exact * (1 + 1e-12)).all()
    # A lower bound: the ascent is slow where the two largest |eigenvalues| are close.
    assert (found >= 0.95 * exact).all()
    definite = a @ a
    corners = 0.1 * np.array(list(itertools.product((-1, 1), repeat=5)))
    best = 0.5 * np.einsum("ni,ij,nj->n", corners, definite.numpy(), corners).max()
    model = Quadratic(definite, torch.ones(5, dtype=torch.float64))
    found = linearity_error(
        Loss(model, x, torch.zeros(2), loss=own_loss), ThreatModel("linf", 0.1), restarts=20
    )
    assert (found <= best * (1 + 1e-12)).all()
    assert (found >= 0.95 * best).all()


def test_the_linearity_error_stays_in_the_box() -> None:
    """At x = 0 the ball is cut: with A = I in one dimension the error is ½ε², on the side of the
    box only.
    """
    seen: list[Tensor] = []

    def watched(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs

    class Watched(Quadratic):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    model = Watched(torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    found = linearity_error(
        Loss(model, torch.zeros(1, 1).double(), torch.zeros(1), loss=watched), ThreatModel("l2", 0.3)
    )
    assert found.item() == pytest.approx(0.045)
    assert all(float(x.min()) >= 0 for x in seen)


def test_everything_of_the_model_stays() -> None:
    model, x, y = network(nn.Softplus())
    model.train()
    model[1].eval()  # type: ignore[union-attr,operator]
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    before = copy.deepcopy(model.state_dict())
    input_flatness(Loss(model, x, y), {"linf": ThreatModel("linf", 0.03)}, ascent_steps=2, lanczos_steps=3)
    assert [m.training for m in model] == [True, False, True, True, True]  # type: ignore[attr-defined]
    assert not model[0].weight.requires_grad  # type: ignore[union-attr]
    assert model[4].weight.requires_grad  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not x.requires_grad


def test_batches_progress_and_the_record() -> None:
    model, x, y = network(nn.Softplus())
    seen: list[tuple[int, int | None]] = []
    threats = {"linf": ThreatModel("linf", 0.03), "l2": ThreatModel("l2", 0.2)}
    found = input_flatness(
        Loss(model, x, y, batch_size=4),
        threats,
        lanczos_steps=32,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    whole = input_flatness(Loss(model, x, y), lanczos_steps=32)
    for name in ("gradient_norm", "gradient_l1", "top_eigenvalue", "bottom_eigenvalue"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    again = input_flatness(Loss(model, x, y, batch_size=4), threats, lanczos_steps=32)
    assert torch.equal(found.linearity_error["l2"], again.linearity_error["l2"])
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["inputs"] == 6
    assert record["radii"] == {"linf": "linf 0.03", "l2": "l2 0.2"}
    top = record["measures"]["top_eigenvalue"]
    assert top["mean"] == pytest.approx(math.fsum(top["values"]) / 6)
    assert top["highest"] == max(top["values"])
    assert found.means()["linearity_error l2"] == pytest.approx(found.linearity_error["l2"].mean().item())


X, Y = torch.rand(2, 3), torch.tensor([0, 1])
BALL = ThreatModel("l2", 0.1)


class Cut(nn.Module):
    """No gradient leads from its outputs to its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def spoiled() -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias[1] = math.nan
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: input_flatness(Loss(nn.Identity(), 2 + X, Y), {"l2": BALL}),
            r"images of linearity_error lie in \[2",
        ),
        (lambda: input_flatness(Loss(spoiled(), X, Y)), "'bias' of the model holds NaN in input_flatness"),
        (
            lambda: input_flatness(Loss(nn.Identity(), X / 0, Y)),
            "the inputs in input_flatness hold NaN or infinity",
        ),
        (
            lambda: input_gradient(Loss(nn.Identity(), X.byte(), Y)),
            "inputs of torch.uint8 in input_gradient: they must be floating point",
        ),
        (lambda: linearity_error(Loss(nn.Identity(), X - 1, Y), BALL), "images of linearity_error lie in"),
        (lambda: input_gradient(Loss(Cut(), X, Y)), "by a differentiable way in input_gradient"),
        (lambda: linearity_error(Loss(Cut(), X, Y), BALL), "by a differentiable way in linearity_error"),
        (
            lambda: input_gradient(Loss(spoiled(), X, Y)),
            "the gradient of example 0 is not finite in input_gradient",
        ),
        (
            lambda: input_spectrum(Loss(spoiled(), X, Y)),
            "the gradient of example 0 is not finite in input_spectrum",
        ),
        (lambda: linearity_error(Loss(spoiled(), X, Y), BALL), "linearity error of example 0 is not finite"),
        (lambda: input_spectrum(Loss(nn.Identity(), X, Y), steps=0), "steps=0 of Lanczos"),
        (lambda: linearity_error(Loss(nn.Identity(), X, Y), ThreatModel("l2", 1), restarts=0), "restarts=0"),
        (
            lambda: input_gradient(Loss(nn.Identity(), X, Y, loss=lambda o, y: o.sum())),
            r"the loss has shape \(\) for 2",
        ),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
