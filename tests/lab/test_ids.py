"""Ids of shipped specs are fixed: a change of one would run finished runs again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from curvact.lab.spec import read_spec
from curvact.lab.sweep import read_sweep

ROOT = Path(__file__).parents[2]

SWEEPS = {
    "cifar10-smoke": "6-de30737ddc38153e",
    "demo": "27-a44c1c368a35ff75",
    "digits-compare": "120-1d448efa1d378b6b",
    "digits-confounds": "48-8b749d1120152eea",
    "digits-methods": "175-6af77b55406e0f73",
    "digits-smoothness": "25-8622175663948ed2",
    "digits": "60-d87ebd593cef12a8",
    "fashion-compare": "18-c04c2a17f77b1da8",
    "fashion-methods": "18-c2ab04cef87121e8",
    "sparta-transfer": "21-27e8aff703959fc4",
}
RECIPES = {
    "awp": "b5744c31b2e3",
    "digits": "b141521c2d26",
    "entropy-sgd": "8cd11265afd7",
    "fashion": "4b864b02d003",
    "fast": "45275cc487f0",
    "paf": "b6ee1684fcd0",
    "trades": "10502284a235",
}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_ids_of_a_shipped_sweep(name: str) -> None:
    ids = [run.id for run in read_sweep(name).planned]
    assert f"{len(ids)}-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}" == SWEEPS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_id_of_a_recipe(name: str) -> None:
    assert read_spec(name).id == RECIPES[name]
