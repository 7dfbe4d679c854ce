"""Attacks as values and by name; one that this package does not hold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from curvact.attacks import (
    FGSM,
    PGD,
    AutoAttack,
    Model,
    ThreatModel,
    accuracy,
    default_step,
    ensemble,
    fgsm,
    named_attack,
    pgd,
    register_attack,
    registry,
)
from curvact.attacks.pgd import OnStep
from curvact.errors import CurvactError

THREAT = ThreatModel("linf", 0.2)


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=g)
    x = torch.rand(6, 1, 5, 5, generator=g)
    return model, x, model(x).argmax(1)


@given(
    attack=st.builds(
        PGD,
        steps=st.integers(0, 100),
        step=st.none() | st.floats(1e-6, 2.0),
        restarts=st.integers(1, 9),
        start=st.sampled_from([None, "uniform", "gaussian", "none"]),
        loss=st.sampled_from(["ce", "margin", "dlr", "pma"]),
    )
)
def test_every_pgd_is_read_back_from_its_name(attack: PGD) -> None:
    assert PGD.parse(str(attack)) == named_attack(f" {attack} ") == attack
    assert hash(PGD.parse(str(attack))) == hash(attack)


def test_names() -> None:
    assert str(PGD(20)) == "pgd-20"
    assert (
        str(PGD(20, step=0.25)) == "pgd(steps=20, step=0.25)"
    )  # the default might change: what is set stays
    assert (
        str(PGD.parse("pgd( restarts=3, start=gaussian, steps=7 )"))
        == "pgd(steps=7, restarts=3, start=gaussian)"
    )
    assert named_attack("fgsm") == FGSM
    for text in (
        "fgsm",
        "pgd-1",
        "autoattack",
        "autoattack-plus",
        "autoattack-rand",
        "square",
        "apgd-ce+fab-t",
    ):
        assert str(named_attack(text)) == text


def test_the_default_step_is_two_pixels_at_eight() -> None:
    assert [default_step(steps) * 8 for steps in (10, 20, 100)] == [2, 2, 2]
    assert [default_step(steps) for steps in (0, 1, 2, 4, 5)] == [1, 1, 1, 0.625, 0.5]


def test_a_value_attacks_as_the_function_does() -> None:
    model, x, y = _problem()

    def random() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    expected = pgd(model, x, y, THREAT, steps=3, step=0.5, restarts=2, loss="margin", generator=random())
    attack = PGD(3, 0.5, 2, loss="margin")
    assert torch.equal(attack(model, x, y, THREAT, generator=random()), expected)
    assert torch.equal(attack.on(THREAT, random())(model, x, y), expected)
    assert torch.equal(FGSM(model, x, y, THREAT), fgsm(model, x, y, THREAT))
    again = PGD(3).on(THREAT, lambda device: torch.Generator(device).manual_seed(1))
    assert torch.equal(again(model, x, y), again(model, x, y))
    going_on = PGD(3).on(THREAT, random())
    assert not torch.equal(going_on(model, x, y), going_on(model, x, y))


@pytest.mark.slow
def test_autoattack_as_a_value() -> None:
    model, x, y = _problem()
    attack = AutoAttack(None, ("apgd-ce", "square"))
    expected = ensemble(model, x, y, THREAT, attacks=["apgd-ce", "square"], seed=4)
    assert torch.equal(attack.run(model, x, y, THREAT, seed=4).x_adv, expected.x_adv)
    assert attack.title() == expected.name
    result = accuracy(model, x, y, lambda m, a, b: attack(m, a, b, THREAT))
    assert result.robust == pytest.approx(expected.robust_accuracy)


@dataclass(frozen=True)
class Flip:
    """An attack of a user: each image's negative, a part of the way."""

    share: float = 1.0

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        return threat_model.project(x + self.share * (1 - 2 * x), x)


def test_an_attack_from_outside() -> None:
    with pytest.raises(CurvactError, match="unknown attack 'flip'"):
        named_attack("flip")
    register_attack("flip", Flip)
    attack = named_attack("flip(share=0.5)")
    assert attack == Flip(0.5)
    model, x, y = _problem()
    result = accuracy(model, x, y, lambda m, a, b: attack(m, a, b, THREAT))
    assert torch.equal(result.x_adv, torch.minimum(torch.maximum(torch.full_like(x, 0.5), x - 0.2), x + 0.2))
    with pytest.raises(
        CurvactError, match=r"flip has no setting 'shar'; did you mean 'share'.*allowed are share"
    ):
        named_attack("flip(shar=1)")
    for taken in ("flip", "fgsm", "square"):
        with pytest.raises(CurvactError, match="is known already"):
            register_attack(taken, Flip)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pdg-20",
            "unknown attack 'pdg-20'; did you mean 'pgd-20'.*known are pgd-STEPS such as pgd-20, fgsm",
        ),
        ("apgd-ce+sqare", "unknown attack"),
        ("pgd", "cannot read PGD from 'pgd': write pgd-20"),
        ("pgd-x", "cannot read PGD from 'pgd-x'"),
        ("pgd(20)", r"write it as name\(setting=value"),
        ("pgd(steps=20", r"write it as name\(setting=value"),
        ("pgd(stepss=20)", "pgd has no setting 'stepss'; did you mean 'steps'"),
        ("pgd(step=1)", "needs the setting 'steps'"),
        ("pgd(steps=2.5)", "steps=2.5 of pgd: a whole number >= 0"),
        ("pgd(steps=2, step=2.5)", "step=2.5 of pgd: at most 2"),
        ("pgd(steps=2, step=8/255)", "cannot read"),
        ("pgd(steps=2, loss=cee)", "unknown loss 'cee'"),
        ("autoattack(version=light)", "version='light'"),
    ],
)
def test_a_bad_name_is_one_line(text: str, message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        named_attack(text)
    assert "\n" not in str(caught.value)


def test_the_value_refuses_what_it_cannot_print() -> None:
    with pytest.raises(CurvactError, match="the name of a loss"):
        PGD(3, loss=lambda z, y, t: z[:, 0])  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match="not both"):
        AutoAttack("plus", ("square",))
    with pytest.raises(CurvactError, match="letters, digits and dashes"):
        register_attack("a b", Flip)


def test_a_function_of_the_model_is_an_attack_with_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvact.attacks.registry._REGISTRY", dict(registry._REGISTRY))
    seen: list[tuple[float, str]] = []

    def towards(
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator,
        share: float = 1.0,
        side: str = "up",
    ) -> Tensor:
        seen.append((share, side))
        start = threat_model.random_start(x, generator)
        return x + share * (start - x)

    register_attack("towards", towards)
    attack = named_attack("towards(side=down, share=0.5)")
    assert str(attack) == "towards(share=0.5, side=down)"
    assert named_attack(str(attack)) == attack
    assert named_attack("towards") != attack
    model, x, y = _problem()
    g = torch.Generator().manual_seed(0)
    found = attack(model, x, y, THREAT, generator=g, on_step=lambda step, point, loss: None)
    start = THREAT.random_start(x, torch.Generator().manual_seed(0))
    assert torch.equal(found, x + 0.5 * (start - x))
    assert accuracy(model, x, y, "towards(share=0.0)", THREAT).robust == 1
    assert seen == [(0.5, "down"), (0.0, "up")]
    for text, message in {
        "towards(speed=1)": "towards has no setting 'speed'.*allowed are share, side",
        "towards(generator=1)": "no setting 'generator'",
    }.items():
        with pytest.raises(CurvactError, match=message):
            named_attack(text)
    register_attack("pgdtowards", towards)
    assert str(named_attack("pgdtowards(share=0.5)")) == "pgdtowards(share=0.5)"
    with pytest.raises(CurvactError, match="a function or a class"):
        register_attack("three", 3)  # type: ignore[arg-type]
