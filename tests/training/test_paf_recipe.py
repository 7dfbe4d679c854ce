"""The recipe of arXiv 2110.05626 in the training loop: penalty, clipping, weight decay, the trap at
0, κ in the log.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from curvact.attacks import ThreatModel
from curvact.data import Splits, load
from curvact.models import build
from curvact.random import generator
from curvact.training import Recipe, fit

THREAT = ThreatModel("linf", 0.2)


def _data() -> Splits:
    return load("digits", train=48, validation=10, test=10)


def _model(activation: str) -> nn.Module:
    random = generator(0, "initialization")
    return build("mini_resnet", activation=activation, channels=1, width=2, scope="network", generator=random)


def _recipe(**settings: Any) -> Recipe:
    plain = {
        "objective": "standard",
        "batch_size": 16,
        "schedule": "constant",
        "warmup": 0.0,
        "attack": "pgd-1",
    }
    return Recipe(**{**plain, "epochs": 1, "learning_rate": 0.05, **settings})


@pytest.mark.parametrize("decay", [True, False])
def test_beta_is_penalized_then_clipped_then_decayed(decay: bool) -> None:
    """Three steps of Nesterov SGD by hand, of every parameter. β's own gradient is beyond 0.01 in
    each of them.
    """
    data, name = _data(), "pssilu(alpha=2, beta=-0.25, learnable=True)"
    trained = _model(name)
    recipe = _recipe(beta_penalty=10.0, beta_clip=0.01, weight_decay=0.1, decay_activations=decay)
    fit(trained, data, recipe, THREAT, seed=3)

    model = _model(name).train()
    named = dict(model.named_parameters())
    own = {"act.alpha", "act.beta"}
    assert own < named.keys()
    velocity = {key: torch.zeros_like(p) for key, p in named.items()}
    order = torch.randperm(48, generator=generator(3, "shuffle", 1))
    for step in range(3):
        index = order[16 * step : 16 * step + 16]
        loss = F.cross_entropy(model(data.train.images[index].float() / 255), data.train.labels[index])
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        gradients["act.beta"] += 10 * named["act.beta"].detach().sign()
        assert gradients["act.beta"].abs() > 0.01
        gradients["act.beta"] *= 0.01 / gradients["act.beta"].abs()
        with torch.no_grad():
            for key, p in named.items():
                g = gradients[key] + (0.1 if decay or key not in own else 0.0) * p
                velocity[key].mul_(0.9).add_(g)
                p.sub_(0.05 * (g + 0.9 * velocity[key]))
    for key, p in trained.named_parameters():
        # Three steps in float32 by another order of operations.
        torch.testing.assert_close(p, named[key], rtol=1e-4, atol=1e-6)
    # Pulled to 0 by the clipped penalty alone, or by weight decay too, which is larger here:
    # 0.1·0.25 > 0.01.
    assert abs(float(trained.act.beta.detach())) < 0.25 - 3 * 0.05 * 0.01


def test_a_beta_of_exactly_zero_stays_and_the_published_one_moves() -> None:
    after = {}
    for start in (0.0, 1e-8):
        model = _model("pssilu(learnable=True)")
        with torch.no_grad():
            model.act.beta.fill_(start)
        fit(model, _data(), _recipe(beta_penalty=10.0, beta_clip=0.01), THREAT, seed=0)
        after[start] = float(model.act.beta.detach())
        assert float(model.act.alpha.detach()) != 1.0
    assert after[0.0] == 0.0
    # The clipped gradient moves β by 5e-4 a step and more.
    assert abs(after[1e-8]) > 1e-5


@pytest.mark.parametrize(
    ("name", "kappa"),
    [
        (
            "pssilu(alpha=2, beta=0.2, learnable=True)",
            lambda p: abs(p["alpha"]) / (2 * abs(1 - abs(p["beta"]))),
        ),
        ("pssilu_fixed", lambda p: abs(p["alpha"]) / (2 * 0.7)),
        ("psilu(alpha=-3)", lambda p: abs(p["alpha"]) / 2),
        ("psoftplus", lambda p: abs(p["alpha"]) / 4),
        ("rctaf(alpha=4, beta=1, learnable=True)", lambda p: p["alpha"] / 4 * 1.5),
        ("reblu", None),
    ],
)
def test_every_epoch_logs_the_parameters_and_their_curvature(name: str, kappa: Any) -> None:
    """κ by the closed form of the logged parameters. An infinite one is left out: JSON and charts
    have no infinity.
    """
    epochs = fit(_model(name), _data(), _recipe(epochs=3), THREAT, seed=0)
    logged = [{key.removeprefix("act."): value for key, value in e.parameters.items()} for e in epochs]
    assert len(logged) == 3
    for parameters in logged:
        if kappa is None:
            assert list(parameters) == ["alpha"]
        else:
            assert parameters["curvature"] == pytest.approx(kappa(parameters), rel=1e-6)
    assert len({parameters["alpha"] for parameters in logged}) == 3
    assert all(math.isfinite(value) for parameters in logged for value in parameters.values())
