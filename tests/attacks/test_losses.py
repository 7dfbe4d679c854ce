"""Attack losses against formulas written out by hand in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvact.attacks import LOSSES, attack_loss, ce, dlr, margin
from curvact.attacks.losses import succeeded
from curvact.errors import CurvactError


def _batch(seed: int, classes: int = 5, count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = 4 * torch.randn(count, classes, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (count,), generator=g)
    return z, y, (y + torch.randint(1, classes, (count,), generator=g)) % classes


def _by_hand(name: str, z: np.ndarray, y: int, target: int | None) -> float:
    others = [value for i, value in enumerate(z) if i != (y if target is None else target)]
    if name == "ce":
        p = np.exp(z) / np.exp(z).sum()
        return float(-np.log(p[y]) if target is None else np.log(p[target]))
    if name == "pma":
        p = np.exp(z) / np.exp(z).sum()
        rest = [value for i, value in enumerate(p) if i != (y if target is None else target)]
        return float(max(rest) - p[y] if target is None else p[target] - max(rest))
    if name == "margin":
        return float(max(others) - z[y] if target is None else z[target] - max(others))
    falling = sorted(z, reverse=True)
    if target is None:
        return float(-(z[y] - max(others)) / (falling[0] - falling[2]))
    return float(-(z[y] - z[target]) / (falling[0] - 0.5 * (falling[2] + falling[3])))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("targeted", [False, True])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_against_formulas(name: str, targeted: bool, seed: int) -> None:
    z, y, t = _batch(seed)
    expected = [
        _by_hand(name, z[i].numpy(), int(y[i]), int(t[i]) if targeted else None) for i in range(len(z))
    ]
    # dlr adds 1e-12 to a difference of three sorted logits.
    torch.testing.assert_close(
        LOSSES[name](z, y, t if targeted else None),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("targeted", [False, True])
def test_gradients(name: str, targeted: bool) -> None:
    z, y, t = _batch(3)
    assert torch.autograd.gradcheck(
        lambda z: LOSSES[name](z, y, t if targeted else None), z.requires_grad_(), atol=1e-5
    )


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e4), shift=st.floats(-50, 50))
@settings(max_examples=20)
def test_dlr_is_free_of_shift_and_scale(seed: int, scale: float, shift: float) -> None:
    z, y, t = _batch(seed)
    for targets in (None, t):
        # A shift by 50 of logits scaled by 1e-3 leaves 1e-16 · 50/1e-3 of them, over small spreads.
        torch.testing.assert_close(
            dlr(scale * z + shift, y, targets), dlr(z, y, targets), rtol=1e-6, atol=1e-6
        )


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_margin_and_dlr_are_positive_where_the_attack_succeeds(seed: int) -> None:
    z, y, t = _batch(seed)
    assert torch.equal(margin(z, y) > 0, succeeded(z, y))
    assert torch.equal(dlr(z, y) > 0, succeeded(z, y))
    assert torch.equal(margin(z, y, t) > 0, succeeded(z, y, t))


def test_names_and_too_few_classes() -> None:
    assert attack_loss("ce") is ce
    assert attack_loss(margin) is margin
    z, y = torch.zeros(1, 3), torch.tensor([0])
    for call, message in (
        (lambda: attack_loss("margn"), "unknown loss 'margn'.*did you mean 'margin'"),
        (lambda: dlr(z[:, :2], y), "'dlr' needs 3 classes, the model has 2"),
        (lambda: dlr(z, y, y), "'targeted dlr' needs 4 classes, the model has 3"),
    ):
        with pytest.raises(CurvactError, match=message):
            call()
