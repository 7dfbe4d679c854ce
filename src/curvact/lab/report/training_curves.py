"""Training curves: accuracy by epoch on training and validation images, where robust overfitting
shows, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curvact.files import atomic_write
from curvact.lab.report.style import OKABE_ITO, canvas, house_style, plain_text, to_png, to_svg


def curves_figure(history: Sequence[Mapping[str, Any]], title: str, ax: Axes | None = None) -> Figure:
    """Two panels over epochs. history: one mapping an epoch, with the fields of
    `curvact.training.Epoch`. ax: see `curvact.lab.report.style.canvas`.

    The best epoch by validation robust accuracy is marked: where its curve falls after it while
    training accuracy still rises, the network overfits robustly (Rice et al. 2020).

    >>> epoch = {"epoch": 1, "loss": 2.0, "train_accuracy": 0.3, "validation_accuracy": 0.4, "validation_robust_accuracy": 0.2}
    >>> len(curves_figure([epoch], "one").axes)
    2
    """
    epochs = [e["epoch"] for e in history]
    with house_style():
        figure = canvas((8.4, 3.2), ax)
        accuracy, loss = figure.subplots(1, 2, width_ratios=[2, 1])
        lines = (
            ("train_accuracy", "training batches, attacked", OKABE_ITO[4], "--"),
            ("validation_accuracy", "validation, clean", OKABE_ITO[0], "-."),
            ("validation_robust_accuracy", "validation, robust", OKABE_ITO[1], "-"),
        )
        mark = "o" if len(epochs) < 30 else ""
        for key, label, colour, dash in lines:
            values = [100 * e[key] for e in history]
            accuracy.plot(
                epochs, values, color=colour, linestyle=dash, marker=mark, markersize=3, label=label
            )
        kept = [e for e in history if not e.get("note")]
        best = max(kept, key=lambda e: e["validation_robust_accuracy"])
        accuracy.axvline(best["epoch"], color="#888888", linewidth=0.8)
        accuracy.annotate(
            f"best: epoch {best['epoch']}, {100 * best['validation_robust_accuracy']:.1f} %",
            (best["epoch"], 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if best["epoch"] > sum(epochs) / len(epochs) else 4, 5),
            textcoords="offset points",
            ha="right" if best["epoch"] > sum(epochs) / len(epochs) else "left",
            fontsize=8,
            color="#444444",
        )
        accuracy.set(xlabel="epoch", ylabel="accuracy, %", title=plain_text(title))
        low, high = accuracy.get_ylim()
        accuracy.set_ylim(max(0.0, low), min(100.0, high + 0.12 * (high - low)))
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        loss.plot(epochs, [e["loss"] for e in history], color=OKABE_ITO[6], marker=mark, markersize=3)
        loss.set(xlabel="epoch", title="training loss")
        for axes in (accuracy, loss):
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_curves(history: Sequence[Mapping[str, Any]], where: Path, title: str) -> None:
    """Write `where` with the endings .png and .svg."""
    figure = curves_figure(history, title)
    atomic_write(where.with_suffix(".png"), to_png(figure))
    atomic_write(where.with_suffix(".svg"), to_svg(figure))
