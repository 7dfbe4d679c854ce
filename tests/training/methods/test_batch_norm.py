"""Batch norm's statistics: frozen and saved bit for bit, recalibrated as torch's own update_bn and
as plain averages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from curvact.errors import CurvactError
from curvact.models import build
from curvact.models.layers import Dropout
from curvact.random import generator
from curvact.training.methods.batch_norm import (
    has_batch_norm,
    recalibrate,
    saved_statistics,
    statistics_frozen,
)


def _net() -> nn.Module:
    return build(name="mini_resnet", activation="silu", width=2, channels=1, generator=generator(0, "net"))


def _batches(count: int = 4, size: int = 6) -> list[Tensor]:
    random = generator(1, "batches")
    return [torch.rand(size, 1, 8, 8, generator=random) * (i + 1) for i in range(count)]


def _buffers(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_frozen_statistics_stay_and_outputs_and_gradients_are_those_of_train_mode() -> None:
    model, plain = _net().train(), _net().train()
    x = _batches(1)[0]
    before = _buffers(model)
    with statistics_frozen(model):
        with statistics_frozen(model):
            pass
        logits = model(x)
        assert _same(_buffers(model), before)
    logits.square().sum().backward()
    expected = plain(x)
    expected.square().sum().backward()
    assert torch.equal(logits, expected)
    assert all(
        torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)
    )
    assert not _same(_buffers(plain), before)
    model(x)
    assert _same(_buffers(model), _buffers(plain))


def test_frozen_statistics_survive_an_infinite_batch_and_an_exception() -> None:
    model = _net().train()
    before = _buffers(model)

    def fail() -> None:
        with statistics_frozen(model):
            model(torch.full((2, 1, 8, 8), torch.inf))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _same(_buffers(model), before)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_frozen_statistics_are_used_in_eval_mode() -> None:
    model = _net().train()
    for x in _batches():
        model(x)
    model.eval()
    x = _batches(1)[0]
    with statistics_frozen(model):
        assert torch.equal(model(x), copy.deepcopy(model)(x))
    outside = model(x)
    with statistics_frozen(model):
        assert torch.equal(model(x), outside)


def test_saved_statistics_come_back() -> None:
    model = _net().train()
    model(_batches(1)[0])
    before = _buffers(model)

    def fail() -> None:
        with saved_statistics(model):
            recalibrate(model, _batches())
            assert not _same(_buffers(model), before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _same(_buffers(model), before)


@settings(max_examples=10)
@given(count=st.integers(1, 6), size=st.integers(2, 6), training=st.booleans())
def test_recalibration_is_torchs(count: int, size: int, training: bool) -> None:
    ours, theirs = _net().train(training), _net().train(training)
    batches = _batches(count, size)
    for model in (ours, theirs):
        model(batches[0] * 7)
    recalibrate(ours, iter(batches))
    update_bn(batches, theirs)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32, other order of roundings
    assert all(m.training is training for m in ours.modules())
    assert all(m.momentum == 0.1 for m in ours.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m._forward_pre_hooks for m in ours.modules())
    assert all(p.grad is None for p in ours.parameters())


def test_recalibration_is_the_plain_average() -> None:
    layer = nn.BatchNorm2d(3).double()
    batches = [torch.rand(2 + i, 3, 2, 2, dtype=torch.float64) for i in range(5)]
    recalibrate(layer, batches)
    means = torch.stack([b.mean((0, 2, 3)) for b in batches])
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(layer.running_var, variances.mean(0), rtol=1e-14, atol=0)
    assert layer.num_batches_tracked == 5


def test_a_layer_called_twice_averages_over_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) * 3 + 1)

    model = Twice()
    batches = [torch.rand(5, 2, dtype=torch.float64) for _ in range(3)]
    recalibrate(model, batches)
    first = torch.stack([b.mean(0) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, (first + 1) / 2, rtol=1e-12, atol=0)


def test_modes_of_single_layers_and_dropout() -> None:
    """Frozen layers are recalibrated and stay in eval mode; dropout is off and its generator not
    drawn from.
    """
    net = nn.Sequential(nn.BatchNorm1d(2), Dropout(0.5, seed=1), nn.BatchNorm1d(2))
    net[2].eval()
    modes = [m.training for m in net.modules()]
    x = torch.randn(50, 2, generator=generator(2, "x"))
    recalibrate(net, [x])
    assert [m.training for m in net.modules()] == modes
    # the unbiased variance of normalized values is 50/49, less eps = 1e-5 over the variance
    torch.testing.assert_close(net[2].running_var, torch.full((2,), 50 / 49), rtol=1e-4, atol=0)
    assert torch.equal(net[1](x), Dropout(0.5, seed=1)(x))
    cumulative = nn.BatchNorm1d(2, momentum=None)
    recalibrate(cumulative, [x])
    assert cumulative.momentum is None


def test_reduction_is_called_once_and_its_result_kept() -> None:
    parts = [_net(), _net()]
    batches = _batches(4)
    seen: list[Tensor] = []
    recalibrate(parts[0], batches[:2], reduce=lambda t: seen.append(t.clone()) or t)  # type: ignore[func-returns-value]
    recalibrate(parts[1], batches[2:], reduce=lambda t: (t + seen[0]) / 2)
    whole = _net()
    recalibrate(whole, batches)
    assert len(seen) == 1
    for (name, a), b in zip(parts[1].named_buffers(), whole.buffers(), strict=True):
        if "running" in name and name.startswith("bn."):  # behind it, the two halves see other inputs
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_batch_norm_nothing_is_drawn() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    model = build(name="small_cnn", activation="silu", channels=1, size=8, width=2)
    assert not has_batch_norm(model)
    recalibrate(model, never())
    assert not has_batch_norm(nn.BatchNorm2d(2, track_running_stats=False))
    assert not has_batch_norm(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))
    assert has_batch_norm(_net())
    with statistics_frozen(model), saved_statistics(model):
        model(torch.rand(2, 1, 8, 8))


def test_no_batches_or_a_bad_one_change_nothing() -> None:
    model = _net().train()
    model(_batches(1)[0])
    before = _buffers(model)
    with pytest.raises(CurvactError, match="at least one batch"):
        recalibrate(model, [])
    with pytest.raises(CurvactError, match="for a network of 1 channels"):
        recalibrate(model, [_batches(1)[0], torch.rand(2, 3, 8, 8)])
    assert _same(_buffers(model), before)
    assert all(m.training for m in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
