"""Sparta against loops over pixels, Swish at the start, the transforms of torch, and the places
where κ is asked for.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from curvact.activations import (
    Activation,
    Sparta,
    activation,
    activation_parameters,
    as_factory,
    current_curvature,
    default_scope,
    known_curvature,
    max_curvature,
    name_of,
    register,
    swap_activations,
    takes_channels,
)
from curvact.activations.describe import describe
from curvact.errors import CurvactError
from curvact.models import MODELS, build
from curvact.random import generator

VARIANTS = ["depthwise", "full", "agnostic"]
FORMS = [
    *(f"sparta(variant={v}, channels=3)" for v in VARIANTS),
    "sparta(variant=full, norm=True, channels=3)",
]


def made(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Sparta:
    """With parameters drawn at random, so that every tap matters."""
    act = activation(name)
    assert isinstance(act, Sparta)
    random = generator(seed, "test")
    with torch.no_grad():
        for p in act.parameters():
            p.copy_(torch.randn(p.shape, generator=random))
    return act.to(dtype)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64).to(dtype)


def by_loops(act: Sparta, x: np.ndarray) -> np.ndarray:
    """X ⊙ sigmoid(g(X)) pixel by pixel, with zeros around the image."""
    assert act.weight is not None
    w = act.weight.detach().numpy()
    n, c, rows, columns = x.shape
    out = np.zeros_like(x)
    for image in range(n):
        seen = np.stack([x[image].mean(0), x[image].max(0)]) if act.variant == "agnostic" else x[image]
        for channel in range(c):
            for i in range(rows):
                for j in range(columns):
                    g = act.beta.item() * x[image, channel, i, j] if act.beta is not None else 0.0
                    for a in (-1, 0, 1):
                        for b in (-1, 0, 1):
                            if not (0 <= i + a < rows and 0 <= j + b < columns):
                                continue
                            if act.variant == "depthwise":
                                g += w[channel, 0, a + 1, b + 1] * seen[channel, i + a, j + b]
                            else:
                                row = 0 if act.variant == "agnostic" else channel
                                g += (w[row, :, a + 1, b + 1] * seen[:, i + a, j + b]).sum()
                    out[image, channel, i, j] = x[image, channel, i, j] / (1 + np.exp(-g))
    return out


# ---- values ----


@pytest.mark.parametrize("variant", VARIANTS)
@given(c=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_value_is_the_definition(variant: str, c: int, rows: int, columns: int, seed: int) -> None:
    """Also on maps smaller than the kernel."""
    act = made(f"sparta(variant={variant}, channels={c})", seed)
    x = normal(2, c, rows, columns, seed=seed)
    got = act(x).detach()
    # Sums of at most 28 products of numbers of size 1.
    np.testing.assert_allclose(got.numpy(), by_loops(act, x.numpy()), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(act.gate(x).detach() * x, got, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 2.5, -0.75])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_as_swish(variant: str, beta: float, dtype: torch.dtype) -> None:
    act = activation(f"sparta(variant={variant}, beta={beta}, channels=5)").to(dtype)
    x = 4 * normal(3, 5, 6, 7, dtype=dtype)
    # Sums with zeros are exact; the order of the gate's product is left to the convolution.
    want = x * torch.sigmoid(beta * x)
    torch.testing.assert_close(act(x).detach(), want, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


def test_relu_is_the_limit() -> None:
    x = normal(2, 4, 5, 5)
    act = Sparta(4, beta=1e6).double()
    torch.testing.assert_close(act(x).detach(), x.relu(), rtol=0, atol=1e-6)


def test_with_batch_norm_it_starts_as_swish_in_eval_mode() -> None:
    act = Sparta(4, variant="full", beta=2.0, norm=True).double()
    x = 3 * normal(8, 4, 5, 5) + 1
    # Batch norm divides by √(1 + 1e-5).
    torch.testing.assert_close(act.eval()(x).detach(), x * torch.sigmoid(2 * x), rtol=1e-4, atol=1e-4)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True).sqrt()
    want = x * torch.sigmoid(2 * (x - mean) / std)
    torch.testing.assert_close(act.train()(x).detach(), want, rtol=1e-5, atol=1e-5)
    assert act.bn is not None
    assert act.bn.num_batches_tracked == 1


def test_the_attention_alone_would_be_no_swish() -> None:
    """What the docstring says of b = 0 with β in the tap of the mean: Swish only where channels are
    equal.
    """
    act = Sparta(variant="agnostic").double()
    assert act.weight is not None
    with torch.no_grad():
        act.beta.zero_()  # type: ignore[union-attr]
        act.weight[0, 0, 1, 1] = 2.0
    x = normal(2, 3, 4, 4)
    torch.testing.assert_close(act(x), x * torch.sigmoid(2 * x.mean(1, keepdim=True)), rtol=1e-13, atol=0)
    equal = x[:, :1].expand(2, 3, 4, 4)
    torch.testing.assert_close(act(equal), equal * torch.sigmoid(2 * equal), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", FORMS[:3])
def test_vectors_are_images_of_one_pixel(name: str) -> None:
    act = made(name)
    x = normal(4, 3)
    y = act(x)
    assert y.shape == (4, 3)
    assert torch.equal(y, act(x.view(4, 3, 1, 1)).view(4, 3))
    y.sum().backward()
    assert act.weight is not None
    assert act.weight.grad is not None
    around = act.weight.grad.clone()
    around[..., 1, 1] = 0
    assert not around.any()
    assert torch.equal(act(normal(3, 4, 5)), act(normal(3, 4, 5)[None])[0])


# ---- derivatives ----


@pytest.mark.parametrize("name", FORMS)
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    act = made(name)
    x = normal(2, 3, 3, 2).requires_grad_()
    names = [n for n, _ in act.named_parameters()]
    inputs = (x, *(p.detach().clone().requires_grad_() for p in act.parameters()))

    def call(t: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(act, dict(zip(names, parameters, strict=True)), (t,))  # type: ignore[no-any-return]

    if act.bn is not None:
        act.eval()
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=act.bn is None)


@pytest.mark.parametrize("name", FORMS[:3])
def test_functional_transforms(name: str) -> None:
    act = made(name)
    x, v = normal(2, 3, 3, 3), normal(2, 3, 3, 3, seed=2)
    gradient = torch.func.grad(lambda t: act(t).square().sum())
    t = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(act(t).square().sum(), t, create_graph=True)
    torch.testing.assert_close(gradient(x).detach(), want.detach(), rtol=1e-12, atol=1e-13)
    (hvp,) = torch.autograd.grad((want * v).sum(), t)
    _, forward = torch.func.jvp(gradient, (x,), (v,))
    torch.testing.assert_close(forward.detach(), hvp, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(torch.vmap(act)(x), act(x), rtol=1e-13, atol=1e-14)
    parameters = {n: p.detach() for n, p in act.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(act, parameters, (image[None],)).square().sum()  # type: ignore[no-any-return]

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(2):
        alone = torch.autograd.grad(act(x[row : row + 1]).square().sum(), list(act.parameters()))
        for key, one in zip(parameters, alone, strict=True):
            torch.testing.assert_close(per_sample[key][row], one, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    act = made(name).eval()
    x = normal(2, 3, 4, 4).requires_grad_()
    inputs = [x, *act.parameters()]
    y, want = torch.compile(act, fullgraph=True, backend="aot_eager")(x), act(x)
    torch.testing.assert_close(y, want, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(want.sum(), inputs), rtol=1e-11, atol=1e-12
    )


# ---- numbers and layouts ----


@pytest.mark.parametrize("name", FORMS[:3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype, tolerance: float) -> None:
    act = made(name, dtype=torch.float32)
    x = normal(2, 3, 6, 6, dtype=dtype).requires_grad_()
    y = act(x)
    assert y.dtype == dtype
    wide = x.detach().float().requires_grad_()
    want = act(wide)
    # 2⁻¹¹ and 2⁻⁸ relative.
    torch.testing.assert_close(y.float(), want, rtol=tolerance, atol=1e-7)
    got = torch.autograd.grad(y.float().sum(), [x, *act.parameters()])
    expected = torch.autograd.grad(want.sum(), [wide, *act.parameters()])
    assert [g.dtype for g in got] == [dtype, *(p.dtype for p in act.parameters())]
    for g, e in zip(got, expected, strict=True):
        # The gradient of the output and that of the input are rounded, each once.
        torch.testing.assert_close(g.float(), e, rtol=5 * tolerance, atol=5 * tolerance)
    half = made(name, dtype=dtype)
    assert half(x.detach()).dtype == dtype


def test_batch_norm_in_half_precision() -> None:
    for parameters, inputs in ((torch.float32, torch.float16), (torch.float16, torch.float16)):
        act = made(FORMS[3], dtype=parameters)
        x = normal(2, 3, 6, 6, dtype=inputs)
        out = act(x)
        assert out.dtype == inputs
        assert bool(out.isfinite().all())


@pytest.mark.parametrize("name", FORMS)
def test_any_layout_and_large_inputs(name: str) -> None:
    act = made(name).eval()
    x = normal(2, 3, 6, 5)
    want = act(x).detach()
    # Convolutions of other layouts sum in another order.
    last = act(x.to(memory_format=torch.channels_last)).detach()
    torch.testing.assert_close(last, want, rtol=1e-12, atol=1e-14)
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = normal(2, 3, 5, 6).transpose(2, 3)
    torch.testing.assert_close(act(strided), act(strided.contiguous()), rtol=1e-12, atol=1e-14)
    far = torch.full((1, 3, 4, 4), 1e4, requires_grad=True)
    single = made(name, dtype=torch.float32).eval()
    for t in (far, -far):
        y = single(t)
        assert bool(y.isfinite().all())
        assert bool(torch.autograd.grad(y.sum(), far, retain_graph=True)[0].isfinite().all())
    if name != FORMS[3]:
        empty = torch.empty(0, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        act(empty).sum().backward()
        assert empty.grad is not None


# ---- names, and no κ ----


@pytest.mark.parametrize(
    "name",
    [
        *FORMS,
        "sparta",
        "sparta(variant=agnostic, beta=1)",
        "sparta(variant='full', learnable=False, centered=True)",
    ],
)
def test_names_round_trip(name: str) -> None:
    act = activation(name)
    again = activation(str(act))
    assert (type(again), str(again)) == (Sparta, str(act))
    assert [p.tolist() for p in again.parameters()] == [p.tolist() for p in act.parameters()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in act.parameters()]
    assert name_of(act) == str(act)


def test_parameters_are_learned_unless_frozen() -> None:
    assert [tuple(p.shape) for p in activation("sparta(channels=4)").parameters()] == [(4, 1, 3, 3)]
    assert sum(p.numel() for p in activation("sparta(variant=agnostic)").parameters()) == 19
    assert not any(p.requires_grad for p in activation("sparta(channels=4, learnable=False)").parameters())


def test_there_is_no_curvature_and_it_says_so() -> None:
    act = activation("sparta(channels=1)")
    assert isinstance(act, Activation)
    for ask in (
        lambda: act.max_curvature,
        lambda: act.slope(torch.zeros(1)),
        lambda: act.curvature(torch.zeros(1)),
        lambda: describe("sparta"),
        lambda: max_curvature(act),
        lambda: activation("sparta(curvature=6)"),
    ):
        with pytest.raises(CurvactError) as error:
            ask()
        assert "\n" not in str(error.value)
    with pytest.raises(CurvactError, match="has no κ: its gate depends on neighbouring pixels"):
        describe("sparta(variant=agnostic)")
    assert known_curvature(act) is None
    assert current_curvature(nn.Sequential(act)) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation("sparta(variant=ful)"), "variant='ful' in sparta; did you mean 'full'"),
        (lambda: activation("sparta(variant=3)"), "variant=3 in sparta"),
        (
            lambda: activation("sparta(channels=0)"),
            "channels=0 in sparta: channels must be a whole number >= 1",
        ),
        (lambda: activation("sparta(channels=2.5)"), "channels=2.5"),
        (lambda: activation("sparta(beta=full)"), "cannot read a parameter"),
        (lambda: activation("sparta(beta=1e999)"), "beta=inf in sparta"),
        (
            lambda: activation("sparta(norm=True)"),
            "norm=True in sparta: True or False, and True for variant=full only",
        ),
        (lambda: activation("sparta(variant=full, norm=1)"), "norm=1"),
        (
            lambda: activation("sparta")(torch.zeros(1, 3, 4, 4)),
            "does not know its number of channels: write it",
        ),
        (lambda: Sparta(3)(torch.zeros(1, 4, 4, 4)), r"got 4 channels, in a tensor of shape \(1, 4, 4, 4\)"),
        (lambda: Sparta(3)(torch.zeros(5)), r"got a tensor of shape \(5,\)"),
        (lambda: Sparta(3)(torch.zeros(1, 3, 4, dtype=torch.long)), "int64"),
        (
            lambda: swap_activations(nn.Sequential(nn.ReLU()), to="sparta"),
            "needs the number of channels at each place",
        ),
        (lambda: build("vit", activation="sparta"), "this network has a sequence of tokens"),
        (
            lambda: build("vit", activation="sparta(variant=agnostic)"),
            "this network has a sequence of tokens",
        ),
        (
            lambda: build("resnet18", activation="sparta(variant=full, norm=True)", scope="stage"),
            "cannot be shared: use scope='layer', not 'stage'",
        ),
        (
            lambda: build("resnet18", activation="sparta", scope="channel"),
            "scope 'channel' is for scalar parameters",
        ),
        (
            lambda: build("resnet18", activation="sparta(channels=2)")(torch.rand(1, 3, 8, 8)),
            "got 64 channels",
        ),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurvactError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_agnostic_variant_can_be_swapped_in() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3), nn.ReLU())
    swap_activations(model, to="sparta(variant=agnostic)", shared="one")
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 2, 4, 4)
    assert len(activation_parameters(model)) == 2


# ---- in networks ----


def widths(model: nn.Module) -> list[int]:
    return [m.channels for m in model.modules() if isinstance(m, Sparta) and m.channels is not None]


def test_one_gate_a_width_so_that_they_move_from_resnet18_to_resnet34() -> None:
    small, large = (build(name, activation="sparta", width=4) for name in ("resnet18", "resnet34"))
    assert widths(small) == widths(large) == [4, 8, 16, 32]
    assert sum(p.numel() for p in activation_parameters(small)) == 9 * 60
    for p in activation_parameters(small):
        nn.init.normal_(p)
    with torch.no_grad():
        for p, q in zip(activation_parameters(large), activation_parameters(small), strict=True):
            p.copy_(q)
    per_stage = [
        build(name, activation="sparta", width=4, scope="stage") for name in ("resnet18", "resnet34")
    ]
    assert widths(per_stage[0]) == widths(per_stage[1]) == [4, 4, 8, 16, 32]
    assert len(widths(build("resnet18", activation="sparta", width=4, scope="layer"))) == 17
    assert default_scope("sparta") == "network"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit"])
def test_every_convolutional_network_starts_as_with_swish(name: str) -> None:
    sizes = {"width": 2} if not name.startswith("w") else {"widen_factor": 1}
    sizes |= {"depth": 10} if name == "wide_resnet" else {}
    x = torch.rand(2, 3, 8, 8, generator=generator(0, "test"))
    common = {"size": 8, **sizes}

    def made_with(activation: str, **more: str) -> nn.Module:
        model = build(name, activation=activation, generator=generator(0, "weights"), **common, **more)
        return model.double().eval()

    want = made_with("swish(beta=2)")(x.double())
    for variant in VARIANTS:
        for scope in ("network", "stage", "layer"):
            model = made_with(f"sparta(variant={variant}, beta=2)", scope=scope)
            got = model(x.double())
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
            if scope == "network":
                distinct = [m for m in model.modules() if isinstance(m, Sparta)]
                assert len(distinct) == (1 if variant == "agnostic" else len(set(widths(model))))
        got.sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_factories_that_take_channels() -> None:
    """A user's factory, registered or not, is called with the number of channels of each place."""

    class Scaled(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).relu()

    register("scaled_by_channel", Scaled)
    for given_ in ("scaled_by_channel", Scaled, lambda channels: Scaled(channels)):
        model = build("resnet18", activation=given_, width=2, scope="network")
        assert [len(m.scale) for m in model.modules() if isinstance(m, Scaled)] == [2, 4, 8, 16]
        assert model(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(CurvactError, match="lacks the parameter 'channels'"):
        activation("scaled_by_channel")
    assert takes_channels(as_factory("sparta"))
    assert not takes_channels(as_factory("sparta(channels=3)"))
    assert not takes_channels(as_factory("sparta(variant=agnostic)"))


def test_training_moves_every_tap() -> None:
    model = build(
        "small_cnn", activation="sparta", channels=1, size=8, width=2, generator=generator(0, "weights")
    )
    before = [p.detach().clone() for p in activation_parameters(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.rand(16, 1, 8, 8, generator=generator(0, "test"))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(16) % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    *maps, hidden = ((p.detach() - q) for p, q in zip(activation_parameters(model), before, strict=True))
    assert all(bool((change != 0).all()) for change in maps)
    assert bool((hidden != 0).any())
