"""Analyses of one trained model as plain records, and their headline numbers.

    loss = Loss(model, x, y, batch_size=128)
    settings = HessianSettings(what=("norms",))
    record = hessian_analysis(loss, threat_model, settings, attack=PGD(20), seed=0)

Parameters of activations are held fixed and do not count in any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import activation_parameters
from curvact.analysis import (
    Loss,
    SpectralDensity,
    average_flatness,
    diagonal_norms,
    diagonal_split,
    effective_curvature,
    match_radii,
    seeded,
    smoothness_report,
    spectral_density,
    top_eigenvalues,
    trace,
    worst_case_flatness,
)
from curvact.analysis.matching import PGD_20, MatchingRule
from curvact.analysis.records import OnProgress, plain
from curvact.analysis.smoothness import NORMS
from curvact.attacks import PGD, ThreatModel
from curvact.data import Splits
from curvact.errors import CurvactError, nearest
from curvact.lab.spec import AnalysesSpec
from curvact.random import generator

Record = dict[str, Any]
"""Plain JSON; what is not finite is None."""

KINDS = ("hessian", "flatness", "smoothness", "curvature")
HESSIAN_PARTS = ("norms", "split", "spectrum")
FLATNESS_PARTS = ("average", "worst")
HEADLINE_NORM = 0.01
"""Relative norm ‖Δθ‖/‖θ‖ of the steps behind a run's smoothness numbers. [ours]"""
DENSITY_POINTS = 400
BATCH_SIZE = 128
"""Images at a time in the analyses of a run."""
WORST_RESTARTS = 3
"""Of worst-case flatness in the analyses of a run."""


@dataclass(frozen=True)
class HessianSettings:
    """what: of `HESSIAN_PARTS`. Other settings as in `diagonal_norms`, `diagonal_split`,
    `top_eigenvalues`, `spectral_density`.

    eigenvalues: at each end. density_probes: 0 leaves the density out.
    """

    what: tuple[str, ...] = HESSIAN_PARTS
    probes: int = 32
    deflation: int = 8
    relative_error: float | None = None
    max_probes: int = 1024
    exact: bool = False
    by_site: bool = True
    eigenvalues: int = 3
    density_probes: int = 4
    density_steps: int = 64

    def __post_init__(self) -> None:
        check_names("what", self.what, HESSIAN_PARTS, "HessianSettings")


@dataclass(frozen=True)
class FlatnessSettings:
    """what: of `FLATNESS_PARTS`. radius, draws: of the average case. worst_radius, steps, restarts:
    of the worst case.
    """

    what: tuple[str, ...] = FLATNESS_PARTS
    radius: float = 0.5
    draws: int = 10
    worst_radius: float = 0.003
    steps: int = 20
    restarts: int = 10

    def __post_init__(self) -> None:
        check_names("what", self.what, FLATNESS_PARTS, "FlatnessSettings")


@dataclass(frozen=True)
class SmoothnessSettings:
    """rule: how the L2 radius is matched to the L∞ radius (`match_radii`). Other settings as in
    `smoothness_report`.
    """

    rule: MatchingRule = "loss"
    norms: tuple[float, ...] = NORMS
    directions: int = 5
    flatness: bool = True


def run_analyses(
    model: nn.Module,
    data: Splits,
    threat_model: ThreatModel,
    spec: AnalysesSpec,
    *,
    seed: int = 0,
    on_kind: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The headline numbers of some analyses of a trained model, flat, for the record of a run.
    [ours: the choice of numbers]

    Every name begins with that of its analysis. Numbers that are not finite (κ of a kink) are left
    out. Where the split of diag H does not hold (Sparta, a ViT), `hessian_clean_split_holds` is 0
    and its σ″ numbers are left out. The images are the first of the training split, for flatness of
    the test split. The norms of diag H are not among the numbers.

    threat_model: ε > 0. on_kind: called with the name of each analysis before it begins.
    Raises CurvactError as the analyses do.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> model, digits = MiniResNet(channels=1, width=2, activation="silu"), load("digits")
    >>> spec = AnalysesSpec(kinds=("curvature",), images=16)
    >>> sorted(run_analyses(model, digits, ThreatModel("linf", 0.1), spec))
    ['curvature_curved_half', 'curvature_curved_tenth', 'curvature_effective_max',
    'curvature_effective_mean']
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: dict[str, float] = {}
    for kind in (name for name in KINDS if name in spec.kinds):
        if on_kind is not None:
            on_kind(kind)
        images = (data.test if kind == "flatness" else data.train).first(spec.images).to(device)
        x = images.inputs()
        loss = Loss(model, x, images.labels, batch_size=BATCH_SIZE)
        if kind == "hessian":
            hessian = HessianSettings(
                what=("split", "spectrum"), probes=spec.probes, by_site=False, eigenvalues=1, density_probes=0
            )
            record = hessian_analysis(loss, threat_model, hessian, attack=spec.attack, seed=seed)
        elif kind == "flatness":
            flatness = FlatnessSettings(draws=spec.draws, restarts=WORST_RESTARTS)
            record = flatness_analysis(loss, threat_model, flatness, attack=spec.attack, seed=seed)
        elif kind == "smoothness":
            smoothness = SmoothnessSettings(norms=(HEADLINE_NORM,), directions=spec.directions)
            record = smoothness_analysis(loss, threat_model, smoothness, attack=spec.attack, seed=seed)
        else:
            record = effective_curvature(model, x, batch_size=BATCH_SIZE).as_dict()
        found |= headlines(kind, record)
    return found


def check_names(what: str, given: Collection[str], allowed: Sequence[str], where: str) -> None:
    """Raises CurvactError for none, or one that is not allowed."""
    if isinstance(given, str) or not given:
        raise CurvactError(f"{what}={given!r} in {where}: give one or more of {', '.join(allowed)}")
    for name in given:
        if name not in allowed:
            raise CurvactError(
                f"{what} names '{name}' in {where}{nearest(name, allowed)}; allowed are {', '.join(allowed)}"
            )


def own_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of activations (`curvact.activations.activation_parameters`), which
    no analysis counts.

    >>> from curvact.models import MiniResNet
    >>> own_parameters(MiniResNet(activation="pssilu(learnable=True)", width=2))[:1]
    ['act.alpha']
    """
    own = {id(p) for p in activation_parameters(model)}
    return [name for name, p in model.named_parameters() if id(p) in own]


# ---- one analysis, as a plain record ----


def hessian_analysis(
    loss: Loss,
    threat_model: ThreatModel,
    settings: HessianSettings = HessianSettings(),
    *,
    attack: PGD = PGD_20,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Record:
    """diag H of the clean and the adversarial loss: its norms, its split, and the spectrum of H.

    Under `losses`, by "clean" and "adversarial": `norms` as `DiagonalNorms`, `split` as
    `DiagonalSplit`, `spectrum` with `trace`, `largest` and `smallest` (with residuals), and
    `density`. `excluded`: the number of parameters of activations.
    loss: inputs (N, C, H, W) in [0, 1]. attack: of the adversarial loss; the perturbation is then
    held fixed.
    on_progress: counts the parts. Raises CurvactError as the analyses do.
    """
    own = set(own_parameters(loss.model))
    clean = loss.excluding(own)
    losses = {"clean": clean, "adversarial": clean.attacked(seeded(attack, threat_model, seed))}
    parts = [part for part in HESSIAN_PARTS if part in settings.what]
    record: Record = {
        "excluded": sum(p.numel() for name, p in loss.model.named_parameters() if name in own),
        "losses": {label: {} for label in losses},
    }
    jobs = [(label, part) for label in losses for part in parts]
    for done, (label, part) in enumerate(jobs, 1):
        random = generator(seed, f"analysis/{part}/{label}")
        record["losses"][label][part] = _hessian_part(part, losses[label], settings, random)
        if on_progress is not None:
            on_progress(done, len(jobs))
    return record


def _hessian_part(part: str, loss: Loss, settings: HessianSettings, random: torch.Generator) -> Record:
    probing: dict[str, Any] = {
        "probes": settings.probes,
        "relative_error": settings.relative_error,
        "max_probes": settings.max_probes,
        "exact": settings.exact,
        "generator": random,
    }
    if part == "split":
        return dict(plain(diagonal_split(loss, by_site=settings.by_site, **probing)))
    if part == "norms":
        return dict(plain(diagonal_norms(loss, deflation=settings.deflation, **probing)))
    found = trace(loss, deflation=settings.deflation, **probing)
    ends = top_eigenvalues(loss, count=settings.eigenvalues, ends="both", generator=random)
    record: Record = {"trace": {**plain(found), "mean_eigenvalue": plain(found.mean_eigenvalue)}}
    record |= plain(replace(ends, vectors=torch.empty(0)))
    del record["vectors"]
    if settings.density_probes:
        density = spectral_density(
            loss, probes=settings.density_probes, steps=settings.density_steps, generator=random
        )
        record["density"] = density_record(density)
    return record


def flatness_analysis(
    loss: Loss,
    threat_model: ThreatModel,
    settings: FlatnessSettings = FlatnessSettings(),
    *,
    attack: PGD = PGD_20,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Record:
    """Average- and worst-case flatness of the adversarial loss: `average`, `worst`. Arguments as
    `hessian_analysis`.
    """
    loss = loss.excluding(own_parameters(loss.model))
    run = seeded(attack, threat_model, seed)
    sizes = {"average": settings.draws, "worst": settings.restarts}
    total = sum(sizes[part] for part in settings.what)
    record: Record = {}

    def after(offset: int) -> OnProgress:
        return lambda done, _: on_progress(offset + done, total) if on_progress is not None else None

    if "average" in settings.what:
        record["average"] = average_flatness(
            loss, run, radius=settings.radius, draws=settings.draws, seed=seed, on_progress=after(0)
        ).as_dict()
    if "worst" in settings.what:
        record["worst"] = worst_case_flatness(
            loss,
            threat_model,
            attack=run,
            radius=settings.worst_radius,
            steps=settings.steps,
            restarts=settings.restarts,
            seed=seed,
            on_progress=after(settings.draws if "average" in settings.what else 0),
        ).as_dict()
    return record


def smoothness_analysis(
    loss: Loss,
    threat_model: ThreatModel,
    settings: SmoothnessSettings = SmoothnessSettings(),
    *,
    attack: PGD = PGD_20,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Record:
    """Smoothness of the clean, the L∞ and the L2 loss along random directions, and input flatness:
    of `SmoothnessReport`.

    threat_model: linf with its ε, or l2, for which ε∞ = ε₂/√d. The other radius follows by the
    rule. Other arguments as `hessian_analysis`. Raises CurvactError for another norm and for ε = 0.
    """
    loss = loss.excluding(own_parameters(loss.model))
    epsilon = linf_radius(threat_model, loss.inputs()[0][0])
    matched = match_radii(loss, epsilon, rule=settings.rule, attack=attack, seed=seed)
    return smoothness_report(
        loss,
        matched.attacks(attack, seed=seed),
        norms=settings.norms,
        directions=settings.directions,
        generator=generator(seed, "analysis/smoothness"),
        threat_models=matched.threat_models,
        flatness=settings.flatness,
        matching=matched.as_dict(),
        on_progress=on_progress,
    ).as_dict()


def linf_radius(threat_model: ThreatModel, x: Tensor) -> float:
    """ε of an L∞ threat model. For an L2 one ε/√d, that of the cube whose corners lie on its ball.
    CurvactError for L1.
    """
    if threat_model.norm == "linf":
        return threat_model.epsilon
    if threat_model.norm == "l2":
        return threat_model.epsilon / math.sqrt(x[0].numel())
    raise CurvactError(
        f"norm={threat_model.norm!r} in smoothness: it compares linf and l2, give the radius of one of them"
    )


def density_record(density: SpectralDensity) -> Record:
    """A spectral density as plain numbers: `nodes`, `weights`, and the density of that `width` at
    the points `at`.

    width: 1/100 of the range of the nodes, where they are not all alike. [ours]
    """
    low, high = density.nodes.min().item(), density.nodes.max().item()
    width = max((high - low) / 100, 1e-3 * max(abs(low), abs(high))) or 1.0
    at = torch.linspace(low - 4 * width, high + 4 * width, DENSITY_POINTS, dtype=torch.float64)
    record: Record = plain(
        {
            "width": width,
            "at": at.tolist(),
            "density": density.density(at, width).tolist(),
            "nodes": density.nodes.tolist(),
            "weights": density.weights.tolist(),
            "parameters": density.parameters,
        }
    )
    return record


# ---- headline numbers ----


def headlines(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of one analysis's record that a table over runs shows, by names that begin
    with `kind`.
    """
    read = {
        "hessian": _hessian_numbers,
        "flatness": _flatness_numbers,
        "smoothness": _smoothness_numbers,
        "curvature": _curvature_numbers,
    }[kind]
    return {
        f"{kind}_{name}": float(value)
        for name, value in read(record).items()
        if value is not None and math.isfinite(value)
    }


def _hessian_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for label, entry in record["losses"].items():
        if "norms" in entry:
            for name in ("rms", "gradient_relative", "scale_invariant"):
                numbers[f"{label}_{name}"] = entry["norms"][name]["value"]
                numbers[f"{label}_{name}_se"] = entry["norms"][name]["standard_error"]
        if "split" in entry:
            numbers[f"{label}_split_holds"] = float(entry["split"]["holds"])
        if "split" in entry and entry["split"]["holds"]:
            total = entry["split"]["total"]
            numbers[f"{label}_curvature_share"] = total["curvature_share"]["value"]
            numbers[f"{label}_curvature_share_se"] = total["curvature_share"]["standard_error"]
            numbers[f"{label}_cosine"] = total["cosine"]["value"]
            numbers[f"{label}_base_norm"] = total["base"]["value"]
            numbers[f"{label}_curvature_norm"] = total["curvature"]["value"]
        if "spectrum" in entry:
            spectrum = entry["spectrum"]
            numbers[f"{label}_trace"] = spectrum["trace"]["value"]
            numbers[f"{label}_trace_se"] = spectrum["trace"]["standard_error"]
            numbers[f"{label}_top_eigenvalue"] = spectrum["largest"][0]
            numbers[f"{label}_bottom_eigenvalue"] = spectrum["smallest"][0]
    return numbers


def _flatness_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    if "average" in record:
        numbers["average"] = record["average"]["flatness"]
        numbers["average_se"] = record["average"]["standard_error"]
    if "worst" in record:
        numbers["worst"] = record["worst"]["flatness"]
    return numbers


def _smoothness_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    norms = sorted({line["relative_norm"] for line in record["lines"]})
    middle = min(norms, key=lambda norm: abs(math.log(norm / HEADLINE_NORM)))
    numbers: dict[str, Any] = {"l2_radius": record["matching"].get("l2")}
    for line in record["lines"]:
        if line["relative_norm"] == middle:
            numbers[f"{line['attack']}_ratio"] = line["ratio"]
            numbers[f"{line['attack']}_drift"] = line["drift"]
    measures = record["flatness"]["measures"] if record["flatness"] else {}
    for name in ("gradient_norm", "top_eigenvalue", "linearity_error linf", "linearity_error l2"):
        if name in measures:
            numbers[f"input_{name.replace(' ', '_')}"] = measures[name]["mean"]
    return numbers


def _curvature_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    sites = record["sites"]
    effective = [site["effective"] for site in sites]
    numbers: dict[str, Any] = {"effective_mean": record["mean"]}
    if None not in effective:
        numbers["effective_max"] = max(effective)
    for name in ("curved_half", "curved_tenth"):
        shares = [site[name] for site in sites]
        if None not in shares:
            numbers[name] = math.fsum(shares) / len(shares)
    return numbers
