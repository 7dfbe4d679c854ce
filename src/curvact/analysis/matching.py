"""L∞ against L2 attacks of matched strength."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from curvact.analysis.loss import Loss
from curvact.analysis.records import plain
from curvact.attacks.arguments import door
from curvact.attacks.batch import check_number, checked_images
from curvact.attacks.pgd import PGD, Attack
from curvact.attacks.threat import ThreatModel, as_radius
from curvact.errors import CurvactError, nearest
from curvact.random import generator

MatchingRule = Literal["corners", "loss", "accuracy"]
PGD_20 = PGD(20)
"""The attack of an analysis where the caller gives none."""


@dataclass(frozen=True)
class Matched:
    """The radii of an L∞ and an L2 attack of matched strength.

    rule: "corners": ε₂ = ε∞√d, the L2 ball through the corners of the L∞ ball, which it contains.
    "loss" or "accuracy": ε₂ such that the same PGD costs as much mean loss or accuracy on these
    data. target, reached: that cost for L∞ and for L2; NaN for "corners".
    """

    linf: float
    l2: float
    rule: str
    target: float
    reached: float

    @property
    def threat_models(self) -> dict[str, ThreatModel]:
        """By the names "linf" and "l2"."""
        return {"linf": ThreatModel("linf", self.linf), "l2": ThreatModel("l2", self.l2)}

    def attacks(self, attack: PGD = PGD_20, *, seed: int = 0) -> dict[str, Attack | None]:
        """No attack ("clean") and PGD in both balls, by name; each call starts at the same random
        points.
        """
        return {
            "clean": None,
            **{name: seeded(attack, threat, seed) for name, threat in self.threat_models.items()},
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        record: dict[str, Any] = plain(self)
        return record


def seeded(attack: PGD, threat_model: ThreatModel, seed: int = 0) -> Attack:
    """PGD in a threat model that starts at the same random points at every call, as smoothness
    needs it.
    """
    return attack.on(threat_model, lambda device: generator(seed, "smoothness, attack", device=device))


@door
def match_radii(
    loss: Loss,
    epsilon: float | str,
    *,
    rule: MatchingRule = "corners",
    attack: PGD = PGD_20,
    seed: int = 0,
    bisections: int = 12,
) -> Matched:
    """The L2 radius that matches an L∞ radius ε, by one of the rules of `Matched`. [ours]

    By "corners" L2 is much the stronger attacker: use it to compare balls, and "loss" or "accuracy"
    to compare equal harm. Those bisect ε₂ in [ε, ε√d] (geometrically): at the lower end the L∞ ball
    contains the L2 ball, at the upper end it is contained in it.
    loss: inputs (N, …) in [0, 1]; y are classes for "accuracy". attack: for both balls.
    Raises CurvactError for ε ≤ 0, an unknown rule, inputs outside [0, 1], or what is not finite.

    >>> loss = Loss(torch.nn.Flatten(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    >>> match_radii(loss, 0.1).l2
    0.4
    """
    where = "match_radii"
    if rule not in get_args(MatchingRule):
        raise CurvactError(
            f"rule={rule!r} in {where}: allowed are {', '.join(get_args(MatchingRule))}"
            + nearest(str(rule), get_args(MatchingRule))
        )
    epsilon = as_radius(epsilon, f"epsilon={epsilon!r} in {where}", above_zero=True)
    check_number(bisections, "bisections", where)
    with loss.running(where, twice=False):
        batches = loss.inputs()
        for x, _ in batches:
            checked_images(x, where)
        corner = epsilon * math.sqrt(batches[0][0][0].numel())
        if rule == "corners":
            return Matched(epsilon, corner, rule, math.nan, math.nan)
        loss.check_values()

        def cost(threat: ThreatModel) -> float:
            run = seeded(attack, threat, seed)
            worst = torch.zeros((), dtype=torch.float64, device=batches[0][0].device)
            for x, y in batches:
                for inputs, sign in ((loss.attack(run, x, y), 1), (x, -1)):
                    with torch.no_grad():
                        outputs = loss.outputs(inputs)
                        each = loss.each(outputs, y) if rule == "loss" else (outputs.argmax(1) != y)
                        worst = worst + sign * each.double().sum()
            return worst.item() / loss.images

        target = cost(ThreatModel("linf", epsilon))
        if not math.isfinite(target):
            raise CurvactError(f"the loss rises by {target} in {where}: it must be finite")
        low, high = math.log(epsilon), math.log(corner)
        tried = {radius: cost(ThreatModel("l2", radius)) for radius in (epsilon, corner)}
        for _ in range(bisections):
            middle = (low + high) / 2
            tried[math.exp(middle)] = reached = cost(ThreatModel("l2", math.exp(middle)))
            low, high = (middle, high) if reached < target else (low, middle)
    best = min(tried, key=lambda radius: abs(tried[radius] - target))
    return Matched(epsilon, best, rule, target, tried[best])
