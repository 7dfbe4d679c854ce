"""The part of a page that answers to mouse and keys, in a browser: points, panel, switches, CSV, a phone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curvact.lab.report.interactive import EPOCHS_IN_ALL, Explorer, RunAbout, differing, script_json, thinned
from curvact.lab.report.search.about import Point, SearchAbout
from curvact.lab.report.search.page import report_search
from curvact.lab.report.sweep.about import SweepAbout
from curvact.lab.report.sweep.page import report_sweep
from curvact.lab.report.sweep.results import csv_lines
from curvact.lab.statistics.paired import Paired
from curvact.lab.table import Table

EVIL = "</script><script>document.title='broken'</script><!-- \"'"
POINTS = (0.1, 1.0, 10.0, 200.0)
TRUTH = np.array((0.5, 0.6, 0.7, 0.6))
Curves = Callable[..., Table]


@pytest.fixture(scope="module")
def folder(curves: Curves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two families, one with a hostile name, four κ and three seeds, with a reference."""
    table = curves({("swish",): TRUTH, (EVIL,): TRUTH - 0.1}, axes=("activation",), points=POINTS)
    references = tuple(
        replace(row, run=f"relu-{k}", labels={"seed": k}, reference="relu", metrics={"robust_accuracy": 0.4})
        for k, row in enumerate(table.rows[:3])
    )
    failed = replace(table.rows[0], status="failed", cause='nan, "at" 3', metrics={})
    table = replace(table, rows=(failed, *table.rows[1:]), references=references)
    about = RunAbout(
        {"activation": EVIL},
        "runs/x",
        "curvact train runs/x/spec.yaml",
        (1, 2, 3),
        {"loss": (2.0, None, 1.0)},
    )
    where = tmp_path_factory.mktemp("page")
    command = "curvact sweep run sweep.yaml --set grid.seed=[{seeds}]"
    runs = {row.run: about for row in (*table.rows, *references)}
    report_sweep(table, SweepAbout("tiny", "Why?", runs=runs, more_seeds=command), where)
    return where


@contextmanager
def opened(browser: Any, folder: Path, **context: Any) -> Iterator[Any]:
    """The page in the browser. Nothing may appear in its console."""
    said: list[str] = []
    settings = {"viewport": {"width": 1100, "height": 900}, "reduced_motion": "reduce", **context}
    made = browser.new_context(**settings)
    page = made.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    yield page
    made.close()
    assert said == []


def test_pointing_and_clicking_at_a_run(browser: Any, folder: Path) -> None:
    with opened(browser, folder) as page:
        assert page.title() == "Why?"  # no name became a script
        assert page.locator(".plot .run").count() == 23 + 3
        point = page.locator(".plot .run[aria-label^='swish, κ 10, seed 1']")
        value = float(point.get_attribute("aria-label").split(": ")[1].removesuffix(" %"))
        assert value == pytest.approx(70, abs=2)
        point.hover()
        tip = page.locator(".tip")
        assert tip.is_visible()
        for part in (f"{value:.1f} %", "swish", "κ 10", "seed"):
            assert part in tip.inner_text()
        point.click()
        panel = page.locator(".chosen")
        text = panel.inner_text()
        for part in ("Run swish-10.0-", EVIL, "runs/x", "curvact train runs/x/spec.yaml", "training loss"):
            assert part in text
        assert (
            panel.locator("polyline").get_attribute("points").count(",") == 2
        )  # the epoch without a loss is left out
        panel.get_by_role("button", name="Copy").last.click()
        panel.get_by_role("button", name="Copied").wait_for()
        panel.get_by_role("button", name="Close").click()
        assert panel.is_hidden()


COVERED = """() => {
  const tip = document.querySelector(".tip").getBoundingClientRect();
  const point = document.activeElement.getBoundingClientRect();
  const x = point.x + point.width / 2, y = point.y + point.height / 2;
  return tip.height === 0 || (x > tip.left && x < tip.right && y > tip.top && y < tip.bottom);
}"""


@pytest.mark.parametrize("width", [360, 1100])
def test_the_keyboard_reaches_every_run(width: int, browser: Any, folder: Path) -> None:
    with opened(browser, folder, viewport={"width": width, "height": 900}) as page:
        page.get_by_role("button", name="Copy the command that adds seeds").focus()
        page.keyboard.press("Tab")
        names = [page.evaluate("document.activeElement.getAttribute('aria-label')")]
        for _ in range(30):
            assert not page.evaluate(COVERED)
            page.keyboard.press("ArrowRight")
            names.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        assert len(set(names)) == 26
        page.keyboard.press("Home")
        assert page.locator(".tip").is_visible()
        page.keyboard.press("ArrowDown")
        name = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert name.split(",")[0] != names[0].split(",")[0]
        page.keyboard.press("Enter")
        assert page.locator(".chosen").is_visible()
        page.keyboard.press("Escape")
        assert page.locator(".chosen").is_hidden()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == name


def switch(page: Any, name: str) -> Any:
    return page.get_by_role("checkbox", name=name)


def test_switches(browser: Any, folder: Path) -> None:
    with opened(browser, folder) as page:
        runs, lines = page.locator(".plot .run"), page.locator(".plot polyline")
        assert lines.count() == 2
        assert page.locator(".plot .reference").count() == 1
        switch(page, "swish").uncheck()
        assert (runs.count(), lines.count()) == (12 + 3, 1)
        switch(page, "relu").uncheck()
        assert (runs.count(), page.locator(".plot .reference").count()) == (12, 0)
        switch(page, EVIL[:9]).uncheck()
        assert "No run to show" in page.locator(".plot").inner_text()
        switch(page, "swish").check()

        def gaps() -> list[float]:
            places = [float(pair.split(",")[0]) for pair in lines.first.get_attribute("points").split()]
            return [b - a for a, b in itertools.pairwise(places)]

        assert gaps()[0] == pytest.approx(gaps()[1], rel=1e-6)  # 0.1, 1, 10: decades
        switch(page, "logarithmic κ axis").uncheck()
        assert gaps()[1] == pytest.approx(10 * gaps()[0], rel=1e-6)
        page.get_by_role("combobox", name="Outcome").select_option("clean_accuracy")
        assert runs.first.get_attribute("aria-label").endswith(" %")


def test_the_csv_is_results_csv(browser: Any, folder: Path, tmp_path: Path) -> None:
    with opened(browser, folder) as page:
        with page.expect_download() as started:
            page.get_by_role("button", name="Download results.csv").click()
        started.value.save_as(tmp_path / "saved.csv")
        assert started.value.suggested_filename == "results.csv"
    assert (tmp_path / "saved.csv").read_bytes() == (folder / "results.csv").read_bytes()


def test_the_command_that_adds_seeds(browser: Any, folder: Path) -> None:
    with opened(browser, folder) as page:
        page.get_by_role("button", name="Copy the command that adds seeds").click()
        page.get_by_text("curvact sweep run sweep.yaml --set grid.seed=[0,1,2,3").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(scheme: str, browser: Any, folder: Path) -> None:
    size = {"width": 360, "height": 700}
    with opened(browser, folder, viewport=size, color_scheme=scheme, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator(".plot .run").nth(4).tap(force=True)
        assert page.locator(".chosen").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.set_viewport_size({"width": 700, "height": 360})
        page.wait_for_function("document.querySelector('.plot svg').getAttribute('width') > 500")


def test_without_javascript_the_still_figures_are_open(browser: Any, folder: Path) -> None:
    with opened(browser, folder, java_script_enabled=False) as page:
        assert page.locator("#explorer").is_hidden()
        assert page.locator("details.still img").first.is_visible()
    with opened(browser, folder) as page:
        assert page.locator("details.still img").first.is_hidden()
        page.locator("details.still summary").first.click()
        assert page.locator("details.still img").first.is_visible()


def test_a_comparison_has_columns(browser: Any, shipped: Callable[[str], Table], tmp_path: Path) -> None:
    report_sweep(
        shipped("digits-compare"), SweepAbout("c", questions={"paired": Paired(baseline="relu")}), tmp_path
    )
    with opened(browser, tmp_path) as page:
        runs = page.locator(".plot .run")
        assert runs.count() == sum(row.status == "done" for row in shipped("digits-compare").rows)
        runs.first.press("Enter")
        assert "seed" in page.locator(".chosen").inner_text()


def test_a_search_has_its_trials(browser: Any, tmp_path: Path) -> None:
    keys = ("curvature", "training.objective")
    points = tuple(
        Point(
            n,
            f"run{n}",
            {keys[0]: 2.0**n, keys[1]: ("pgd-at", "trades")[n % 2]},
            "completed",
            0.5,
            4,
            24,
            24,
            "",
        )
        for n in range(8)
    )
    lines: list[list[object]] = [["trial", "run", *keys, "accuracy"]]
    lines += [[p.number, p.run, *p.settings.values(), p.accuracy] for p in points]
    explorer = Explorer(
        lines, keys, ("accuracy",), keys[0], "accuracy", "trials.csv", frozenset({keys[0]}), connected=False
    )
    about = SearchAbout(
        "Which κ?", ("It is 1.", "And more."), keys, frozenset({keys[0]}), points, 0, 0.03, None, 240, "c", "w", "s",
        {}, explorer,
    )  # fmt: skip
    report_search(about, tmp_path)
    with opened(browser, tmp_path) as page:
        runs = page.locator(".plot .run")
        assert runs.count() == 8
        assert page.locator(".plot polyline").count() == 0  # trials are no seeds of one another
        switch(page, "trades").uncheck()
        assert runs.count() == 4
        page.get_by_role("combobox", name="Against").select_option(keys[1])
        assert "pgd-at" in page.locator(".plot svg").text_content()
        runs.first.press("Enter")
        assert "50.0 %" in page.locator(".chosen").inner_text()


def test_a_thousand_runs_stay_small(curves: Curves, tmp_path: Path) -> None:
    """The data; the still figures have a size of their own."""
    table = curves({("a",): np.linspace(0.3, 0.6, 10)}, seeds=100, norms=True)
    curve = thinned([{"epoch": k, "loss": 1 / k} for k in range(1, 200)], ["loss", "loss"], len(table.rows))
    assert len(curve["epochs"]) == EPOCHS_IN_ALL // len(table.rows)
    about = RunAbout(
        {"activation": "rctaf(alpha=1.0)", "seed": "1"}, "runs/0123456789ab", "curvact train x", **curve
    )
    lines = csv_lines(table)
    runs = {row.run: about for row in table.rows}
    text = Explorer(
        lines, table.axes, ("robust_accuracy",), "curvature", "robust_accuracy", "x.csv", runs=runs
    ).to_json()
    assert len(table.rows) == 1000
    assert len(text) < 1_000_000


def test_the_parts() -> None:
    text = script_json({"a": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert differing({"a": {"x": {"y": 1}}, "b": {"x": {"y": 1}, "z": None}}) == {"a": {}, "b": {"z": "none"}}
    history = [{"epoch": k, "loss": float(k)} for k in range(1, 101)]
    short = thinned(history, ["loss", "gone"])
    assert (short["epochs"][0], short["epochs"][-1], len(short["epochs"])) == (1, 100, 40)
    assert short["curves"]["loss"] == tuple(float(k) for k in short["epochs"])
    assert set(short["curves"]["gone"]) == {None}
    assert thinned([], ["loss"]) == {"epochs": (), "curves": {"loss": ()}}
