"""Recipes: attacks from their texts, plain data and back, impossible values in one line; and the
schedule.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from curvact.attacks import PGD
from curvact.errors import CurvactError
from curvact.training import Recipe, extension_problem
from curvact.training.schedule import learning_rate

CONSTANT = Recipe(schedule="constant", warmup=0.0)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(attack=PGD(7, step=0.25, start="none"), validation=PGD(3, restarts=2, loss="dlr")),
        Recipe(attack="fgsm", validation="pgd-0", milestones=(0.25, 0.5), clip_norm=1.0),
    ],
)
def test_plain_data_and_back(recipe: Recipe) -> None:
    plain = json.loads(json.dumps(recipe.as_dict()))
    again = Recipe(**plain)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert plain["attack"] == str(recipe.attack)


def test_attacks_are_read_from_their_texts() -> None:
    recipe = Recipe(attack="pgd(steps=5, step=0.4)", validation="pgd-0")
    assert (recipe.attack, recipe.validation) == (PGD(5, step=0.4), PGD(0))
    assert (Recipe().attack, Recipe().validation) == (PGD(5), None)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs=0 of a recipe: a whole number >= 1"),
        ({"batch_size": 1}, "batch_size=1 of a recipe: a whole number >= 2"),
        ({"warmup": 1.0}, r"warmup=1.0 of a recipe: a number in \[0, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate=nan of a recipe: a number > 0"),
        ({"schedule": "cosin"}, "schedule='cosin' of a recipe: allowed are cosine, piecewise"),
        ({"milestones": (0.7, 0.5)}, "milestones=.* rising parts of all steps"),
        ({"perturbation": "awpp"}, "unknown perturbation 'awpp'; did you mean 'awp'"),
        ({"perturbation": "awp(gama=1)"}, "awp has no setting 'gama'; did you mean 'gamma'"),
        ({"averaging": "ema(decay=slow)"}, "decay='slow' in averaging=.*: a finite number, such as 0.995"),
        ({"optimizer": "entropy-sgd(5)"}, "cannot read optimizer"),
        ({"optimizer": "entropy-sgd(variant=3)"}, "variant=3 in optimizer=.*: a word, such as algorithm"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"optimizer": "adamw(beta1=1)"}, r"beta1=1 in optimizer=.*: a number in \[0, 1\)"),
        ({"optimizer": "adamw", "momentum": 0.5}, "they are of SGD; adamw has beta1"),
        ({"weight_decay_on": "biases"}, "weight_decay_on='biases' of a recipe: allowed are all and weights"),
        ({"objective": "pgdat"}, "unknown objective"),
        ({"attack": "pgd(steps=5, step=3)"}, "step=3 of pgd: at most 2"),
        ({"attack": None}, "attack=None of a recipe: a PGD or its text"),
        ({"validation": 5}, "validation=5 of a recipe: a PGD or its text"),
        (
            {"attack": "pgd(steps=5, loss=dlr)"},
            "the objective sets the loss, .*allowed are steps, step and start",
        ),
        ({"attack": PGD(5, restarts=2)}, "training starts PGD once"),
    ],
)
def test_impossible_recipes(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CurvactError, match=says) as caught:
        Recipe(**settings)
    assert "\n" not in str(caught.value)


def test_the_rate_rises_then_falls_to_its_end() -> None:
    recipe = Recipe(learning_rate=0.2, warmup=0.25)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.2 / 25)
    assert rates[-1] < 1e-3
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)


@pytest.mark.parametrize(
    ("before", "after", "steps", "says"),
    [
        (CONSTANT, {"epochs": 40}, 50, ""),
        (CONSTANT, {"epochs": 7}, 35, ""),
        (CONSTANT, {}, 50, ""),
        (Recipe(), {"epochs": 40}, 0, ""),  # nothing is done yet
        (replace(CONSTANT, optimizer="entropy-sgd", averaging="ema"), {"epochs": 40}, 50, ""),
        (replace(CONSTANT, perturbation="awp", averaging="swa(start=0)"), {"epochs": 40}, 50, ""),
        (replace(CONSTANT, averaging="me-a(start=0)"), {"epochs": 40}, 50, ""),
        (replace(CONSTANT, perturbation="sam"), {"epochs": 40}, 50, ""),
        # Before their first milestone and start, these are the same.
        (replace(CONSTANT, schedule="piecewise"), {"epochs": 40}, 25, ""),
        (replace(CONSTANT, perturbation="awp(start=0.5)"), {"epochs": 40}, 25, ""),
        (CONSTANT, {"epochs": 6}, 35, "epochs=6 is less than the 35 steps of 5 an epoch that are done"),
        (
            CONSTANT,
            {"epochs": 40, "weight_decay": 0.0},
            50,
            "weight_decay was 0.0005 and is 0.0: only epochs can",
        ),
        (CONSTANT, {"attack": PGD(3)}, 50, "attack was pgd-5 and is pgd-3: only epochs can change"),
        (replace(CONSTANT, budget=900), {"epochs": 40}, 50, "budget=900 ends training, whatever the epochs"),
        (
            Recipe(warmup=0.0),
            {"epochs": 40},
            50,
            "step 1 of a cosine schedule had the rate 0.0599, and has 0.06 in 40 epochs: train 40 epochs anew, or choose sche",
        ),
        (replace(CONSTANT, warmup=0.1), {"epochs": 40}, 50, "step 0 of a constant schedule with warmup=0.1"),
        (replace(CONSTANT, schedule="one-cycle"), {"epochs": 40}, 50, "step 1 of a one-cycle schedule"),
        (replace(CONSTANT, schedule="piecewise"), {"epochs": 40}, 26, "step 25 of a piecewise schedule"),
        (
            replace(CONSTANT, perturbation="awp(start=0.5)"),
            {"epochs": 40},
            26,
            "starts at another step .*start=0",
        ),
        (
            replace(CONSTANT, averaging="swa(start=0.5)"),
            {"epochs": 40},
            30,
            "starts at another epoch .*start=0",
        ),
    ],
)
def test_what_can_be_extended(before: Recipe, after: dict[str, Any], steps: int, says: str) -> None:
    """10 epochs of 5 steps."""
    problem = extension_problem(before, replace(before, **after), steps, steps_per_epoch=5)
    if says:
        assert re.search(says, problem), problem
        assert "\n" not in problem
    else:
        assert problem == ""
