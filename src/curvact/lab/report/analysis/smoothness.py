"""Smoothness of the adversarial loss in the parameters, as figures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from rich.markup import escape
from rich.table import Table

from curvact.errors import CurvactError, nearest
from curvact.lab.report.analysis.common import (
    Record,
    annotate,
    check_not_empty,
    headline,
    legend,
    log_axis,
    new_table,
    number,
    plotted,
)
from curvact.lab.report.style import (
    GREY,
    Look,
    canvas,
    house_style,
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


def smoothness_figure(record: Record, title: str = "", ax: Axes | None = None) -> Figure:
    """Ratio, numerator and drift of the attack against the length of the step.

    A curve an attack, a dot a direction. Dashed: what the move of the attack adds to the numerator.
    Values of 0 are left out, since the axes are logarithmic. record: of `SmoothnessReport`.
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
        figure = canvas((11.4, 3.9), ax, _layout())
        for axes, (heading, label, columns) in zip(figure.subplots(1, 3), panels, strict=True):
            for attack in attacks:
                mine = [row for row in rows if row["attack"] == attack]
                for column in columns:
                    _means(axes, mine, column, looks[attack], attack)
            log_axis(axes, "x")
            log_axis(axes, "y")
            axes.set(title=heading, xlabel="relative norm ‖Δθ‖/‖θ‖", ylabel=label)
        _legend(
            figure, [(plain_text(name), look) for name, look in looks.items()], dashed="moved by the attack"
        )
        headline(figure, title)
        return figure


def trajectory_figure(
    records: Mapping[str, Record],
    attacks: Sequence[str] | None = None,
    title: str = "",
    label: str = "point",
    ax: Axes | None = None,
) -> Figure:
    """Ratio, numerator, drift of the attack and step along training, a curve a run and attack.

    The fourth panel shows the steps: ratios of steps of different lengths are different
    measurements where the gradient jumps.
    records: of `TrajectorySmoothness`, by name of the run. attacks: which to draw; None for all.
    label: of the positions, such as "gradient evaluations". Raises CurvactError for no records, or
    an unknown attack.

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
        figure = canvas((9.0, 6.6), ax, _layout())
        for axes, (heading, unit, column) in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            for (run, attack), name in names.items():
                mine = [row for row in found[run] if row["attack"] == attack]
                at = np.array([plotted(row["position"]) for row in mine])
                values = np.array([plotted(row[column]) for row in mine])
                seen = np.isfinite(at) & (values > 0)
                look = looks[name]
                mark = look.marker if len(at) <= 30 else ""
                axes.plot(at[seen], values[seen], color=look.colour, marker=mark, linestyle=look.dash)
            log_axis(axes, "y")
            axes.set(title=heading, xlabel=label, ylabel=unit)
        _legend(figure, [(plain_text(name), look) for name, look in looks.items()])
        headline(figure, title)
        return figure


def tradeoff_figure(
    records: Mapping[str, Record],
    *,
    measure: str = "top_eigenvalue",
    relative_norm: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Flatness in the input against roughness in the parameters, a mark for each model and attack.

    Bars are ± 2 standard errors over the directions. With three models or more, the legend has
    Spearman's rank correlation of each attack.
    records: of `SmoothnessReport` with flatness, by name of the model.
    measure: "gradient_norm", "gradient_l1", "top_eigenvalue" or "linearity_error", as a mean over
    the images.
    relative_norm: length of the steps; None for the middle one of the first record.
    Raises CurvactError for an unknown measure or norm, records without flatness, or nothing to
    draw.

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
    check_not_empty(records, "tradeoff_figure")
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
        figure = canvas((6.4, 4.6), ax)
        axes = figure.subplots()
        entries = []
        for attack, found in points.items():
            look = looks[attack]
            _, across, up, errors = zip(*found, strict=True)
            upper = np.nan_to_num(errors, nan=0.0, posinf=0.0)
            bars = [np.minimum(upper, 0.95 * np.array(up)), upper]
            axes.errorbar(across, up, yerr=bars, linestyle="none", marker=look.marker, color=look.colour)
            text = plain_text(attack)
            if len(found) > 2:
                text += f", rank correlation {_spearman(across, up):+.2f}"
            entries.append((text, Look(look.colour, look.marker, "none")))
        top: dict[str, tuple[float, float]] = {}
        for found in points.values():
            for name, x, y, error in found:
                end = y + error if math.isfinite(error) else y
                if name not in top or end > top[name][1]:
                    top[name] = (x, end)
        annotate(axes, ((name, *place) for name, place in top.items()), size=8)
        axes.margins(0.16)
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.grid(True, axis="both")
        axes.set(
            xlabel=MEASURES[measure],
            ylabel=f"{RATIO_LABEL} at relative norm {norm:g}",
            title=title_text(title),
        )
        _legend(figure, entries)
        return figure


def smoothness_tables(name: str, record: Record) -> list[Table]:
    """The record of a `SmoothnessReport`: a row an attack and step, then flatness in the input."""
    matching = record["matching"]
    table = new_table(
        f"{name}: ‖Δ∇L‖/‖Δθ‖, linf ε = {number(matching['linf'])}, l2 ε = {number(matching['l2'])} ({matching['rule']})",
        ["attack", "‖Δθ‖/‖θ‖", "ratio", "± SE", "highest", "‖Δ∇L‖", "by the move", "drift"],
    )
    for line in record["lines"]:
        cells = [number(line[key]) for key in ("relative_norm", "ratio")]
        cells.append(number(line["ratio_error"], 2))
        cells += [number(line[key]) for key in ("highest_ratio", "difference", "moved", "drift")]
        table.add_row(line["attack"], *cells)
    if not record["flatness"]:
        return [table]
    beside = new_table(f"{name}: flatness in the input", ["measure", "mean", "median", "highest"])
    for measure, found in record["flatness"]["measures"].items():
        if measure != "residual":
            cells = [number(found[key]) for key in ("mean", "median", "highest")]
            beside.add_row(measure.replace("_", " "), *cells)
    return [table, beside]


def trajectory_table(record: Record, names: Sequence[str], run: str) -> Table:
    """The record of a `TrajectorySmoothness`, a row an attack and pair of points.

    names: of the points.
    """
    matching = record["matching"]
    table = new_table(
        f"‖Δ∇L‖/‖Δθ‖ between consecutive checkpoints of {escape(run)}, linf ε = {number(matching['linf'])}, "
        f"l2 ε = {number(matching['l2'])} ({matching['rule']})",
        ["attack", "from", "to", "‖Δθ‖", "ratio", "‖Δ∇L‖", "by the move", "drift"],
        left=3,
    )
    for row in record["rows"]:
        table.add_row(
            row["attack"],
            escape(names[row["index"]]),
            escape(names[row["index"] + 1]),
            *(number(row[key]) for key in ("step", "ratio", "difference", "moved", "drift")),
        )
    return table


def _rows(record: Record, kind: str) -> list[Record]:
    rows = list(record.get("rows", ()))
    if record.get("kind") != kind or not rows:
        raise CurvactError(
            f"a record of kind {record.get('kind')!r} with {len(rows)} rows in a figure of smoothness: needs {kind!r}, with rows"
        )
    return rows


def _means(axes: Axes, rows: Sequence[Record], column: str, look: Look, label: str) -> None:
    """The mean at each length of step, and a faint dot for every row. "moved" is dashed."""
    dashed = column == "moved"
    at = np.array([plotted(row["relative_norm"]) for row in rows])
    values = np.array([plotted(row[column]) for row in rows])
    seen = values > 0
    at, values = at[seen], values[seen]
    if not len(at):
        return
    places = np.unique(at)
    means = [float(values[at == place].mean()) for place in places]
    if not dashed:
        axes.plot(at, values, look.marker, markersize=3.2, color=look.colour, alpha=0.4, markeredgewidth=0)
    dash, face = ("--", "white") if dashed else ("-", look.colour)
    axes.plot(places, means, dash, color=look.colour, marker=look.marker, markerfacecolor=face, label=label)


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]], dashed: str = "") -> None:
    handles: list[Artist] = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=text)  # type: ignore[arg-type]
        for text, look in entries
    ]
    if dashed:
        handles.append(Line2D([], [], color=GREY, linestyle="--", label=dashed))
    legend(figure, handles)


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
