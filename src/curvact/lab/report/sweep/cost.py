"""The cost of a sweep as tables."""

from __future__ import annotations

from collections.abc import Sequence

from curvact.errors import CurvactError, nearest
from curvact.lab.cost import PARTS, AssumedAccuracy, Cost
from curvact.lab.statistics.question import Grid
from curvact.lab.sweep import Planned, in_words

NOT_COUNTED = (
    "Counted are convolutions, products of matrices and attention, by torch on the meta device. Activations, "
    "normalizations and data take time beside them: a rate that was measured in training includes that time."
)


def check_axis(runs: Sequence[Planned], by: str | None) -> None:
    """CurvactError for an axis that the sweep lacks."""
    axes = dict.fromkeys(axis for run in runs for axis in run.labels)
    if by is not None and by not in axes:
        raise CurvactError(
            f"--by {by}: no axis of the sweep{nearest(by, axes)}; its axes are {', '.join(axes)}"
        )


def cost_tables(
    runs: Sequence[Planned],
    costs: Sequence[Cost],
    accuracy: AssumedAccuracy,
    rate: float | None = None,
    by: str | None = None,
) -> list[Grid]:
    """Operations by part, and by the values of an axis.

    rate: operations a second, for the hours. Raises CurvactError as `check_axis` does.
    """
    check_axis(runs, by)
    whole = sum(costs, Cost())
    heads = ("operations", "share", *(["hours"] if rate else []))

    def cells(part: float) -> tuple[str, ...]:
        share = f"{part / whole.total:.1%}" if whole.total else "0.0%"
        return (_number(part), share, *([_hours(part, rate)] if rate else []))

    lines = [(name, *cells(getattr(whole, part))) for part, name in PARTS.items() if getattr(whole, part)]
    notes = [NOT_COUNTED]
    if whole.autoattack:
        notes.append(
            f"AutoAttack at most: {accuracy.clean:.0%} of the images are right before it, {accuracy.robust:.0%} "
            "after it (--clean, --robust)."
        )
    kinds = sorted(
        {kind for run in runs if run.spec.analyses is not None for kind in run.spec.analyses.kinds}
    )
    if kinds:
        notes.append(f"Not counted: the analyses {', '.join(kinds)}.")
    parts = Grid("Cost", ("part", *heads), (*lines, ("all", *cells(whole.total))), notes=tuple(notes))
    if by is None:
        return [parts]
    groups: dict[str, list[Cost]] = {}
    for run, cost in zip(runs, costs, strict=True):
        groups.setdefault(_group(run, by), []).append(cost)
    lines = []
    for name, members in groups.items():
        total = sum(members, Cost()).total
        one = max(cost.total for cost in members)
        each = (_number(one), *([_hours(one, rate)] if rate else []))
        lines.append((name, str(len(members)), *each, *cells(total)))
    longest = ("longest run", *(["hours of it"] if rate else []))
    return [parts, Grid("By axis", (by, "runs", *longest, *heads), tuple(lines))]


def _group(run: Planned, by: str) -> str:
    return in_words(by, run.labels[by]) if by in run.labels else "other runs"


def _number(operations: float) -> str:
    return f"{operations:.2e}".replace("e+", "e")


def _hours(operations: float, rate: float | None) -> str:
    hours = operations / (rate or 1) / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


__all__ = ["check_axis", "cost_tables"]
