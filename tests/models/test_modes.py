"""Modes and gradient flags are put back, module by module."""

from __future__ import annotations

import pytest
from torch import nn

from curvact.models.modes import frozen, mode


def test_mode_is_restored_per_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    with mode(model, training=False):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False, False]


def test_flags_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    seen: list[bool] = []
    with pytest.raises(ZeroDivisionError), frozen(model):
        seen.append(1 / sum(p.requires_grad for p in model.parameters()) > 0)
    assert not seen
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    with frozen(lambda x: x), mode(lambda x: x, training=False):
        pass
