"""Report room: figures of the smoothness of the adversarial loss, from the plain dicts that its results write as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from curvact.errors import CurvactError, nearest
from curvact.lab.report.analysis_plots import Record, plotted
from curvact.lab.report.style import (
    Look,
    house_style,
    legend_columns,
    log_ticks,
    looks_of,
    plain_text,
    title_text,
)

RATIO_LABEL = "‖Δ∇L‖ / ‖Δθ‖"
MEASURES = {
    "gradient_norm": "input gradient, ‖∇ₓℓ‖₂",
    "gradient_l1": "input gradient, ‖∇ₓℓ‖₁",
    "top_eigenvalue": "top eigenvalue of the input Hessian",
    "linearity_error": "local linearity error",
}


def smoothness_figure(record: Record, title: str = "") -> Figure:
    """Ratio, numerator and attack drift against the relative norm of the step, one curve an attack; a dot a direction.

    record: of `SmoothnessReport`. Dashed in the second panel: what the move of the attack adds to the numerator. Values of 0
    (no attack: no drift) cannot be shown on these axes and are left out.
    Raises CurvactError for a record of another kind or without rows.

    >>> row = {"attack": "linf", "relative_norm": 0.1, "ratio": 2.0, "difference": 1.0, "moved": 0.5, "drift": 0.2}
    >>> len(smoothness_figure({"kind": "directions", "rows": [row]}).axes)
    3
    """
    rows = _rows(record, "directions")
    attacks = list(dict.fromkeys(str(row["attack"]) for row in rows))
    looks = looks_of(attacks)
    panels = (
        ("Lipschitz ratio of the gradient", RATIO_LABEL, ("ratio",)),
        ("Its numerator", "‖Δ∇L‖", ("difference", "moved")),
        ("Drift of the attack", "mean ‖δ*₁ − δ*₂‖₂, input units", ("drift",)),
    )
    with house_style():
        figure = Figure(figsize=(11.4, 3.9), layout=_layout())
        for axes, (heading, label, columns) in zip(figure.subplots(1, 3), panels, strict=True):
            for attack in attacks:
                mine = [row for row in rows if row["attack"] == attack]
                for column in columns:
                    _means(
                        axes, mine, "relative_norm", column, looks[attack], attack, dashed=column == "moved"
                    )
            _log_axes(axes)
            axes.set(title=heading, xlabel="relative norm ‖Δθ‖/‖θ‖", ylabel=label)
        _legend(
            figure, [(plain_text(name), look) for name, look in looks.items()], dashed="moved by the attack"
        )
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def trajectory_figure(
    records: Mapping[str, Record], attacks: Sequence[str] | None = None, title: str = "", label: str = "point"
) -> Figure:
    """Ratio, numerator, attack drift and step along training, one curve a run and attack: SGD against EntropySGD, L∞ against L2.

    Ratios of steps of other lengths are not the same measurement where the gradient jumps: hence the fourth panel.

    records: of `TrajectorySmoothness`, by name of the run. attacks: which to draw; all where None. label: of the positions, such
    as "gradient evaluations". Raises CurvactError for no records, or an attack that is in none.

    >>> row = {"attack": "linf", "position": 1, "ratio": 2.0, "difference": 1.0, "drift": 0.2, "relative_norm": 0.1}
    >>> len(trajectory_figure({"SGD": {"kind": "trajectory", "rows": [row]}}).axes)
    4
    """
    found = {name: _rows(record, "trajectory") for name, record in records.items()}
    known = list(dict.fromkeys(str(row["attack"]) for rows in found.values() for row in rows))
    if not known:
        raise CurvactError("trajectory_figure got no records: there is nothing to draw")
    for attack in attacks or ():
        if attack not in known:
            raise CurvactError(
                f"attack {attack!r} in trajectory_figure: the records have {', '.join(known)}{nearest(attack, known)}"
            )
    chosen = list(attacks or known)
    names = {
        (run, attack): run if len(chosen) == 1 else attack if len(found) == 1 else f"{run}, {attack}"
        for run, rows in found.items()
        for attack in chosen
        if any(row["attack"] == attack for row in rows)
    }
    looks = looks_of(list(names.values()))
    panels = (
        ("Lipschitz ratio of the gradient", RATIO_LABEL, "ratio"),
        ("Its numerator", "‖Δ∇L‖", "difference"),
        ("Drift of the attack", "mean ‖δ*₁ − δ*₂‖₂, input units", "drift"),
        ("Length of the step", "‖Δθ‖/‖θ‖", "relative_norm"),
    )
    with house_style():
        figure = Figure(figsize=(9.0, 6.6), layout=_layout())
        for axes, (heading, unit, column) in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            for (run, attack), name in names.items():
                mine = [row for row in found[run] if row["attack"] == attack]
                at = np.array([plotted(row["position"]) for row in mine])
                values = np.array([plotted(row[column]) for row in mine])
                seen = np.isfinite(at) & (values > 0)
                look = looks[name]
                mark = look.marker if len(at) <= 30 else ""
                axes.plot(at[seen], values[seen], color=look.colour, marker=mark, linestyle=look.dash)
            axes.set_yscale("log")
            _ticks_if_any(axes, "y")
            axes.set(title=heading, xlabel=label, ylabel=unit)
        _legend(figure, [(plain_text(name), look) for name, look in looks.items()])
        if title:
            figure.suptitle(title_text(title), fontsize=11, fontweight="bold", ha="left", x=0.01)
        return figure


def tradeoff_figure(
    records: Mapping[str, Record],
    *,
    measure: str = "top_eigenvalue",
    relative_norm: float | None = None,
    title: str = "",
) -> Figure:
    """Is what is flatter in the input rougher in the parameters? A mark for each model and attack: flat left, rough above.

    records: of `SmoothnessReport`, with flatness, by name of the model. measure: of the flatness, mean over the examples:
        "gradient_norm", "gradient_l1", "top_eigenvalue" or "linearity_error" (of the ball with the name of the attack).
    relative_norm: of the steps; the middle one of the first record where None. Up: mean ratio, with ± 2 standard errors over the
        directions. Spearman's rank correlation of each attack is in the legend where there are 3 models or more.
    Raises CurvactError for an unknown measure or norm, records without flatness, or nothing that can be shown.

    >>> line = {"attack": "linf", "relative_norm": 0.1, "ratio": 2.0, "ratio_error": 0.1}
    >>> flat = {"measures": {"top_eigenvalue": {"mean": 0.5}}}
    >>> record = {"kind": "directions", "rows": [line], "lines": [line], "flatness": flat}
    >>> tradeoff_figure({"net": record}).axes[0].get_xlabel()
    'top eigenvalue of the input Hessian'
    """
    if measure not in MEASURES:
        raise CurvactError(
            f"measure={measure!r} in tradeoff_figure: allowed are {', '.join(MEASURES)}{nearest(measure, MEASURES)}"
        )
    if not records:
        raise CurvactError("tradeoff_figure got no records: there is nothing to draw")
    for name, record in records.items():
        _rows(record, "directions")
        if not record.get("flatness"):
            raise CurvactError(f"the record of {name!r} in tradeoff_figure was made without input flatness")
    norms = sorted({line["relative_norm"] for line in next(iter(records.values()))["lines"]})
    norm = norms[len(norms) // 2] if relative_norm is None else relative_norm
    points: dict[str, list[tuple[str, float, float, float]]] = {}
    for name, record in records.items():
        for line in record["lines"]:
            if line["relative_norm"] != norm:
                continue
            key = f"{measure} {line['attack']}" if measure == "linearity_error" else measure
            flat = record["flatness"]["measures"].get(key)
            x, y = plotted(None if flat is None else flat["mean"]), plotted(line["ratio"])
            if x > 0 and y > 0:
                error = 2 * plotted(line.get("ratio_error"))
                points.setdefault(str(line["attack"]), []).append((name, x, y, error))
    if not points:
        raise CurvactError(
            f"nothing to draw in tradeoff_figure: no model has {measure} > 0 and a ratio at relative norm {norm:g}"
        )
    looks = looks_of(
        list(dict.fromkeys(str(line["attack"]) for record in records.values() for line in record["lines"]))
    )
    with house_style():
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.subplots()
        legend = []
        for attack, found in points.items():
            look = looks[attack]
            _, across, up, errors = zip(*found, strict=True)
            lower = [
                0.0 if not math.isfinite(e) else min(e, 0.95 * y) for y, e in zip(up, errors, strict=True)
            ]
            upper = [0.0 if not math.isfinite(e) else e for e in errors]
            axes.errorbar(
                across, up, yerr=[lower, upper], linestyle="none", marker=look.marker, color=look.colour
            )
            text = plain_text(attack)
            if len(found) > 2:
                text += f", rank correlation {_spearman(across, up):+.2f}"
            legend.append((text, Look(look.colour, look.marker, "none")))
        top: dict[str, tuple[float, float]] = {}
        for found in points.values():
            for name, x, y, error in found:
                end = y + error if math.isfinite(error) else y
                if name not in top or end > top[name][1]:
                    top[name] = (x, end)
        for name, place in top.items():
            axes.annotate(
                plain_text(name),
                place,
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="#444444",
            )
        axes.margins(0.16)
        _log_axes(axes)
        axes.grid(True, axis="both")
        axes.set(
            xlabel=MEASURES[measure],
            ylabel=f"{RATIO_LABEL} at relative norm {norm:g}",
            title=title_text(title),
        )
        _legend(figure, legend)
        return figure


def _rows(record: Record, kind: str) -> list[Mapping[str, Any]]:
    rows = list(record.get("rows", ()))
    if record.get("kind") != kind or not rows:
        raise CurvactError(
            f"a record of kind {record.get('kind')!r} with {len(rows)} rows in a figure of smoothness: needs {kind!r}, with rows"
        )
    return rows


def _means(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    where: str,
    column: str,
    look: Look,
    label: str,
    *,
    dashed: bool,
) -> None:
    """The mean at each place, and a faint dot a row."""
    at = np.array([plotted(row[where]) for row in rows])
    values = np.array([plotted(row[column]) for row in rows])
    seen = values > 0
    at, values = at[seen], values[seen]
    if not len(at):
        return
    places = np.unique(at)
    means = [float(values[at == place].mean()) for place in places]
    if not dashed:
        axes.plot(
            at,
            values,
            linestyle="none",
            marker=look.marker,
            markersize=3.2,
            color=look.colour,
            alpha=0.4,
            markeredgewidth=0,
        )
    face = "white" if dashed else look.colour
    axes.plot(
        places,
        means,
        color=look.colour,
        marker=look.marker,
        markerfacecolor=face,
        label=label,
        linestyle="--" if dashed else "-",
    )


def _log_axes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for which in ("x", "y"):
        _ticks_if_any(axes, which)


def _ticks_if_any(axes: Axes, which: str) -> None:
    """Our ticks, with room for at least a decade's third, which one value alone would not have."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if high < 2 * low:
        middle = math.sqrt(low * high)
        (axes.set_xlim if which == "x" else axes.set_ylim)(middle / 1.5, middle * 1.5)
    log_ticks(axes, which)


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]], dashed: str = "") -> None:
    handles: list[Artist] = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=text)  # type: ignore[arg-type]
        for text, look in entries
    ]
    if dashed:
        handles.append(Line2D([], [], color="#444444", linestyle="--", label=dashed))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns(handles, float(figure.get_size_inches()[0])),
    )


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
