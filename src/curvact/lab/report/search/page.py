"""The page of a search, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from curvact.files import atomic_write
from curvact.lab.report.html import Plate, page_template, picture
from curvact.lab.report.interactive import script
from curvact.lab.report.search.about import Point, SearchAbout
from curvact.lab.report.search.figures import SMOOTHED, key_figure, progress_figure
from curvact.lab.report.style import to_svg, write_figure
from curvact.lab.statistics.question import Grid
from curvact.lab.statistics.words import count
from curvact.lab.table import Value

MOST_KEYS = 8
"""Keys of the space that have a figure."""

CAPTION = (
    "A point a trial: robust accuracy on the validation images. A tick at the bottom: a pruned trial, which "
    "was not attacked at its end. Grey band: one standard error below the winner, from the choice of "
    "validation images."
)
SMOOTH_CAPTION = (
    "Green: a local straight line through the completed trials [ours]; with several keys it mixes them."
)


def report_search(about: SearchAbout, folder: Path) -> dict[str, Path]:
    """Write report.html and the figures to `folder`; the paths by file name."""
    files: dict[str, Path] = {}
    keys = sorted(about.keys[:MOST_KEYS], key=lambda key: key != "curvature")
    figures = [key_figure(about, key) for key in keys]
    panels = []
    for key, figure in zip(keys, figures, strict=True):
        files |= write_figure(figure, folder / f"response-{_plain(key)}")
        panels.append(
            picture(to_svg(figure, outlines=False), f"Validation robust accuracy of each trial against {key}")
        )
    figure = progress_figure(about)
    files |= write_figure(figure, folder / "progress")
    what = "Accuracy of the trials and the best so far, against gradient evaluations"
    title = f"Response to {'κ' if keys[0] == 'curvature' else keys[0]}, and what the budget brought"
    plates = [
        Plate(title, _caption(figures[:1]), 2, (panels[0], picture(to_svg(figure, outlines=False), what)))
    ]
    if len(panels) > 1:
        columns = min(2, len(panels) - 1)
        plates.append(Plate("Response to the other keys", _caption(figures[1:]), columns, tuple(panels[1:])))
    code, source = script()
    page = page_template("search/page.html").render(
        title=about.title,
        trials_data="" if about.explorer is None else about.explorer.to_json(),
        script=code,
        script_source=source,
        facts=_facts(about),
        sentences=about.sentences,
        plates=plates,
        command=about.command,
        winner_yaml=about.winner_yaml,
        trials=trials_grid(about),
        provenance=about.provenance,
        spec_yaml=about.spec_yaml,
    )
    atomic_write(folder / "report.html", page)
    return {"report.html": folder / "report.html", **files}


def trials_grid(about: SearchAbout) -> Grid:
    """A line a trial, the best first; trials without an accuracy last."""
    order = sorted(about.points, key=lambda p: (p.state != "completed", -(p.accuracy or 0.0), p.number))
    lines = tuple(
        (
            f"{p.number}{' (winner)' if p.number == about.best else ''}",
            *(_value(p.settings.get(key)) for key in about.keys),
            p.state,
            "–" if p.accuracy is None else f"{100 * p.accuracy:.1f}",
            str(p.epochs),
            f"{p.evaluations:,}",
            p.run,
        )
        for p in order
    )
    keys = tuple("κ" if key == "curvature" else key for key in about.keys)
    heads = ("trial", *keys, "state", "robust %, validation", "epochs", "gradient evaluations", "run")
    causes = tuple(f"trial {p.number}: {p.cause}" for p in about.points if p.cause)
    return Grid("Trials", heads, lines, 1, causes)


def _caption(figures: Sequence[Figure]) -> str:
    """What is drawn in figures of keys; the smooth curve only where one of them has it."""
    labels = {line.get_label() for figure in figures for axes in figure.axes for line in axes.lines}
    return f"{CAPTION} {SMOOTH_CAPTION}" if SMOOTHED in labels else CAPTION


def _facts(about: SearchAbout) -> list[str]:
    states = [p.state for p in about.points]
    return [
        count(len(states), "trial"),
        *(
            f"{states.count(state)} {state}"
            for state in ("completed", "pruned", "failed", "left")
            if state in states
        ),
        f"{_last(about.points):,} of {about.budget:,} gradient evaluations",
    ]


def _last(points: tuple[Point, ...]) -> int:
    return points[-1].spent if points else 0


def _value(value: Value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in key)
