"""EMA and SWA against torch's AveragedModel and closed forms; swapping, saving and refusing."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from curvact.errors import CurvactError
from curvact.random import generator
from curvact.training.methods.averaging import Average


def _net(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def _move(model: nn.Module, step: int) -> None:
    random = generator(step, "move")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))
        model[1].running_mean.fill_(float(step))


def _values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["ema", "swa"]),
    decay=st.sampled_from([0.0, 0.3, 0.9, 0.995]),
    updates=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_torchs_averaged_model(kind: str, decay: float, updates: int, dtype: torch.dtype) -> None:
    def ema(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        d = min(decay, (1 + int(count)) / (10 + int(count)))
        return d * old + (1 - d) * new

    model = _net(dtype)
    ours = Average(model, kind=kind, decay=decay)
    theirs = AveragedModel(model, avg_fn=ema if kind == "ema" else None)
    for step in range(updates):
        _move(model, step)
        ours.update()
        theirs.update_parameters(model)
    close = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    with ours.weights():
        for a, b in zip(model.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, **close)  # 40 roundings of numbers of order 1


def test_after_the_warm_up_it_is_the_geometric_sum() -> None:
    """From 0, weights of 1: 1 − ∏ dₜ, where d₁ = 2/11, d₂ = 3/12, …, then the decay."""
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model, decay=0.5)
    left = 1.0
    for t in range(30):
        nn.init.constant_(model.weight, float(t > 0))
        average.update()
        if t:
            left *= min(0.5, (1 + t) / (10 + t))
        with average.weights():
            assert model.weight.item() == pytest.approx(1 - left, rel=1e-13)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_swapping_is_exact_and_buffers_stay(kind: str) -> None:
    model = _net()
    average = Average(model, kind=kind)
    current = _values(model)
    with average.weights():
        assert all(torch.equal(a, b) for a, b in zip(current, model.parameters(), strict=True))
    for step in range(3):
        _move(model, step)
        average.update()
    current = _values(model)

    def fail() -> None:
        with average.weights():
            assert not any(torch.equal(a, b) for a, b in zip(current, model.parameters(), strict=True))
            assert torch.equal(model[1].running_mean, torch.full((4,), 2.0))
            averaged = _values(model)
            with average.weights():
                assert all(torch.equal(a, b) for a, b in zip(averaged, model.parameters(), strict=True))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(current, model.parameters(), strict=True))


def test_averages_of_half_precision_weights_are_wide() -> None:
    """Steps of 1e-5 about 1 would not be seen in bfloat16, whose spacing there is 8e-3."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = Average(model, kind="swa")
    for value in (1.0, 1.0078125):
        nn.init.constant_(model.weight, value)
        average.update()
    (kept,) = average.state_dict()["averages"].values()
    assert kept.dtype == torch.float32
    assert kept.item() == 1.00390625
    with average.weights():
        assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_saved_and_loaded_it_goes_on_bit_for_bit(kind: str, cut: int) -> None:
    model = _net()
    whole = Average(model, kind=kind, decay=0.9)
    for step in range(cut):
        _move(model, step)
        whole.update()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = _net()
    resumed = Average(other, kind=kind, decay=0.1)
    resumed.load_state_dict(state)
    kept = [t.clone() for t in state["averages"].values()]
    for step in range(cut, 9):
        for m, average in ((model, whole), (other, resumed)):
            _move(m, step)
            average.update()
    with whole.weights(), resumed.weights():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, state["averages"].values(), strict=True))


def test_shared_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    average = Average(model, kind="swa")
    for value in (1.0, 2.0):
        for p in model.parameters():
            p.data.fill_(value)
        average.update()
    with average.weights():
        assert all(torch.equal(p, torch.full_like(p, 1.5)) for p in model.parameters())
        assert model[1].weight is model[0].weight
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]


def test_refusals_are_one_line_and_change_nothing() -> None:
    model = _net()
    with pytest.raises(CurvactError, match="averaging 'emma'; did you mean 'ema'"):
        Average(model, kind="emma")
    with pytest.raises(CurvactError, match=r"decay=1.0 of an average: a number in \[0, 1\)"):
        Average(model, decay=1.0)
    average, other = Average(model), Average(nn.Linear(3, 4))
    average.update()
    other.update()
    good = average.state_dict()
    for state, message in (
        ({**good, "kind": "swa"}, "of averaging 'swa', and this is 'ema'"),
        (other.state_dict(), "do not fit this model: 0.bias, 0.weight, 1.bias differ"),
        ({**good, "averages": {}}, "do not fit this model"),
        ({"kind": "ema"}, "needs its 'kind'"),
        ({**good, "averages": 3}, "needs its 'kind'"),
    ):
        with pytest.raises(CurvactError, match=message):
            average.load_state_dict(state)
    assert average.updates == 1
    fresh = Average(model)
    fresh.load_state_dict(good)
    assert fresh.updates == 1
