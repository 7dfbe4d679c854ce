"""Published claims and their criteria as typed values, and reading them from the folders."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from curvact.errors import CurvactError
from curvact.lab.settings import Strict, check_settings, read_plain
from curvact.lab.statistics.interval import Interval
from curvact.lab.sweep import SweepSpec, read_sweep
from curvact.lab.table import Row, Table, Value

HERE = Path(__file__).parent
Outcome = Literal["supported", "not supported", "inconclusive", "not testable here", "not run"]
Where = dict[str, str | float | int | bool | tuple[str | float | int | bool, ...]]


class CurveJudge(Strict):
    """The mean curve over strata has an interior optimum, and it can be in the band.

    outcome: a metric; of a Hessian norm its log10 is taken. shape: a peak, or a valley. margin: in the
    outcome, or in log10 of a norm.
    """

    kind: Literal["curve"]
    outcome: str
    band: tuple[float, float]
    margin: float = Field(gt=0)
    shape: Literal["peak", "valley"]


class DifferenceJudge(Strict):
    """Runs with `label` on `axis` minus runs with `baseline` there, equal on all other axes and the seed.

    baseline: a label, or the name of a reference. where: only runs with these labels; a tuple is a
    choice. baseline_where: other labels for the baseline. expect: what the claim says of the difference.
    margin: a smaller difference counts as none. replicate: whose differences are the values of the t
    interval: the mean over the seeds of each stratum, or the mean over strata of each seed.
    each: every result is judged by itself, and the claim has the verdict that all of them share.
    tested: whether the verdict has a p-value. It has none where all values are of the same few images: the
    test would not know how much those images decide.
    """

    kind: Literal["difference"]
    outcome: str
    axis: str
    label: str | int | float
    baseline: str | int | float
    expect: Literal["higher", "lower", "not-higher"]
    margin: float = Field(ge=0)
    where: Where = Field(default_factory=dict)
    baseline_where: Where = Field(default_factory=dict)
    replicate: Literal["stratum", "seed"] = "seed"
    each: bool = False
    tested: bool = True


class GapJudge(Strict):
    """One metric minus another of the same run, the mean over strata of each seed. words: that difference."""

    kind: Literal["gap"]
    words: str
    outcome: str
    minus: str
    expect: Literal["higher", "lower"]
    margin: float = Field(ge=0)
    where: Where = Field(default_factory=dict)


class SlopeJudge(Strict):
    """The slope of (outcome − minus) in a decade of the axis. words: that slope.

    replicate: "curve" is a value a stratum and seed; "stratum" is a value a stratum, the mean over its
    seeds, with both ways of weight decay as one.
    """

    kind: Literal["slope"]
    words: str
    outcome: str
    minus: str
    axis: str
    expect: Literal["higher", "lower"]
    margin: float = Field(ge=0)
    replicate: Literal["curve", "stratum"] = "curve"


class RatioJudge(Strict):
    """The mean with `label` over the mean with `baseline` in the stratum where this is largest."""

    kind: Literal["ratio"]
    outcome: str
    axis: str
    label: str
    baseline: str
    least: float = Field(gt=2)


class WithinJudge(Strict):
    """The mean of `outcome` of one cell lies in the confidence set of the optimum of another sweep's curve.

    curve: the result with the curve. where: the stratum of that curve. optimum: its outcome.
    """

    kind: Literal["within"]
    outcome: str
    axis: str
    label: str
    curve: str
    optimum: str
    where: Where = Field(default_factory=dict)


class CommonJudge(Strict):
    """The confidence sets of the optimum have a point in common in all strata."""

    kind: Literal["common"]
    outcome: str
    band: tuple[float, float]


class SameShapeJudge(Strict):
    """The curves of all strata have one shape. least: the p-value below which that is refused."""

    kind: Literal["same-shape"]
    outcome: str
    least: float = Field(gt=0, lt=1)


class ZeroJudge(Strict):
    """A count in a JSON record is 0."""

    kind: Literal["zero"]
    outcome: str


class UntestableJudge(Strict):
    """No run of this folder can settle the claim."""

    kind: Literal["untestable"]


Judge = (
    CurveJudge
    | DifferenceJudge
    | GapJudge
    | SlopeJudge
    | RatioJudge
    | WithinJudge
    | CommonJudge
    | SameShapeJudge
    | ZeroJudge
    | UntestableJudge
)


class Claim(Strict):
    """A published claim, and what would decide it.

    mark: whose the claim is. place: where it stands. stated: whether the criterion was written before its
    runs. evidence: names of results, `*` allowed. measure: what is measured, in words. judge: the same as a
    rule. supports, refutes, open: which outcome means what. settle: what it would take. note: what a
    reader has to know beside the verdict, written after the runs.
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    claim: str
    mark: Literal["paper", "ours"]
    place: str
    stated: Literal["before", "after"]
    evidence: tuple[str, ...] = Field(min_length=1)
    measure: str
    judge: Annotated[Judge, Field(discriminator="kind")]
    supports: str
    refutes: str
    open: str
    settle: str
    note: str = ""


class Paper(Strict):
    """The claims of one folder."""

    paper: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    about: str
    claims: tuple[Claim, ...] = Field(min_length=1)


class Piece(Strict):
    """A part of the runs that takes an hour or less on two slow cores. minutes: of CPU time, estimated."""

    spec: str
    minutes: float = Field(gt=0)


class Pieces(Strict):
    """All pieces, in the order of their worth."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Effect:
    """A difference that a claim is about. what: it, in words. points: whether it is one of accuracies."""

    what: str
    mean: Interval
    points: bool


@dataclass(frozen=True)
class MeanTest:
    """A test of a mean difference. against: the value that it tests, in words."""

    p: float
    against: str


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, and the sentence that says why.

    tests: verdict → the test that leads to it, for criteria that are a test.
    effects: the differences behind the verdict, for criteria that are about one.
    corrected: the p-value of the verdict after the correction over all claims, where a test led to it.
    """

    verdict: Outcome
    sentence: str
    tests: Mapping[str, MeanTest] = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    corrected: float | None = None


# ---- reading ----


def read_papers(root: Path = HERE) -> dict[str, Paper]:
    """folder → its paper, by name. Raises CurvactError for a bad file or an id that occurs twice."""
    papers = {}
    for path in sorted(root.glob("*/claims.yaml")):
        content = read_plain(path)
        paper = check_settings(Paper, content if isinstance(content, dict) else {}, str(path))
        for name, count in Counter(claim.id for claim in paper.claims).items():
            if count > 1:
                raise CurvactError(f"{path}: the id {name!r} occurs twice; ids are unique in a file")
        papers[path.parent.name] = paper
    return papers


def read_pieces(root: Path = HERE) -> tuple[Piece, ...]:
    """The pieces of pieces.yaml in their order."""
    content = read_plain(root / "pieces.yaml")
    return check_settings(Pieces, {"pieces": content}, str(root / "pieces.yaml")).pieces


@cache
def sweep_of(path: Path) -> SweepSpec:
    """The sweep of a spec, read once: planning its runs takes a while."""
    return read_sweep(path)


def read_results(path: Path) -> Table:
    """The table of a results.csv. Raises CurvactError where a column is missing."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    columns = list(lines[0]) if lines else []
    if not {"run", "status", "cause"} <= set(columns):
        raise CurvactError(f"{path}: expected a results.csv, with the columns run, …, status, cause, …")
    axes = tuple(c for c in columns[1 : columns.index("status")] if c != "reference")
    rows, references = [], []
    for line in lines:
        cost = {"gradient_evaluations": line.get("gradient_evaluations"), "seconds": line.get("seconds")}
        metrics = {
            key: float(line[key])
            for key in columns[columns.index("cause") + 1 :]
            if key not in cost and line[key] != ""
        }
        row = Row(
            line["run"],
            {axis: _value(line[axis]) for axis in axes if line[axis] != ""},
            line["status"],
            line["cause"],
            metrics,
            int(float(cost["gradient_evaluations"] or 0)),
            float(cost["seconds"] or 0),
            line.get("reference") or "",
        )
        (references if row.reference else rows).append(row)
    return Table(axes, tuple(rows), tuple(references))


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "." not in text and "e" not in text else number


def evidence_of(claim: Claim, results: Mapping[str, Path]) -> dict[str, Path]:
    """The results that a claim names, as far as they are there."""
    return {
        name: path
        for name, path in sorted(results.items())
        if any(fnmatch(name, pattern) for pattern in claim.evidence)
    }


def all_results(root: Path = HERE) -> dict[str, Path]:
    """name → file, of every result of every folder."""
    found = {}
    for path in sorted([*root.glob("*/results/*.csv"), *root.glob("*/results/*.violations.json")]):
        found[path.name.partition(".")[0]] = path
    return found


def together(tables: Mapping[str, Table]) -> Table:
    """One table of several. An axis that a table lacks is no axis of its rows; the file is one more axis."""
    axes = dict.fromkeys(axis for table in tables.values() for axis in table.axes if axis != "seed")

    def marked(rows: Sequence[Row], name: str) -> list[Row]:
        extra = {"file": name} if _tells_apart(tables) else {}
        return [
            Row(
                r.run,
                {**r.labels, **extra},
                r.status,
                r.cause,
                r.metrics,
                r.gradient_evaluations,
                r.seconds,
                r.reference,
            )
            for r in rows
        ]

    own = ("file",) if _tells_apart(tables) else ()
    return Table(
        (*own, *axes, "seed"),
        tuple(row for name, table in tables.items() for row in marked(table.rows, name)),
        tuple(row for name, table in tables.items() for row in marked(table.references, name)),
    )


def _tells_apart(tables: Mapping[str, Table]) -> bool:
    """Whether the axes alone do not tell the runs of different tables apart."""
    keys = Counter(
        (row.reference, *sorted((k, str(v)) for k, v in row.labels.items()))
        for table in tables.values()
        for row in (*table.rows, *table.references)
    )
    return any(count > 1 for count in keys.values()) or len({t.axes for t in tables.values()}) > 1
