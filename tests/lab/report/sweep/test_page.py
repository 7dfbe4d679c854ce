"""The page of a sweep and the files beside it: complete, offline, escaped; the shipped tables of
comparisons come out again.
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from curvact.errors import CurvactError
from curvact.lab.report.sweep.about import SweepAbout
from curvact.lab.report.sweep.page import report_sweep
from curvact.lab.statistics import QUESTIONS
from curvact.lab.statistics.curve import Curve
from curvact.lab.statistics.paired import Paired
from curvact.lab.statistics.question import Answer, Grid, Question
from curvact.lab.table import Table

ROOT = Path(__file__).parents[4]
POINTS = (0.1, 1.0, 4.0, 10.0, 200.0)
TRUTH = np.array((0.5, 0.6, 0.7, 0.65, 0.6))
ABOUT = SweepAbout("digits", "A question?", "name: digits\n", provenance={"commit": "28c4b99"})
VOID = {"meta", "link", "img", "br", "hr", "input"}

Curves = Callable[..., Table]
Shipped = Callable[..., Table]


class Reader(HTMLParser):
    """Reads a page strictly: every element closed in order; collects text, headings, images and
    addresses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


def check_scripts(page: str) -> None:
    """Data, and one script, which the page's policy names by its sha256: the browser runs no other."""
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, flags=re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    if scripts:
        (kind, content), (attributes, code) = scripts
        assert kind == ' type="application/json" id="explorer-data"'
        assert json.loads(content)["rows"]
        assert attributes == ""
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy[1].replace("&#39;", "'")
        assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket)\b *\(", code)


def read(folder: Path) -> Reader:
    """The page, checked: nothing outside is named, neither by the page nor inside its pictures."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert all(address.startswith("data:") for address in reader.addresses)
    check_scripts(page)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:[^\"]*", "", shown))
    for image in reader.images:
        svg = base64.b64decode(image["src"].split("base64,")[1]).decode()
        for element in ElementTree.fromstring(svg).iter():
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")
        assert image["alt"]
        assert int(image["width"]) > 0
    return reader


def test_the_verdict_of_a_single_stratum_comes_first(curves: Curves, tmp_path: Path) -> None:
    report_sweep(curves({(): TRUTH}, axes=(), points=POINTS, sd=0.02, norms=True), ABOUT, tmp_path)
    text = read(tmp_path).text
    places = [text.index(part) for part in ("The best mean robust accuracy", "The primary norm")]
    assert places == sorted(places)
    assert "Across strata" not in text
    assert "Each stratum in words" not in text


def test_a_curve_in_two_strata(curves: Curves, tmp_path: Path) -> None:
    rise = np.array((0.5, 0.6, 0.62, 0.62, 0.62))
    table = curves({("mnist",): rise, ("svhn",): TRUTH}, points=POINTS, sd=0.02, norms=True)
    broken = replace(table.rows[4], status="failed", cause="the loss became nan at step 3", metrics={})
    table = replace(table, rows=(*table.rows[:4], broken, *table.rows[5:]))
    about = replace(
        ABOUT, expected=31, titles={"robust_accuracy": "PGD-20"}, more_seeds="add --seeds {seeds}!"
    )
    report = report_sweep(table, about, tmp_path)
    reader = read(tmp_path)
    assert reader.headings == [
        "Robust accuracy against curvature",
        "Failed runs",
        "How it was run",
        "Where statements come from",
    ]
    parts = [
        "A question?",
        "29 runs done of 31",
        "3 seeds at a noise of 1.5 points find a peak of 1 point in ",
        "find a peak of 2 points with a power of 80 %",
        "add --seeds 0,1,2,3,4,5",
        "Across strata",
        "confidence sets of the optimum",
        "Each stratum in words",
        "Inconclusive at 3 seeds",
        "Hessian norms: geometric means over seeds",
        "How often the verdict is right",
        "the loss became nan at step 3",
        "28c4b99",
        "name: digits",
        "[derived]",
    ]
    assert [part for part in parts if part not in reader.text] == []
    places = [reader.text.index(part) for part in parts]
    assert places == sorted(places)
    names = (
        "optimum",
        "robust_accuracy",
        "clean_accuracy",
        "hessian_rms",
        "hessian_gradient_relative",
        "hessian_scale_invariant",
    )
    figures = {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    wanted = figures | {"report.html", "results.csv", "table.md", "table.tex"}
    assert set(report.files) == set(os.listdir(tmp_path)) == wanted
    assert len([i for i in reader.images if ", against curvature" in i["alt"]]) == 2 * 5
    assert "2 runs not finished yet." not in report.sentences
    assert "1 run not finished yet." in report.sentences
    assert [grid.title for grid in report.tables] == ["Verdict by stratum", "Means over seeds"]


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("digits-compare", "relu"),
        ("digits-methods", {"objective": "pgd-at", "method": "sgd"}),
        ("digits-smoothness", "pgd-at, SGD"),
        ("fashion-compare", "relu"),
        ("fashion-methods", "pgd-at, sgd"),
        ("sparta-transfer", "relu"),
    ],
)
def test_shipped_comparisons_come_out_again(
    name: str, baseline: str | dict[str, str], shipped: Shipped, tmp_path: Path
) -> None:
    """Every number and star of the shipped tables, from the runs in the csv file beside it."""
    report_sweep(shipped(name), replace(ABOUT, questions={"paired": Paired(baseline=baseline)}), tmp_path)
    read(tmp_path)

    def lines(path: Path) -> list[list[str]]:
        found = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        return [re.split(r" \| ", line.strip("| ")) for line in found[2:]]

    found = lines(tmp_path / "table.md")
    wanted = [
        line
        for line in lines(next(ROOT.glob(f"reproductions/*/results/{name}.md")))
        if "source" not in line[0]
    ]
    columns = min(len(line) for line in wanted) - 1
    assert [line[-columns:] for line in found] == [line[-columns:] for line in wanted]


def test_results_csv_holds_every_run(curves: Curves, tmp_path: Path) -> None:
    table = curves({('a "b", c',): TRUTH}, points=POINTS, norms=True)
    cause = "two\r\nlines"
    rows = (*table.rows[:-1], replace(table.rows[-1], status="failed", cause=cause, metrics={"zeta": 1.0}))
    report_sweep(replace(table, rows=rows), ABOUT, tmp_path)
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:7] == [
        "run",
        "data.name",
        "curvature",
        "seed",
        "status",
        "cause",
        "clean_accuracy",
    ]
    assert list(lines[0])[-3:] == ["zeta", "gradient_evaluations", "seconds"]
    assert len(lines) == len(table.rows)
    for line, row in zip(lines, rows, strict=True):
        assert line["data.name"] == 'a "b", c'
        assert {k: float(line[k]) for k in row.metrics} == row.metrics
    assert lines[-1]["cause"] == cause
    assert lines[-1]["robust_accuracy"] == ""


@pytest.mark.parametrize("kind", ["no runs", "all failed", "one seed", "one point"])
def test_degenerate_sweeps_have_a_page(kind: str, curves: Curves, tmp_path: Path) -> None:
    table = curves({("a",): TRUTH, ("b",): TRUTH}, points=POINTS, seeds=1 if kind == "one seed" else 2)
    if kind == "no runs":
        table = replace(table, rows=())
    elif kind == "all failed":
        table = replace(table, rows=tuple(replace(r, status="failed", metrics={}) for r in table.rows))
    elif kind == "one point":
        table = replace(table, rows=tuple(r for r in table.rows if r.labels["curvature"] == 1))
    for number, questions in enumerate((None, {"curve": Curve()})):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = report_sweep(table, replace(ABOUT, questions=questions), folder)
        text = read(folder).text
        assert "nan" not in text.replace("finan", "")
        assert ("No question suits" in text) == (questions is None and kind in ("no runs", "all failed"))
        assert not any("nan" in sentence for sentence in report.sentences)


def test_nothing_from_outside_becomes_markup(curves: Curves, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"'><img src=http:x onerror=y>&amp;"
    table = curves({(evil + "stratum",): TRUTH, ("b",): TRUTH}, points=POINTS, seeds=2)
    broken = replace(table.rows[0], status="failed", cause=evil + "cause", run=evil + "run")
    about = SweepAbout(
        evil + "name", evil + "title", evil + "spec", None, {"a": evil + "provenance"}, notes=(evil + "note",)
    )
    report_sweep(replace(table, rows=(broken, *table.rows[1:])), about, tmp_path)
    page = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("script") == 2
    check_scripts(page)
    assert all(address.startswith("data:") for address in reader.addresses)
    for part in ("name", "title", "spec", "provenance", "note", "cause", "run", "stratum"):
        assert evil + part in reader.text


def test_same_table_same_bytes(curves: Curves, tmp_path: Path) -> None:
    table = curves({("a",): TRUTH}, points=POINTS, seeds=2)
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        report_sweep(table, ABOUT, tmp_path / name)
        pages.append({f: (tmp_path / name / f).read_bytes() for f in sorted(os.listdir(tmp_path / name))})
    assert pages[0] == pages[1]


def test_a_question_from_outside_is_on_the_page(
    curves: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cost(Question):
        def suits(self, table: Table) -> bool:
            return True

        def answer(self, table: Table) -> Answer:
            return Answer(
                "What it costs", ("A run costs 1.5 s.",), (Grid("Cost", ("", "s"), (("all", "1.5"),)),)
            )

    monkeypatch.setattr("curvact.lab.statistics.QUESTIONS", {**QUESTIONS, "cost": Cost})
    report = report_sweep(curves({("a",): TRUTH[:1]}, points=(1.0,)), ABOUT, tmp_path)
    reader = read(tmp_path)
    assert reader.headings[0] == "What it costs"
    assert "A run costs 1.5 s." in reader.text
    assert "A run costs 1.5 s." in report.sentences
    assert "| all | 1.5 |" in (tmp_path / "table.md").read_text()


def test_phone_and_dark_mode_are_provided_for(curves: Curves, tmp_path: Path) -> None:
    report_sweep(curves({("a",): TRUTH}, points=POINTS, seeds=1), ABOUT, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert page.count('class="scroll"') == page.count("<table") + page.count("<pre")


def test_a_full_disk_leaves_no_half_file(
    curves: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CurvactError, match="disk full while writing"):
        report_sweep(curves({("a",): TRUTH}, points=POINTS, seeds=1), ABOUT, tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_judging_attack_is_named_and_references_stand_beside(curves: Curves, tmp_path: Path) -> None:
    table = curves({("a",): TRUTH}, points=POINTS)
    rows = [
        replace(
            row,
            metrics={
                **row.metrics,
                "subset_robust_accuracy": row.metrics["robust_accuracy"] - 0.1,
                "subset_pgd_accuracy": row.metrics["robust_accuracy"],
            },
        )
        for row in table.rows
    ]
    references = [
        replace(row, run=f"r{k}", labels={"seed": k}, reference="relu") for k, row in enumerate(rows[6:9])
    ]
    titles = {
        "robust_accuracy": "PGD-20",
        "subset_robust_accuracy": "apgd-t, 50 images",
        "subset_pgd_accuracy": "PGD-20, the same 50 images",
    }
    about = replace(ABOUT, titles=titles)
    report = report_sweep(replace(table, rows=tuple(rows), references=tuple(references)), about, tmp_path)
    reader = read(tmp_path)
    for part in (
        "Judged by apgd-t, 50 images.",
        "The quick attack on the same images is a diagnostic",
        "references: relu",
        "Against references",
        "Robust accuracy, PGD-20",
    ):
        assert part in reader.text
    markdown = (tmp_path / "table.md").read_text()
    heads = next(line for line in markdown.splitlines() if line.startswith("| κ | seeds |"))
    assert (
        heads.index("apgd-t, 50 images (%)") < heads.index("same 50 images (%)") < heads.index("| PGD-20 (%)")
    )
    assert any("relu" in sentence for sentence in report.sentences)
    csv_lines = (tmp_path / "results.csv").read_text().splitlines()
    assert sum(",relu,done," in line for line in csv_lines) == 3
