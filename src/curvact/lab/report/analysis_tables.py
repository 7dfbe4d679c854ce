"""Report room: the tables that `curvact analyze` prints, from the plain dicts that results of analyses write as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

WHOLE = "[bold]whole network[/]"
NOISE = 0.5
"""A share or a cosine with a larger standard error is shown as noise. [ours]"""


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    table = Table(title=escape(title) or None, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def _number(value: Any, digits: int = 3) -> str:
    """
    >>> _number(0.012345), _number(None), _number(-2.0)
    ('0.0123', '–', '−2')
    """
    return "–" if value is None else f"{value:.{digits}g}".replace("-", "−")


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def _estimate(entry: Mapping[str, Any], scale: float = 1.0) -> str:
    """A value and its standard error, both to the first digit of the error.

    >>> _estimate({"value": 0.10621, "standard_error": 0.0023}), _estimate({"value": -97.8, "standard_error": 23.4})
    ('0.106 ± 0.002', '−98 ± 23')
    """
    value, error = entry["value"], entry["standard_error"]
    if value is None:
        return "–"
    value, error = scale * value, scale * (error or 0.0)
    if error == 0 or error < 1e-6 * abs(value):
        return _number(value)
    decimals = -math.floor(math.log10(error))
    if decimals > 5:
        return f"{_number(value)} ± {_number(error, 1)}"
    return f"{value:.{max(decimals, 0)}f} ± {error:.{max(decimals, 0)}f}".replace("-", "−")


def hessian_tables(name: str, result: Mapping[str, Any]) -> list[Table]:
    """Of `hessian_analysis`: norms by parameter tensor, the split of each loss by layer, the spectrum; whatever is there."""
    losses = result["losses"]
    tables = [
        _norms_table(f"{name}, {label} loss", entry["norms"])
        for label, entry in losses.items()
        if "norms" in entry
    ]
    for label, entry in losses.items():
        if "split" in entry:
            tables.append(_split_table(f"{name}, {label} loss", entry["split"]))
    if "spectrum" in next(iter(losses.values())):
        table = _table(
            f"{name}: spectrum of H", ["loss", "trace", "mean eigenvalue", "largest", "smallest", "residuals"]
        )
        for label, entry in losses.items():
            found = entry["spectrum"]
            worst = max((*found["largest_residuals"], *found["smallest_residuals"]))
            table.add_row(
                label,
                _estimate(found["trace"]),
                _number(found["trace"]["mean_eigenvalue"]),
                ", ".join(map(_number, found["largest"])),
                ", ".join(map(_number, found["smallest"])),
                f"≤ {_number(worst, 1)}" + ("" if found["converged"] else ", not converged"),
            )
        tables.append(table)
    return tables


def _norms_table(title: str, norms: Mapping[str, Any]) -> Table:
    columns = ["", "‖diag H‖/√P", "‖diag H‖/‖∇L‖", "‖θ²⊙diag H‖"]
    table = _table(f"{title}: norms of diag H ± standard error", columns)
    for layer, entry in (("", norms), *norms["layers"].items()):
        cells = [_estimate(entry[norm]) for norm in ("rms", "gradient_relative", "scale_invariant")]
        table.add_row(escape(layer) or WHOLE, *cells)
    return table


def _split_table(title: str, split: Mapping[str, Any]) -> Table:
    base = "diag GGN" if split["holds"] else "diag H₀"
    heading = f"{title}: diag H = g + c, g = {base}, c the σ″ part; shares ± standard error"
    if not split["holds"]:
        heading += "\ng is not diag GGN: " + "; ".join(split["why"])
    table = _table(heading, ["", "g %", "c %", "‖g‖", "‖c‖", "cos(g, c)", "largest call site"])
    for layer, part in (("", split["total"]), *split["layers"].items()):
        shown = not _noise(part["curvature_share"])
        sites = {
            site: entry["share"]["value"]
            for site, entry in part["sites"].items()
            if shown and entry["share"]["value"]
        }
        most = max(sites, key=lambda site: abs(sites[site]), default=None)
        table.add_row(
            escape(layer) or WHOLE,
            _estimate(part["base_share"], 100) if shown else "noise",
            _estimate(part["curvature_share"], 100) if shown else "noise",
            _number(part["base"]["value"]),
            _number(part["curvature"]["value"]),
            _cosine(part["cosine"]),
            "" if most is None else f"{escape(most)} {_percent(sites[most])} %",
        )
    return table


def _noise(share: Mapping[str, Any]) -> bool:
    return share["standard_error"] is None or share["standard_error"] > NOISE


def _cosine(cosine: Mapping[str, Any]) -> str:
    if cosine["value"] is None:
        return "–"
    return "noise" if _noise(cosine) else _estimate(cosine)


def flatness_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Of `flatness_analysis`, by name of the model."""
    table = _table(
        "rise of the adversarial loss when the weights move",
        ["model", "case", "ξ", "loss", "rise", "± SE", "highest", "parameters"],
        left=2,
    )
    for name, result in results.items():
        for case, record in result.items():
            losses = [loss for loss in record["losses"] if loss is not None]
            highest = max(losses) - record["loss"] if losses and record["loss"] is not None else None
            table.add_row(
                escape(name),
                case,
                _number(record["radius"]),
                _number(record["loss"], 4),
                _number(record["flatness"]),
                _number(record.get("standard_error"), 2),
                _number(highest),
                f"{record['parameters']:,}",
            )
    return table


def smoothness_tables(name: str, record: Mapping[str, Any]) -> list[Table]:
    """Of a `SmoothnessReport`: a row an attack and step length; flatness in the input beside it."""
    matching = record["matching"]
    table = _table(
        f"{name}: ‖Δ∇L‖/‖Δθ‖, linf ε = {_number(matching['linf'])}, l2 ε = {_number(matching['l2'])} ({matching['rule']})",
        ["attack", "‖Δθ‖/‖θ‖", "ratio", "± SE", "highest", "‖Δ∇L‖", "by the move", "drift"],
    )
    for line in record["lines"]:
        table.add_row(
            line["attack"],
            _number(line["relative_norm"]),
            _number(line["ratio"]),
            _number(line["ratio_error"], 2),
            _number(line["highest_ratio"]),
            _number(line["difference"]),
            _number(line["moved"]),
            _number(line["drift"]),
        )
    if not record["flatness"]:
        return [table]
    beside = _table(f"{name}: flatness in the input", ["measure", "mean", "median", "highest"])
    for measure, found in record["flatness"]["measures"].items():
        if measure != "residual":
            cells = [_number(found[key]) for key in ("mean", "median", "highest")]
            beside.add_row(measure.replace("_", " "), *cells)
    return [table, beside]


def trajectory_table(record: Mapping[str, Any], names: Sequence[str], run: str) -> Table:
    """Of a `TrajectorySmoothness`: a row an attack and pair of points; names: of the points."""
    matching = record["matching"]
    table = _table(
        f"‖Δ∇L‖/‖Δθ‖ between consecutive checkpoints of {escape(run)}, linf ε = {_number(matching['linf'])}, "
        f"l2 ε = {_number(matching['l2'])} ({matching['rule']})",
        ["attack", "from", "to", "‖Δθ‖", "ratio", "‖Δ∇L‖", "by the move", "drift"],
        left=3,
    )
    for row in record["rows"]:
        table.add_row(
            row["attack"],
            escape(names[row["index"]]),
            escape(names[row["index"] + 1]),
            *(_number(row[key]) for key in ("step", "ratio", "difference", "moved", "drift")),
        )
    return table


def landscape_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Of a `Landscape`, by name of the model."""
    table = _table(
        "mean loss on the grid", ["model", "loss", "at the model", "lowest", "median", "highest"], left=2
    )
    for name, record in results.items():
        for label in ("clean", "adversarial"):
            grid = record[label]
            losses = sorted(loss for row in grid for loss in row if loss is not None)
            middle = len(record["coordinates"]) // 2
            here = grid[middle][middle if record["dimensions"] == 2 else 0]
            some = (losses[0], losses[len(losses) // 2], losses[-1]) if losses else (None, None, None)
            table.add_row(escape(name), label, *(_number(value) for value in (here, *some)))
    return table


def shape_table(record: Mapping[str, Any]) -> Table:
    """Of a `ShapeTable`: a row a model."""
    columns = [
        "model",
        "activation",
        "κ",
        "|σ″| by 0",
        "σ>0, x<0",
        "slopes ∓∞",
        "clean %",
        "robust %",
        "radius",
        "Lipschitz",
    ]
    square = any(row["square_success"] is not None for row in record["rows"])
    columns += ["Square %"] if square else []
    table = _table("shape of the activations and robustness", columns, left=2)
    for row in record["rows"]:
        above = row["positive_on_negative"]
        table.add_row(
            escape(row["model"]),
            escape(row["activation"]) or "–",
            "∞" if row["kink"] else _number(row["max_curvature"]),
            _number(row["curvature_near_zero"]),
            "–" if above is None else "yes" if above else "no",
            f"{_number(row['slope_low'])}, {_number(row['slope_high'])}",
            _percent(row["clean_accuracy"]),
            _percent(row["robust_accuracy"]),
            _number(row["radius"]),
            _number(row["lipschitz"]),
            *([_percent(row["square_success"])] if square else []),
        )
    return table


def curvature_table(name: str, record: Mapping[str, Any]) -> Table:
    """Of an `EffectiveCurvature` or an `EffectiveCurvatureChange`: a row a call site."""
    change = "after" in record
    after = record["after"] if change else record
    kinds = dict.fromkeys(site["activation"] for site in after["sites"])
    columns = ["call site", *(["activation"] if len(kinds) > 1 else [])]
    left = len(columns)
    columns += ["κ", "s", "κ·s", "≥ κ/2 %", "≥ κ/10 %"]
    if change:
        columns += ["before: κ·s", "≥ κ/2 %", "κ·s after/before"]
    title = f"{name}: effective curvature κ·s, and share of units with |σ″| ≥ κ/2, ≥ κ/10"
    if len(kinds) == 1:
        title += f"; σ = {next(iter(kinds))}"
    table = _table(title, columns, left=left)
    earlier = record["before"]["sites"] if change else [{}] * len(after["sites"])
    for site, old in zip(after["sites"], earlier, strict=True):
        cells = [
            escape(site["site"]),
            *([escape(site["activation"])] if len(kinds) > 1 else []),
            "∞" if site["kink"] else _number(site["max_curvature"]),
            _number(site["spread"]),
            "∞" if site["kink"] else _number(site["effective"]),
            _percent(site["curved_half"]),
            _percent(site["curved_tenth"]),
        ]
        if change:
            cells += [
                "∞" if old["kink"] else _number(old["effective"]),
                _percent(old["curved_half"]),
                _number(record["ratio"][site["site"]]),
            ]
        table.add_row(*cells)
    return table
