"""Analyses of one trained model as plain records, and their headline numbers for a study's trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from curvact.activations import activation_parameters
from curvact.analysis.effective_curvature import effective_curvature
from curvact.analysis.flatness import average_flatness, worst_case_flatness
from curvact.analysis.hessian import (
    SpectralDensity,
    diagonal_norms,
    diagonal_split,
    spectral_density,
    top_eigenvalues,
    trace,
)
from curvact.analysis.loss import Loss
from curvact.analysis.records import OnProgress, finite
from curvact.analysis.smoothness import MatchingRule, fixed_pgd, match_radii, smoothness_report
from curvact.attacks import ThreatModel
from curvact.attacks.pgd import mode
from curvact.data import Splits
from curvact.errors import CurvactError, nearest
from curvact.random import generator

Record = dict[str, Any]
"""Plain JSON; what is not finite is None."""

KINDS = ("hessian", "flatness", "smoothness", "curvature")
HESSIAN_PARTS = ("norms", "split", "spectrum")
FLATNESS_PARTS = ("average", "worst")
HEADLINE_NORM = 0.01
"""Relative norm ‖Δθ‖/‖θ‖ of the steps behind a trial's smoothness numbers. [ours]"""
DENSITY_POINTS = 400


def run_analyses(
    model: nn.Module,
    data: Splits,
    threat_model: ThreatModel,
    kinds: Collection[str],
    *,
    seed: int = 0,
    images: int = 128,
    batch_size: int = 128,
    attack_steps: int = 10,
    probes: int = 32,
    directions: int = 3,
    draws: int = 10,
    worst_steps: int = 20,
    worst_restarts: int = 3,
    on_kind: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The headline numbers of some analyses of a trained model, flat, for the record of a trial. [ours: the choice of numbers]

    Every name begins with that of its analysis; numbers that are not finite (κ of a kink) are left out, and so is what the split
    of diag H says of σ″ where the split does not hold (Sparta, a ViT): `hessian_clean_split_holds` is 0 then. The first `images`
    of the training split are looked at, of the test split for flatness. The norms of diag H are not among them: a trial's
    `hessian` settings give these.

    kinds: of `KINDS`. threat_model: ε > 0. attack_steps: of PGD, from one random start. probes: of the split and the trace.
    directions: of smoothness. draws: of average-case flatness. on_kind: called with the name of each analysis before it begins.
    Raises CurvactError for an unknown kind, and what the analyses raise.

    >>> from curvact.data import load
    >>> from curvact.models import MiniResNet
    >>> model, digits = MiniResNet(channels=1, width=2, activation="silu"), load("digits")
    >>> found = run_analyses(model, digits, ThreatModel("linf", 0.1), ["curvature"], images=16)
    >>> sorted(found)
    ['curvature_curved_half', 'curvature_curved_tenth', 'curvature_effective_max', 'curvature_effective_mean']
    """
    check_names("kinds", kinds, KINDS, "run_analyses")
    if images < 1 or batch_size < 1:
        raise CurvactError(f"images={images}, batch_size={batch_size} in run_analyses: at least 1 of each")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: dict[str, float] = {}
    for kind in (name for name in KINDS if name in kinds):
        if on_kind is not None:
            on_kind(kind)
        chosen = (data.test if kind == "flatness" else data.train).first(images).to(device)
        x, y = chosen.inputs(), chosen.labels
        common: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
        if kind == "hessian":
            record = hessian_analysis(
                model,
                x,
                y,
                threat_model,
                what=("split", "spectrum"),
                attack_steps=attack_steps,
                probes=probes,
                by_site=False,
                eigenvalues=1,
                density_probes=0,
                **common,
            )
        elif kind == "flatness":
            record = flatness_analysis(
                model,
                x,
                y,
                threat_model,
                attack_steps=attack_steps,
                draws=draws,
                steps=worst_steps,
                restarts=worst_restarts,
                **common,
            )
        elif kind == "smoothness":
            record = smoothness_analysis(
                model,
                x,
                y,
                threat_model,
                attack_steps=attack_steps,
                norms=(HEADLINE_NORM,),
                directions=directions,
                **common,
            )
        else:
            record = effective_curvature(model, x, batch_size=batch_size).as_dict()
        found |= headlines(kind, record)
    return found


def headlines(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of one analysis's record that a table over trials shows, by names that begin with `kind`."""
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
    """Names of the parameters of activations (`curvact.activations.activation_parameters`): left out of every analysis.

    >>> from curvact.models import MiniResNet
    >>> own_parameters(MiniResNet(activation="pssilu(learnable=True)", width=2))[:1]
    ['act.alpha']
    """
    own = {id(p) for p in activation_parameters(model)}
    return [name for name, p in model.named_parameters() if id(p) in own]


# ---- one analysis, as a plain record ----


def hessian_analysis(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    what: Collection[str] = HESSIAN_PARTS,
    seed: int = 0,
    batch_size: int = 128,
    attack_steps: int = 20,
    probes: int = 32,
    deflation: int = 8,
    relative_error: float | None = None,
    max_probes: int = 1024,
    exact: bool = False,
    by_site: bool = True,
    eigenvalues: int = 3,
    density_probes: int = 4,
    density_steps: int = 64,
    on_progress: OnProgress | None = None,
) -> Record:
    """diag H of the clean and the adversarial loss: its norms, its split, and the spectrum of H, without activations' parameters.

    Under `losses`, by "clean" and "adversarial": `norms` as `DiagonalNorms`, `split` as `DiagonalSplit`, `spectrum` with `trace`,
    `largest` and `smallest` (with residuals), and `density` (absent where density_probes is 0). `excluded`: how many numbers
    were left out. on_progress counts these parts.
    x: (N, C, H, W) in [0, 1]. The attack is PGD with `attack_steps` steps of 2.5ε/attack_steps, held fixed after.
    Other arguments and errors as `diagonal_norms`, `diagonal_split` and those of `spectrum`.
    """
    check_names("what", what, HESSIAN_PARTS, "hessian_analysis")
    exclude = own_parameters(model)
    size = min(batch_size, len(x))
    attacked = _attacked(model, x, y, threat_model, attack_steps, seed, size)
    total, done = 2 * len(set(what)), 0
    losses: Record = {}
    for label, points in (("clean", x), ("adversarial", attacked)):
        loss = Loss(model, points, y, exclude=exclude, batch_size=size)
        stopping: dict[str, Any] = {"relative_error": relative_error, "max_probes": max_probes}
        entry: Record = {}
        for part in (name for name in HESSIAN_PARTS if name in what):
            random = generator(seed, f"analysis/{part}/{label}")
            if part == "norms":
                norms = diagonal_norms(
                    loss,
                    probes=probes,
                    deflation=deflation,
                    exact=exact,
                    generator=random,
                    **stopping,
                )
                entry[part] = plain(asdict(norms))
            elif part == "split":
                split = diagonal_split(
                    loss,
                    probes=probes,
                    exact=exact,
                    by_site=by_site,
                    generator=random,
                    **stopping,
                )
                entry[part] = plain(asdict(split))
            else:
                entry[part] = _spectrum(
                    loss,
                    random,
                    {"probes": probes, "deflation": deflation, "exact": exact, **stopping},
                    eigenvalues,
                    density_probes,
                    density_steps,
                )
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        losses[label] = entry
    own = set(exclude)
    return {
        "excluded": sum(p.numel() for name, p in model.named_parameters() if name in own),
        "losses": losses,
    }


def flatness_analysis(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    what: Collection[str] = FLATNESS_PARTS,
    seed: int = 0,
    batch_size: int = 128,
    attack_steps: int = 20,
    radius: float = 0.5,
    draws: int = 10,
    worst_radius: float = 0.003,
    steps: int = 20,
    restarts: int = 10,
    on_progress: OnProgress | None = None,
) -> Record:
    """Average- and worst-case flatness of the adversarial loss, activations' parameters held fixed: `average`, `worst`.

    radius, draws: of the average case; worst_radius, steps, restarts: of the worst. The attack as in `hessian_analysis`.
    """
    check_names("what", what, FLATNESS_PARTS, "flatness_analysis")
    attack = fixed_pgd(threat_model, steps=attack_steps, seed=seed)
    sizes = {"average": draws, "worst": restarts}
    total = sum(sizes[part] for part in FLATNESS_PARTS if part in what)
    common: dict[str, Any] = {"seed": seed, "exclude": own_parameters(model), "batch_size": batch_size}
    record: Record = {}

    def after(offset: int) -> OnProgress:
        return lambda done, _: on_progress(offset + done, total) if on_progress is not None else None

    if "average" in what:
        record["average"] = average_flatness(
            model, x, y, attack, radius=radius, draws=draws, on_progress=after(0), **common
        ).as_dict()
    if "worst" in what:
        record["worst"] = worst_case_flatness(
            model,
            x,
            y,
            threat_model,
            attack=attack,
            radius=worst_radius,
            steps=steps,
            restarts=restarts,
            on_progress=after(draws if "average" in what else 0),
            **common,
        ).as_dict()
    return record


def smoothness_analysis(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    rule: MatchingRule = "loss",
    seed: int = 0,
    batch_size: int = 128,
    attack_steps: int = 20,
    norms: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
    directions: int = 5,
    flatness: bool = True,
    on_progress: OnProgress | None = None,
) -> Record:
    """Smoothness of the clean, the L∞ and the L2 loss along random directions, input flatness beside it: of `SmoothnessReport`.

    threat_model: linf, whose ε is taken, or l2, for which ε∞ = ε₂/√d is; the other radius follows by `rule` (`match_radii`).
    Raises CurvactError for another norm and for ε = 0.
    """
    matched = match_radii(
        model,
        x,
        y,
        linf_radius(threat_model, x),
        rule=rule,
        steps=attack_steps,
        seed=seed,
        batch_size=batch_size,
    )
    return smoothness_report(
        model,
        x,
        y,
        matched.attacks(steps=attack_steps, seed=seed),
        norms=norms,
        directions=directions,
        generator=generator(seed, "analysis/smoothness"),
        threat_models=matched.threat_models,
        flatness=flatness,
        matching=matched.as_dict(),
        exclude=own_parameters(model),
        batch_size=batch_size,
        progress=on_progress,
    ).as_dict()


def linf_radius(threat_model: ThreatModel, x: Tensor) -> float:
    """ε of an L∞ threat model; of an L2 one that of the cube whose corners lie on its ball, ε/√d. CurvactError for L1."""
    if threat_model.norm == "linf":
        return threat_model.epsilon
    if threat_model.norm == "l2":
        return threat_model.epsilon / math.sqrt(x[0].numel())
    raise CurvactError(
        f"norm={threat_model.norm!r} in smoothness: it compares linf and l2, give the radius of one of them"
    )


def _attacked(
    model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel, steps: int, seed: int, size: int
) -> Tensor:
    attack = fixed_pgd(threat_model, steps=steps, seed=seed)
    parts = zip(torch.split(x, size), torch.split(y, size), strict=True)
    with mode(model, training=False):
        return torch.cat([attack(model, images, labels).detach() for images, labels in parts])


def _spectrum(
    loss: Loss,
    random: torch.Generator,
    probing: Mapping[str, Any],
    count: int,
    density_probes: int,
    density_steps: int,
) -> Record:
    found = trace(loss, generator=random, **probing)
    ends = top_eigenvalues(loss, count=count, ends="both", generator=random)
    record: Record = {
        "trace": plain(asdict(found)) | {"mean_eigenvalue": finite(found.mean_eigenvalue)},
        "largest": plain(ends.largest),
        "smallest": plain(ends.smallest),
        "largest_residuals": plain(ends.largest_residuals),
        "smallest_residuals": plain(ends.smallest_residuals),
        "converged": ends.converged,
        "products": ends.products,
    }
    if density_probes:
        drawn = spectral_density(loss, probes=density_probes, steps=density_steps, generator=random)
        record["density"] = density_record(drawn)
    return record


def density_record(density: SpectralDensity) -> Record:
    """A spectral density as plain numbers: `nodes` and `weights`, and the density `at` points, widened by `width`.

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


def plain(value: Any) -> Any:
    """Nested dicts, lists and numbers as JSON has them; what is not finite is None.

    >>> plain({"a": (1.0, float("inf"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return finite(value)


# ---- headline numbers ----


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
