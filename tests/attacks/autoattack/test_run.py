"""A run: workers, names, progress, suspicions and bad input."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvact.attacks import (
    AutoAttackSettings,
    Progress,
    SuspectModelWarning,
    ThreatModel,
    autoattack,
    ensemble,
    two_logits,
)
from curvact.attacks.autoattack import parallel
from curvact.attacks.autoattack.ensemble import chosen_steps, ensemble_name, version_steps
from curvact.attacks.autoattack.run import _Settings
from curvact.errors import CurvactError
from curvact.workers import Event

ALL = ["apgd-ce", "apgd-t", "fab-t", "square"]
SMALL: dict[str, Any] = {"attacks": ALL, "steps": 8, "queries": 40}
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
X, Y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


class _Noisy(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out + 0.01 * torch.randn_like(out)  # type: ignore[no-any-return]


class _Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        share = (x > 0.5).float().flatten(1).mean(1)
        return torch.stack([0.5 - share, share - 0.5], 1)


class _Undefined(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(x[:, 0, 0, 0] > 0.5, torch.nan, 1.0)
        return torch.stack([sign + x.flatten(1).sum(1), -sign], 1)


def test_workers_alter_nothing(net: Any, images: Any, same: Any) -> None:
    """In fast mode; for plain mode see the randomized model below."""
    model, (x, y) = net("rctaf(curvature=6)"), images()
    settings: dict[str, Any] = {**SMALL, "shard_size": 6, "seed": 2, "mode": "fast"}
    seen: list[Progress] = []
    alone = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings)
    shared = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings, workers=2, on_progress=seen.append)
    same(alone, shared)
    assert alone.gradient_evaluations == shared.gradient_evaluations
    assert len(seen) == 4 * 5
    assert seen[-1].points_done == len(x)


def test_a_shard_goes_on_where_its_worker_died(
    net: Any, images: Any, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool whose workers die after every first unit; the shard that dies three times is named."""
    model, (x, y) = net(), images()
    settings: dict[str, Any] = {**SMALL, "shard_size": 10, "seed": 2}
    ran: list[str] = []

    def run_jobs(work: Any, jobs: Any, *, on_event: Any, setup: Any, devices: Any, **_: Any) -> None:
        class Died(Exception):
            pass

        def send(kind: str, unit: Any) -> None:
            ran.append(unit.key)
            on_event(Event(kind, index, unit))
            if unit.key == "clean":
                raise Died

        for index in range(len(jobs)):
            for attempt in range(2):
                job = pickle.loads(pickle.dumps(jobs[index]))
                assert len(job[1]) == attempt
                with suppress(Died):
                    work(job, send, setup, device=devices[0])
        if model is dying:
            on_event(Event("died", 1, 3))

    monkeypatch.setattr(parallel, "run_jobs", run_jobs)
    dying = None
    alone = ensemble(model, x, y, ThreatModel("linf", 0.1), **settings)
    same(alone, ensemble(model, x, y, ThreatModel("linf", 0.1), **settings, workers=2))
    assert ran == 2 * ["clean", *ALL]
    dying = model
    with pytest.raises(CurvactError, match="shard 1 died 3 times"):
        ensemble(model, x, y, ThreatModel("linf", 0.1), **settings, workers=2)


def test_what_workers_cannot_take_is_said(tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4]

    x, y = torch.rand(4, 1, 5, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(CurvactError, match=r"does not pickle.*use workers=1"):
        ensemble(
            Local().eval(),
            x,
            y,
            ThreatModel("linf", 0.1),
            attacks=["apgd-ce"],
            shard_size=2,
            workers=2,
            folder=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_what_a_randomized_model_draws_depends_on_the_seed_alone(images: Any) -> None:
    """Neither on the caller's generator, which is left alone, nor on who does the work."""
    x, y = images(12)
    # torch's own, so that workers can load it; it draws its windows in evaluation mode too.
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5), nn.Flatten(), nn.Linear(25, 10)).eval()
    with torch.no_grad():
        model[2].weight.normal_(generator=torch.Generator().manual_seed(0))
        model[2].bias.zero_()
        y = model(x).argmax(1)
        assert not torch.equal(model(x), model(x))
    found = []
    for outside, processes, mode in ((1, 1, "plain"), (2, 2, "plain"), (3, 1, "fast"), (4, 1, "fast")):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # its outputs change
            found.append(
                ensemble(
                    model,
                    x,
                    y,
                    ThreatModel("linf", 0.05),
                    attacks=["apgd-ce", "square"],
                    steps=3,
                    queries=5,
                    shard_size=6,
                    workers=processes,
                    mode=mode,
                )
            )
        assert torch.equal(torch.get_rng_state(), state)
    assert 0 < found[0].robust_accuracy < 1
    for one, other in (found[:2], found[2:]):
        assert one.broken_by == other.broken_by
        assert torch.equal(one.x_adv, other.x_adv)
        assert torch.equal(one.y_adv, other.y_adv)
        assert torch.equal(one.loss, other.loss)


def test_only_a_whole_version_is_called_autoattack() -> None:
    names = [
        ensemble_name(version, version_steps(version, "linf", 10), "fp32")
        for version in ("standard", "plus", "rand")
    ]
    assert names == ["AutoAttack", "AutoAttack (plus)", "AutoAttack (rand)"]
    for attacks in (ALL, ["apgd-ce"], ["square", "fab"]):
        steps = chosen_steps(attacks, "linf", 10, steps=100, queries=5000)
        assert ensemble_name(None, steps, "fp32") == " + ".join(attacks)
    short = chosen_steps(ALL, "linf", 10, steps=10, queries=5000)
    assert (
        ensemble_name(None, short, "fp32")
        == "apgd-ce(10 steps) + apgd-t(10 steps) + fab-t(10 steps) + square"
    )
    assert [step.targets for step in version_steps("standard", "linf", 5)] == [0, 4, 4, 0]


def test_fewer_than_ten_classes(assert_sound: Any) -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 5)).eval()
    x = torch.rand(6, 1, 5, 5, generator=g)
    y = model(x).argmax(1)
    for mode in ("plain", "fast"):
        assert_sound(ensemble(model, x, y, ThreatModel("linf", 0.05), **SMALL, mode=mode), model, x, y)


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize(
    ("classes", "parts"), [(2, "apgd-ce+fab-t+square"), (3, "apgd-ce+apgd-dlr+fab-t+square")]
)
def test_parts_for_few_classes_are_named_for_what_they_are(
    classes: int, parts: str, mode: Any, assert_sound: Any
) -> None:
    """The refusal names the parts that run. One logit z is two, [0, z]."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, classes)).eval()
    if classes == 2:
        model = two_logits(nn.Sequential(nn.Flatten(), nn.Linear(24, 1))).eval()
    x, threat = torch.rand(6, 1, 4, 6, generator=g), ThreatModel("linf", 0.05)
    y = model(x).argmax(1)
    with pytest.raises(
        CurvactError,
        match=f"version 'standard' needs 4 classes.*has {classes}.*by name {parts}".replace("+", r"\+"),
    ):
        autoattack(model, x, y, threat, mode=mode)
    result = ensemble(model, x, y, threat, attacks=parts.split("+"), steps=3, queries=20, mode=mode)
    assert "AutoAttack" not in result.name
    assert_sound(result, model, x, y)


def test_vectors_as_images_of_one_row() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval(), torch.rand(5, 12)
    y, threat = model(x).argmax(1), ThreatModel("l2", 0.1)
    with pytest.raises(CurvactError, match=r"ensemble without square on x.view\(N, 1, 1, D\)"):
        autoattack(model, x, y, threat)
    ensemble(model, x.view(5, 1, 1, 12), y, threat, attacks=["apgd-ce", "apgd-t", "fab-t"], steps=3)
    for mode in ("plain", "fast"):
        with pytest.raises(CurvactError, match="cannot tile 1×12 images under l1"):
            ensemble(model, x.view(5, 1, 1, 12), y, ThreatModel("l1", 1), attacks=["square"], mode=mode)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_saturated_cross_entropy_is_warned_of(mode: Any) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y, threat = linear(x).argmax(1), ThreatModel("linf", 1e-3)
    with pytest.warns(SuspectModelWarning, match="4 runs of APGD started from a zero gradient"):
        result = ensemble(lambda x: 1e5 * linear(x), x, y, threat, attacks=["apgd-ce"], steps=2, mode=mode)
    assert "zero gradient" in result.suspicions[0]
    assert not ensemble(linear, x, y, threat, attacks=["apgd-ce"], steps=2, mode=mode).suspicions


def test_progress_tells_where_the_run_stands(net: Any, images: Any) -> None:
    model, (x, y) = net(), images()
    seen: list[Progress] = []
    result = ensemble(model, x, y, ThreatModel("linf", 0.1), **SMALL, shard_size=8, on_progress=seen.append)
    assert [p.attack for p in seen] == ["clean", *ALL] * 3
    assert [p.points_done for p in seen] == [0] * 4 + [8] * 5 + [16] * 5 + [20]
    assert [p.shards_done for p in seen[::5]] == [0, 1, 2]
    assert seen[-1].robust_accuracy == result.robust_accuracy
    assert seen[-1].seconds_left == 0
    assert math.isnan(seen[0].seconds_left)
    assert all(p.seconds_left > 0 for p in seen[1:-1])
    assert str(seen[-1]).startswith("20/20 points, robust accuracy so far")
    json.dumps(result.as_dict())
    assert "20 points" in str(result)


def test_suspect_models_are_warned_of(net: Any, images: Any, same: Any) -> None:
    x, y = images(6)
    model = net()
    small: dict[str, Any] = {"attacks": ["apgd-ce"], "steps": 2}
    with pytest.warns(SuspectModelWarning, match="probabilities"):
        result = ensemble(
            nn.Sequential(model, nn.Softmax(1)).eval(), x, y, ThreatModel("linf", 0.01), **small
        )
    assert "probabilities" in result.suspicions[0]
    with pytest.warns(SuspectModelWarning, match="change from call to call"):
        ensemble(_Noisy(model).eval(), x, y, ThreatModel("linf", 0.01), **small)
    model.train()
    try:
        with pytest.warns(SuspectModelWarning, match="training mode: .*; attacked in evaluation mode"):
            trained = ensemble(model, x, y, ThreatModel("linf", 0.01), **small)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    same(trained, ensemble(model, x, y, ThreatModel("linf", 0.01), **small))


def test_rand_on_a_model_without_chance_is_warned_of(net: Any, images: Any) -> None:
    x, _ = images(2)
    wrong = (net()(x).argmax(1) + 1) % 10  # misclassified already: nothing to attack
    with pytest.warns(SuspectModelWarning, match="leaves out FAB-T and Square"):
        autoattack(net(), x, wrong, ThreatModel("linf", 0.3), version="rand", mode="fast")


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_model_that_cuts_the_graph_is_attacked_and_said(mode: Any) -> None:
    """Class 1 if most pixels are above ½: gradients are blind, Square is not."""
    x = torch.full((4, 1, 12, 12), 0.52)
    x[2:] = 0.9
    y = torch.ones(4, dtype=torch.int64)
    said = ["only Square sees anything", "Square took", "zero gradient"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ensemble(
            _Rounded().eval(),
            x,
            y,
            ThreatModel("linf", 0.1),
            attacks=["apgd-ce", "fab", "square"],
            steps=3,
            queries=200,
            mode=mode,
        )
    assert result.broken_by == ("square", "square", None, None)
    assert all(any(words in str(w.message) for w in caught) for words in said)
    assert len(result.suspicions) == len(said)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_not_a_number_is_no_right_answer(mode: Any) -> None:
    """Of 40 images the last 5 have NaN logits, past those that the first look sees; class 0 is what
    argmax would say.
    """
    x, y = (
        torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(40, dtype=torch.int64),
    )
    x[35:, 0, 0, 0] = 1.0
    x[:35, 0, 0, 0] = 0.0
    with pytest.warns(SuspectModelWarning, match="logits of 5 points.*NaN"):
        result = ensemble(
            _Undefined().eval(), x, y, ThreatModel("linf", 1e-3), attacks=["apgd-ce"], steps=2, mode=mode
        )
    assert result.broken_by == (None,) * 35 + ("clean",) * 5
    assert result.y_adv.tolist() == [0] * 35 + [-1] * 5


@pytest.mark.slow
def test_a_randomized_model_runs_by_the_rand_version(net: Any, images: Any) -> None:
    x, y = images(6)
    for mode in ("plain", "fast"):
        result = autoattack(_Noisy(net()).eval(), x, y, ThreatModel("linf", 0.1), version="rand", mode=mode)
        assert result.name == "AutoAttack (rand)"
        assert not result.suspicions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": X - 0.5}, r"images of autoattack lie in \[-0"),
        ({"x": X * math.nan}, "hold NaN"),
        ({"x": X.double()}, "float64: float32 in"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X[0]}, "N×C×H×W"),
        ({"y": Y[:3]}, r"labels of autoattack have shape \(3,\)"),
        ({"y": Y.float()}, "torch.float32"),
        ({"y": Y + 7}, "labels of autoattack go up to 10, the model has 10 classes"),
        ({"y": Y - 1}, "labels of autoattack lie in -1"),
        ({"threat_model": ThreatModel("linf", 0.0)}, "epsilon=0"),
        ({"version": "standart"}, "did you mean 'standard'"),
        ({"version": "custom"}, "subsets run by `ensemble`"),
        ({"mode": "quick"}, "mode='quick'"),
        ({"precision": "fp16"}, "precision='fp16'.*did you mean"),
        ({"precision": "bf16"}, "need mode='fast'"),
        ({"compiled": True}, "need mode='fast'"),
        ({"precision": "bf16", "mode": "fast", "version": "rand"}, "only fp32"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"workers": 0}, "workers=0"),
        ({"threads": 0}, "threads=0"),
        ({"devices": "cpu"}, "a list of at least one"),
        ({"devices": []}, "a list of at least one"),
        ({"devices": ["gpu0"]}, "devices of autoattack: gpu0: allowed are"),
        ({"devices": ["cuda:99"]}, "cuda:99: torch sees"),
        ({"model": nn.Flatten()}, "labels of autoattack go up to|4 classes"),
        ({"model": nn.Identity()}, "outputs have shape"),
        ({"model": lambda x: x.flatten(1) * math.inf}, "NaN or infinity"),
        ({"model": lambda x: x.flatten(1).half()}, "logits are torch.float16"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()},
            "parameter '1.weight' is torch.float64",
        ),
        (
            {"x": X.repeat(1, 1, 2, 2)[..., :14, :14], "threat_model": ThreatModel("l2", 0.5)},
            "cannot tile 14×14",
        ),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], words: str) -> None:
    pool = nn.AdaptiveAvgPool2d(8)
    model = nn.Sequential(pool, nn.Flatten(), nn.Linear(64, 10)).eval()
    arguments = {"model": model, "x": X, "y": Y, "threat_model": ThreatModel("linf", 0.1), **change}
    if change.get("model") is not None and isinstance(change["model"], nn.Flatten):
        arguments["y"] = Y + 60 + 1
    with pytest.raises(CurvactError, match=words) as caught:
        autoattack(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": []}, "at least one of"),
        ({"attacks": "square"}, "a list"),
        ({"attacks": ["apgd-ce", "apgd-ce"]}, "each attack once"),
        ({"attacks": ["apgd"]}, "unknown attack 'apgd'; did you mean"),
        ({"attacks": ["square"], "queries": 0}, "queries=0"),
        ({"attacks": ["square"], "version": "plus"}, "takes no 'version'"),
    ],
)
def test_bad_ensembles_are_one_clear_line(change: dict[str, Any], words: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(CurvactError, match=words):
        ensemble(model, X, Y, ThreatModel("linf", 0.1), **change)


def test_the_default_settings_of_both_are_one() -> None:
    assert list(AutoAttackSettings.__annotations__) == [f.name for f in fields(_Settings)]
