"""Convolutions by Winograd against float64 autograd, and networks rewritten with them against
themselves.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.activations import activation
from curvact.attacks.autoattack import fusion, search, windows
from curvact.attacks.autoattack.fusion import acts_as_relu, fused
from curvact.attacks.autoattack.winograd import WinogradConv2d, fits, kernel
from curvact.models import build
from curvact.models.folding import folded

native = pytest.mark.skipif(kernel() is None, reason="no compiler, or neither AVX2 nor AVX-512")


def _close(got: Tensor, truth: Tensor) -> None:
    """The transforms multiply rounding (6e-8) by up to some hundreds: 5e-5 of the largest value is
    above it, and far below 1.
    """
    assert got.shape == truth.shape
    scale = float(truth.abs().max()) + 1e-6
    torch.testing.assert_close(got.double(), truth.double(), rtol=0, atol=5e-5 * scale)


@native
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 5),
    ins=st.sampled_from([1, 3, 16, 32, 80]),
    outs=st.sampled_from([16, 32, 48, 64]),
    height=st.integers(3, 11),
    width=st.integers(3, 11),
    padding=st.integers(0, 2),
    bias=st.booleans(),
    relu=st.booleans(),
    summed=st.booleans(),
)
@settings(max_examples=25)
def test_it_is_the_convolution_and_so_is_its_gradient(
    seed: int,
    count: int,
    ins: int,
    outs: int,
    height: int,
    width: int,
    padding: int,
    bias: bool,
    relu: bool,
    summed: bool,
) -> None:
    g = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(ins, outs, 3, padding=padding, bias=bias)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_(generator=g)
    ours = WinogradConv2d(conv, relu=relu).requires_grad_(False)
    x = torch.randn(count, ins, height, width, generator=g)
    conv = copy.deepcopy(conv).double()
    truth = conv(x.double())
    added = torch.randn(truth.shape, generator=g) if summed else None
    weight = torch.randn(truth.shape, generator=g)
    leaves = [t.clone().requires_grad_() for t in (x, *([] if added is None else [added]))]
    exact = [t.double().detach().requires_grad_() for t in leaves]
    got = ours(*leaves)
    want = conv(exact[0]) + (exact[1] if summed else 0)
    # Where float64 is within rounding of the corner either side is right: the gradient is taken
    # where it is clear.
    clear = (want.abs() > 1e-3 * want.abs().max()) if relu else torch.ones_like(want, dtype=torch.bool)
    want = want.relu() if relu else want
    _close(got.detach(), want.detach())
    with torch.no_grad():
        _close(ours(*leaves), want.detach())
    ours_back = torch.autograd.grad((got * weight * clear).sum(), leaves)
    true_back = torch.autograd.grad((want * weight.double() * clear).sum(), exact)
    for one, other in zip(ours_back, true_back, strict=True):
        _close(one, other)


@native
def test_neither_other_images_nor_threads_alter_a_bit() -> None:
    g = torch.Generator().manual_seed(0)
    conv = WinogradConv2d(nn.Conv2d(32, 48, 3, padding=1), relu=True)
    x = torch.randn(9, 32, 10, 13, generator=g)
    with torch.no_grad():
        whole = conv(x)
        for part in (slice(0, 1), slice(2, 9), slice(4, 6)):
            assert torch.equal(conv(x[part]), whole[part])
        assert torch.equal(conv(x.contiguous(memory_format=torch.channels_last)), whole)
        assert conv(x[:0]).shape == (0, 48, 10, 13)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert torch.equal(conv(x), whole)
        finally:
            torch.set_num_threads(before)
        with pytest.raises(ValueError, match=r"torch\.float64"):
            conv(x.double())
        with pytest.raises(ValueError, match="added"):
            conv(x, torch.zeros(1))


@pytest.mark.parametrize(
    ("conv", "yes"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), True),
        (nn.Conv2d(16, 32, 3), True),
        (nn.Conv2d(3, 16, 3, padding=1), True),
        (nn.Conv2d(16, 24, 3, padding=1), False),
        (nn.Conv2d(24, 16, 3, padding=1), False),
        (nn.Conv2d(16, 512, 3, padding=1), False),
        (nn.Conv2d(16, 16, 3, 2, 1), False),
        (nn.Conv2d(16, 16, 3, padding=1, groups=2), False),
        (nn.Conv2d(16, 16, 3, padding=2, dilation=2), False),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv2d(16, 16, 3, padding="same"), False),
        (nn.Conv2d(16, 16, (3, 1), padding=1), False),
        (nn.Conv2d(16, 16, 3, padding=1).double(), False),
        (nn.Conv2d(16, 16, 5, padding=1), False),
        (nn.Linear(16, 16), False),
        (None, False),
    ],
)
def test_what_fits(conv: nn.Module | None, yes: bool) -> None:
    assert fits(conv) is yes


class _Sums(nn.Module):
    """Sums of every kind around convolutions that fit: in place, of two of them, with its own
    input, broadcast, with a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8))
        self.first, self.last = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 5)
        self.relu, self.copy = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        c: Callable[[int, Tensor], Tensor] = lambda k, h: self.convs[k](h)  # noqa: E731
        h = self.relu(self.first(x))
        h = F.relu(c(0, h) + c(1, h))
        h = c(2, h) + h
        out = self.copy(c(3, h))
        out += h
        h = torch.relu(out)
        h = torch.add(c(4, h), h.mean((2, 3), keepdim=True))
        both = c(5, h)
        h = (both + 1).relu() * both
        h = operator.add(c(6, h), h).clamp(-50, 50)
        h = h + self.copy(self.copy(c(7, F.silu(h))))
        return self.last(h.mean((2, 3)))  # type: ignore[no-any-return]


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "sums":
        return _Sums().requires_grad_(False).eval()
    kind, shape = name.split("/")
    return build(kind, width=16, channels=3, size=32, activation=shape).requires_grad_(False).eval()


@native
@pytest.mark.parametrize(
    ("name", "count", "relus"),
    [
        # relus: those left on their own. ResNet-18: after the three convolutions of stride 2.
        ("resnet18/relu", 14, 3),
        ("resnet18/silu", 14, 0),
        ("preact_resnet18/relu", 14, None),
        ("sums", 8, 2),
    ],
)
def test_a_rewritten_network_is_the_network(name: str, count: int, relus: int | None) -> None:
    with torch.random.fork_rng():
        model = _network(name)
    g = torch.Generator().manual_seed(1)
    base, _ = folded(model, torch.rand(2, 3, 32, 32, generator=g))
    made, found = fused(copy.deepcopy(base), torch.rand(2, 3, 32, 32, generator=g))
    assert found == count
    assert isinstance(made, torch.fx.GraphModule)
    if relus is not None:
        left = [
            node
            for node in made.graph.nodes
            if (node.op == "call_module" and acts_as_relu(made.get_submodule(node.target)))
            or node.target in (F.relu, torch.relu, "relu")
        ]
        assert len(left) == relus
    x = torch.rand(5, 3, 32, 32, generator=g)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    logits, truth = made(leaf), base.double()(exact)
    _close(logits.detach(), truth.detach())
    (ours,) = torch.autograd.grad(logits.square().sum(), leaf)
    (true,) = torch.autograd.grad(truth.square().sum(), exact)
    # A ReLU within rounding of its corner may fall to the other side: the directions agree.
    cosine = F.cosine_similarity(ours.double().flatten(1), true.flatten(1))
    assert float(cosine.min()) > 1 - 1e-6
    with torch.no_grad():
        _close(made(x[:1]), truth[:1].detach())


@native
def test_windows_know_it() -> None:
    """The rewritten network at small changes, against itself; one convolution has a sum and a ReLU
    of windows.
    """
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = _network("resnet18/relu")
    x = torch.rand(3, 3, 32, 32, generator=g)
    base, _ = folded(model, x)
    made, _ = fused(base, x)
    small = windows.windowed(made, x, made)
    assert small is not None
    small.begin(x)
    for top, left in ((0, 0), (14, 9), (29, 29)):
        patch = torch.rand(2, 3, 3, 3, generator=g)
        rows = torch.tensor([0, 2])
        changed = x.clone()
        changed[rows, :, top : top + 3, left : left + 3] = patch
        with torch.no_grad():
            _close(small.logits(rows, (top, top + 3, left, left + 3), patch), model(changed)[rows])
        reached = [n for n, change in small._changes.items() if isinstance(change, windows._Window)]
        assert any(n.startswith("winograd") for n in reached)
        small.accept(torch.tensor([True, False]))
        x[0] = changed[0]


def test_only_a_relu_acts_as_one() -> None:
    class Through(nn.Module):
        """The values of a ReLU, with the gradient of the identity."""

        def forward(self, x: Tensor) -> Tensor:
            return x + (x.clamp_min(0) - x).detach()

    for module, yes in (
        (nn.ReLU(), True),
        (nn.ReLU(inplace=True), True),
        (activation("relu"), True),
        (nn.ReLU6(), False),
        (nn.LeakyReLU(1e-3), False),
        (nn.Identity(), False),
        (nn.Softplus(), False),
        (activation("rctaf(curvature=6)"), False),
        (nn.Dropout(), False),
        (nn.Linear(16, 16), False),
        (Through(), False),
    ):
        assert acts_as_relu(module.eval()) is yes, module


class _Counting(nn.Module):
    """Holds on to the number of images that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)
        self.last = nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.last(x)).reshape(x.shape[0], 16, -1).mean(2)  # type: ignore[no-any-return]


def test_it_is_left_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        counting, plain = _Counting().eval(), _network("resnet18/relu")
    x = torch.rand(4, 3, 12, 12)
    twin, notes = search.search_twin(counting, x, compiled=False, precision="fp32")
    assert not any("Winograd" in note for note in notes)
    torch.testing.assert_close(twin(x[:3]), counting(x[:3]), rtol=1e-4, atol=1e-5)

    x = torch.rand(2, 3, 32, 32)

    def noted(**settings: Any) -> bool:
        asked: dict[str, Any] = {"compiled": False, "precision": "fp32", **settings}
        return any("Winograd" in note for note in search.search_twin(plain, x, **asked)[1])

    assert noted() is (kernel() is not None)
    assert not noted(precision="bf16")

    def lying(model: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
        return nn.Sequential(model, nn.Softmax(1)), 1

    monkeypatch.setattr(search, "fused", lying)
    assert not noted()
    monkeypatch.undo()
    monkeypatch.setattr(fusion, "kernel", lambda: None)
    assert not noted()
