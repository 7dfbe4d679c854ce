from __future__ import annotations

import base64
import errno
import os
import re
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from curvact.errors import CurvactError
from curvact.lab.report.page import write_page

Row = dict[str, object]
Write = Callable[..., str]

CALIBRATION = [
    ("coverage at 3 seeds", "94 %", "at least 90 %"),
    ("power, 2 points", "38 %", "how often a peak is found"),
]
PROVENANCE = {"commit": "28c4b99", "hardware": "2 cores", "cost": "5 040 000 gradient evaluations, 372 s"}
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Reads a page strictly: every element closed in order; collects text, headings, images and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [
            values[name] for name in ("src", "href", "srcset", "action", "poster", "data") if name in values
        ]
        assert not any(name.startswith("on") for name in values)
        if "id" in values:
            self.ids.append(values["id"])
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


def parse(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: list[Row], verdicts: list[object] | None = None, **options: object) -> str:
        arguments: dict[str, object] = {"spec_yaml": "name: digits\n", **options}
        path = write_page(rows, verdicts or [], CALIBRATION, PROVENANCE, tmp_path, **arguments)  # type: ignore[arg-type]
        assert path == tmp_path / "report.html"
        assert os.listdir(tmp_path) == ["report.html"]
        return path.read_text(encoding="utf-8")

    return write


def check_closed(page: str) -> Reader:
    """Nothing outside is named: neither by the page nor inside its pictures."""
    reader = parse(page)
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "script" not in reader.tags
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]|@import|url\(", re.sub(r"data:[^\"]*", "", page))
    for image in reader.images:
        svg = base64.b64decode(image["src"].split("base64,")[1]).decode()
        root = ElementTree.fromstring(svg)
        for element in root.iter():
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")
                assert "http" not in value
        assert "@import" not in svg
        assert image["alt"]
        assert int(image["width"]) > 0
        assert int(image["height"]) > 0
    return reader


def test_everything_is_there_in_order(write: Write, study: list[Row], verdicts: list[object]) -> None:
    page = write(study, verdicts, across=["The optima coincide."], title="A title")
    reader = check_closed(page)
    assert reader.headings == [
        "Verdict",
        "Accuracy against curvature",
        "Sharpness: the Hessian diagonal against curvature",
        "Training set beside test set",
        "Means",
        "How far the verdict can be trusted",
        "How it was run",
        "Where statements come from",
    ]
    parts = [
        "A title",
        "published band of 4 to 10",
        "60 trials done",
        "An interior peak is not supported (p = 0.41)",
        "The optima coincide.",
        "95 % confidence interval",
        "the place of the maximum alone proves nothing",
        "coverage at 3 seeds",
        "28c4b99",
        "name: digits",
        "[derived]",
        "not reproduced here unless measured",
    ]
    places = [reader.text.index(part) for part in parts]
    assert places == sorted(places)
    assert (
        len([image for image in reader.images if not image["src"].startswith("data:image/svg+xml;base64,")])
        == 0
    )
    assert len([image for image in reader.images if "against curvature" in image["alt"]]) == 2 + 6 + 2


def test_the_table_holds_the_means(write: Write, study: list[Row]) -> None:
    text = parse(write(study)).text
    values = [100 * float(row["robust_accuracy"]) for row in study[:3]]  # type: ignore[arg-type]
    assert re.search(rf"{statistics.fmean(values):.1f} ± \d", text)
    norms = [float(row["clean_hessian_gradient_relative"]) for row in study[:3]]  # type: ignore[arg-type]
    assert re.search(rf"{statistics.geometric_mean(norms):.3f} \[\d", text)
    assert "Failed trials" not in text
    assert "centred" not in text
    assert "epochs" not in text


def test_degenerate_studies_have_a_page(write: Write, degenerate: list[Row]) -> None:
    reader = check_closed(write(degenerate))
    assert "no family has enough finished trials" in reader.text
    failures = [row for row in degenerate if row["status"] == "failed"]
    assert ("Failed trials" in reader.headings) == bool(failures)
    for row in failures:
        assert str(row["trial"]) in reader.text
    assert "nan ±" not in reader.text


def test_levels_are_shown(write: Write, confounds: list[Row], verdicts: list[object]) -> None:
    reader = check_closed(write(confounds, verdicts))
    assert (
        "4 levels: not centred, 10 epochs; not centred, 40 epochs; centred, 10 epochs; centred, 40 epochs"
        in reader.text
    )
    assert "rctaf(beta=1), centred, 40 epochs" in reader.text
    assert len([image for image in reader.images if "against curvature" in image["alt"]]) == 4 + 12 + 8


def test_nothing_from_outside_becomes_markup(
    write: Write, make: Callable[..., list[Row]], make_opinions: Callable[..., list[object]]
) -> None:
    evil = "<script>alert('x')</script>\"'><img src=http:x onerror=y>&amp;"
    rows = make(families=(evil,), kappas=(1.0, 4.0), failed=lambda index: index == 2)
    for row in rows:
        if row["status"] == "failed":
            row["cause"] = evil + "cause"
            row["trial"] = evil + "trial"
    page = write(
        rows, make_opinions((evil,)), title=evil + "title", spec_yaml=evil + "spec", across=[evil + "across"]
    )
    reader = parse(page)
    assert "script" not in reader.tags
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "alert" not in re.sub(r"&lt;script&gt;alert\(&#39;x", "", page)
    for part in ("title", "cause", "trial", "spec", "across"):
        assert evil + part in reader.text


def test_same_rows_same_bytes(write: Write, study: list[Row], verdicts: list[object]) -> None:
    assert write(study, verdicts) == write(study[::-1], verdicts)


def test_the_band_may_be_another_or_none(write: Write, study: list[Row]) -> None:
    assert "published band of 3 to 12" in parse(write(study, band=(3.0, 12.0))).text
    assert "published band of" not in parse(write(study, band=None)).text.split("Verdict")[0]


def test_intervals_and_their_name_can_be_given(write: Write, make: Callable[..., list[Row]]) -> None:
    rows = make(families=("swish",), kappas=(1.0,), hessian=False)
    page = write(
        rows,
        intervals=lambda v: (v[:, 0], v[:, 0] - 0.01, v[:, 0] + 0.03),
        interval_text="interval of the house",
    )
    value = 100 * float(rows[0]["robust_accuracy"])  # type: ignore[arg-type]
    text = parse(page).text
    assert f"{value:.1f} [{value - 1:.1f}, {value + 3:.1f}]" in text
    assert "interval of the house" in text


def test_phone_and_dark_mode_are_provided_for(write: Write, study: list[Row]) -> None:
    page = write(study)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert page.count('class="scroll"') == page.count("<table") + page.count("<pre")
    reader = parse(page)
    assert len(reader.ids) == len(set(reader.ids))


def test_a_full_disk_leaves_no_half_page(
    tmp_path: Path, make: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CurvactError, match=r"disk full while writing .*report\.html"):
        write_page(make(kappas=(1.0,)), [], [], {}, tmp_path, spec_yaml="")
    assert os.listdir(tmp_path) == []
