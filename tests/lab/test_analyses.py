"""Analyses of a run: flat headline numbers that say what the full records say."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from curvact.analysis import Loss, SpectralDensity, trace
from curvact.analysis.records import plain
from curvact.attacks import PGD, ThreatModel
from curvact.data import Splits, load
from curvact.errors import CurvactError
from curvact.lab.analyses import (
    KINDS,
    FlatnessSettings,
    HessianSettings,
    density_record,
    flatness_analysis,
    hessian_analysis,
    linf_radius,
    own_parameters,
    run_analyses,
)
from curvact.lab.record import model_hash
from curvact.lab.spec import AnalysesSpec
from curvact.models import build
from curvact.random import generator

THREAT = ThreatModel("linf", 0.1)


def small(*kinds: Any) -> AnalysesSpec:
    return AnalysesSpec(kinds=kinds, images=8, attack=PGD(2), probes=16, directions=2, draws=2)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits")


def network(activation: str = "silu") -> nn.Module:
    random = generator(0, "initialization")
    return build("mini_resnet", activation=activation, channels=1, width=2, generator=random)


def test_every_kind_gives_finite_numbers_under_its_name_and_leaves_the_model(digits: Splits) -> None:
    model = network("pssilu(learnable=True)").train()
    before = model_hash(model)
    begun: list[str] = []
    found = run_analyses(model, digits, THREAT, small(*reversed(KINDS)), seed=1, on_kind=begun.append)
    assert begun == list(KINDS)
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert {name.split("_")[0] for name in found} == set(KINDS)
    assert model_hash(model) == before
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name in (
        "hessian_clean_curvature_share",
        "hessian_adversarial_top_eigenvalue",
        "hessian_adversarial_trace_se",
        "flatness_average",
        "flatness_worst",
        "smoothness_linf_ratio",
        "smoothness_l2_drift",
        "smoothness_input_top_eigenvalue",
        "curvature_effective_mean",
    ):
        assert name in found
    cheap = run_analyses(model, digits, THREAT, small("flatness", "curvature"), seed=1)
    assert cheap == {name: found[name] for name in cheap}


def test_numbers_are_those_of_the_records(digits: Splits) -> None:
    model = network()
    found = run_analyses(model, digits, THREAT, small("flatness", "hessian"), seed=2)
    x, y = digits.test.inputs(slice(8)), digits.test.labels[:8]
    settings = FlatnessSettings(draws=2, restarts=3)
    record = flatness_analysis(Loss(model, x, y), THREAT, settings, attack=PGD(2), seed=2)
    assert found["hessian_clean_split_holds"] == 1
    assert found["flatness_average"] == record["average"]["flatness"]
    assert found["flatness_worst"] == record["worst"]["flatness"]
    # The trace by probes against the exact one: 5 standard errors.
    x, y = digits.train.inputs(slice(8)), digits.train.labels[:8]
    exact = trace(Loss(model, x, y), exact=True).value
    assert abs(found["hessian_clean_trace"] - exact) < 5 * found["hessian_clean_trace_se"]


def test_a_kink_has_no_effective_curvature(digits: Splits) -> None:
    assert run_analyses(network("relu"), digits, THREAT, small("curvature")) == {}


def test_an_l2_threat_model_is_matched_from_its_side(digits: Splits) -> None:
    x = digits.train.inputs(slice(2))
    assert linf_radius(ThreatModel("l2", 0.8), x) == pytest.approx(0.1)
    assert linf_radius(THREAT, x) == 0.1
    with pytest.raises(CurvactError, match="norm='l1' in smoothness"):
        linf_radius(ThreatModel("l1", 1.0), x)


def test_adversarial_loss_is_the_higher(digits: Splits) -> None:
    x, y = digits.train.inputs(slice(4)), digits.train.labels[:4]
    settings = HessianSettings(what=("norms",), probes=4, deflation=0)
    record = hessian_analysis(Loss(network(), x, y), THREAT, settings, attack=PGD(3))
    losses = record["losses"]
    assert losses["adversarial"]["norms"]["loss"] > losses["clean"]["norms"]["loss"]


@pytest.mark.parametrize(
    ("settings", "what", "message"),
    [
        (HessianSettings, ("norm",), "what names 'norm' in HessianSettings; did you mean 'norms'?"),
        (HessianSettings, (), "what=() in HessianSettings: give one or more of norms, split"),
        (FlatnessSettings, "worst", "what='worst' in FlatnessSettings"),
    ],
)
def test_unknown_parts(settings: Any, what: Any, message: str) -> None:
    with pytest.raises(CurvactError, match=re.escape(message)):
        settings(what=what)


def test_own_parameters_are_those_of_the_activations() -> None:
    assert own_parameters(network()) == []
    names = own_parameters(network("pssilu(learnable=True)"))
    assert names
    assert all("act" in name for name in names)


def test_a_density_record_integrates_to_one() -> None:
    nodes = torch.tensor([[-1.0, 0.0, 3.0], [-1.0, 0.5, 2.0]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
    record = density_record(SpectralDensity(nodes, weights, 10))
    step = record["at"][1] - record["at"][0]
    # Of normal distributions cut 4 standard deviations out: 6e-5.
    assert sum(record["density"]) * step == pytest.approx(1, abs=2e-4)
    assert plain(record) == record


def test_a_density_of_one_point_can_be_drawn() -> None:
    record = density_record(SpectralDensity(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 3))
    assert all(map(math.isfinite, record["density"]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "mini_resnet", "activation": "sparta", "width": 2},
        {"name": "vit", "size": 8, "patch": 4, "width": 8, "depth": 1, "heads": 2},
    ],
    ids=["sparta", "vit"],
)
def test_a_split_that_does_not_hold_says_nothing_of_the_curvature(
    digits: Splits, arguments: dict[str, Any]
) -> None:
    model = build(**arguments, channels=1, generator=generator(0, "initialization"))
    found = run_analyses(model, digits, THREAT, small("hessian"))
    for label in ("clean", "adversarial"):
        assert found[f"hessian_{label}_split_holds"] == 0
        for name in ("curvature_share", "curvature_share_se", "cosine", "base_norm", "curvature_norm"):
            assert f"hessian_{label}_{name}" not in found
        assert f"hessian_{label}_trace" in found


def test_a_density_that_is_not_finite_is_json() -> None:
    nodes = torch.tensor([[math.nan, 1.0]], dtype=torch.float64)
    record = density_record(SpectralDensity(nodes, torch.full((1, 2), 0.5).double(), 3))
    json.dumps(record, allow_nan=False)
    assert record["nodes"] == [[None, 1.0]]
