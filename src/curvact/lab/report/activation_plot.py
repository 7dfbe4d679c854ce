"""Curves of activations: value, slope and curvature side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from curvact.activations import ActivationLike
from curvact.activations.describe import as_activation
from curvact.files import atomic_write
from curvact.lab.report.style import canvas


def draw_activations(modules: Sequence[ActivationLike], path: Path, reach: float | None = None) -> Path:
    """Write `activations_figure` to a .png, .svg or .pdf file, and return the path."""
    figure = activations_figure(modules, reach)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    atomic_write(path, buffer.getvalue())
    return path


def activations_figure(
    modules: Sequence[ActivationLike], reach: float | None = None, ax: Axes | None = None
) -> Figure:
    """σ, σ' and σ'' of several activations side by side.

    reach: half the width of the x axis; by default it shows the widest bend. ax: of the user, see
    `curvact.lab.report.style.canvas`.
    """
    acts = [as_activation(module) for module in modules]
    if reach is None:
        scales = [act.max_curvature.value for act in acts]
        finite = [s for s in scales if 0 < s < math.inf]
        reach = min(6.0, max(1.0, 6 / min(finite))) if finite else 3.0
    x = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    figure = canvas((13, 4.2), ax)
    axes = figure.subplots(1, 3)
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    for index, (module, act) in enumerate(zip(modules, acts, strict=True)):
        label = module if isinstance(module, str) else repr(act)
        peak = act.max_curvature
        kappa = "∞" if math.isinf(peak.value) else f"{peak.value:.4g}"
        style = {
            "color": colours[index % len(colours)],
            "linestyle": ["-", "--", "-.", ":"][index // len(colours) % 4],
        }
        for axis, curve in zip(axes, (act(x), act.slope(x), act.curvature(x)), strict=True):
            axis.plot(x.numpy(), curve.numpy(), linewidth=1.8, label=f"{label}  (κ = {kappa})", **style)
    for axis, title in zip(axes, ("value σ(x)", "slope σ′(x)", "curvature σ″(x)"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("x")
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(3, len(acts)),
        frameon=False,
    )
    return figure
