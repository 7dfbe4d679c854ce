"""The page of `curvact explore`: activations that are drawn while κ moves, and small networks trained before.

networks.json, which docs/explore.py writes, has what the page shows of the networks. families.js computes
σ, σ′, σ″ and κ in the browser, explore.js draws. The page is one file, and asks for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvact.files import atomic_write
from curvact.lab.report.html import page_template
from curvact.lab.report.interactive import script, script_json
from curvact.lab.report.style import OKABE_ITO

NETWORKS = Path(__file__).with_name("networks.json")
ALIKE = 0.01
"""Means of robust accuracy within this of the highest are said to be alike."""


@dataclass(frozen=True)
class Measured:
    """The networks with one activation: means over seeds. curvature: κ, None for ReLU. hessian: the norm of
    diag H of the adversarial loss, per parameter."""

    curvature: float | None
    clean: float
    robust: float
    hessian: float


def write_explore(path: Path) -> Path:
    """Write the page, whole or not at all, and return its path. The folder has to exist."""
    atomic_write(path, explore_html())
    return path


def explore_html(*, site: bool = False) -> str:
    """The page. site: as a page of the documentation site, with links to others."""
    content = json.loads(NETWORKS.read_text(encoding="utf-8"))
    setting, where = content["setting"], content["environment"]
    code, source = script("explore/families.js", "explore/explore.js")
    shown = {key: content[key] for key in ("grid", "points", "networks")}
    for network in shown["networks"]:
        del network["by_seed"]
    return page_template("explore/page.html").render(
        site=site,
        facts=("one file, works offline", "arrow keys move a slider", "the address keeps the view"),
        script=code,
        script_source=source,
        content=script_json(shown | {"colours": OKABE_ITO}),
        setting=_setting(setting),
        sentences=sentences(measured()),
        provenance=_provenance(setting, where) | {"command": content["made by"]},
    )


def measured() -> list[Measured]:
    """What was measured of the networks of the page, ReLU last."""
    networks = json.loads(NETWORKS.read_text(encoding="utf-8"))["networks"]
    return [
        Measured(n["curvature"], *(n[name][0] for name in ("clean", "robust", "hessian"))) for n in networks
    ]


def sentences(networks: Sequence[Measured]) -> list[str]:
    """What the networks show, in words."""
    by_kappa = sorted((n for n in networks if n.curvature is not None), key=lambda n: n.curvature or 0.0)
    relu = next(n for n in networks if n.curvature is None)
    best = max(by_kappa, key=lambda n: n.robust)
    lower = [n for n in by_kappa if n.robust < best.robust - ALIKE]
    alike = [n for n in by_kappa if n not in lower]
    hardly = (
        f"robust accuracy hardly depends on κ here: its means lie between {_percent(min(n.robust for n in alike))} and "
        f"{_percent(best.robust)}, that of ReLU is {_percent(relu.robust)}."
    )
    if not lower:
        said = [f"R{hardly[1:]}"]
    elif by_kappa == lower + alike:
        least = min(lower, key=lambda n: n.robust)
        below = (
            f"For smaller κ it is lower, {_percent(least.robust)} at κ = {least.curvature:g}, where clean accuracy is "
            f"{_percent(least.clean)} only."
        )
        said = [f"From κ = {alike[0].curvature:g} on, {hardly}", below]
    else:
        top = f"Robust accuracy is highest at κ = {best.curvature:g}, {_percent(best.robust)}"
        said = [f"{top}; that of ReLU is {_percent(relu.robust)}."]
    flat, last = min(by_kappa, key=lambda n: n.hessian), by_kappa[-1]
    said.append(
        f"The Hessian norm of the adversarial loss is lowest at κ = {flat.curvature:g} ({flat.hessian:.2g}); at κ = "
        f"{last.curvature:g} it is {last.hessian:.2g}. ReLU has {relu.hessian:.2g}, without what its kinks would add."
    )
    return said


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _setting(setting: Mapping[str, Any]) -> str:
    return (
        f"Two moons, and a perceptron with {setting['network']}, trained with rctaf (β = 0) or ReLU by PGD adversarial "
        f"training against {setting['threat_model']}. The accuracies are of {setting['tested']} test points, the means of "
        f"{setting['seeds']} seeds with their 95 % interval."
    )


def _provenance(setting: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, str]:
    recipe = setting["recipe"]
    training = ", ".join(
        f"{key} {recipe[key]}"
        for key in ("objective", "attack", "epochs", "batch_size", "learning_rate", "weight_decay")
    )
    return {
        "data": f"{setting['data']}; {setting['trained']} training points, new ones for each seed",
        "training": training,
        "attack": f"{setting['attack']}, {setting['threat_model']}",
        "Hessian norm": "‖diag H‖₂/√P, exact, of the cross-entropy at attacked training points",
        "made with": f"curvact {where['curvact']} at {where['commit']}, torch {where['torch']}, {where['processor']}",
    }
