from __future__ import annotations

import base64
import copy
import errno
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import theory
from linear_theory import check_theory, illustrate
from page import TITLE, theory_figure, write_theory_page

from curvact.errors import CurvactError

VOID = {"meta", "link", "img", "source"}


@pytest.fixture(scope="module")
def check() -> dict[str, Any]:
    return check_theory(11_000, dimensions=(2, 5)).as_dict()


@pytest.fixture(scope="module")
def picture() -> dict[str, Any]:
    return illustrate(dimension=5, points=60).as_dict()


@pytest.fixture(scope="module")
def page_path(
    tmp_path_factory: pytest.TempPathFactory, check: dict[str, Any], picture: dict[str, Any]
) -> Path:
    return write_theory_page(check, picture, tmp_path_factory.mktemp("page"))


class Reader(HTMLParser):
    """Reads a page strictly: every element closed in order; collects cells, texts, images and
    addresses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str]] = []
        self.sources: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self.lines: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in values)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "source":
            self.sources.append(values)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.lines[-1][-1] += data


def read(path: Path) -> tuple[str, Reader]:
    page, reader = path.read_text(encoding="utf-8"), Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return page, reader


def test_the_page_is_closed_and_drawn_for_light_and_dark(page_path: Path) -> None:
    assert os.listdir(page_path.parent) == [page_path.name] == ["theory.html"]
    page, reader = read(page_path)
    assert "script" not in reader.tags
    assert all(address.startswith("data:") for address in reader.addresses)
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]|@import|url\(", re.sub(r"data:[^\"]*", "", page))
    assert len(reader.images) == len(reader.sources) == 4
    for image, source in zip(reader.images, reader.sources, strict=True):
        light, dark = (
            base64.b64decode(uri.split("base64,")[1]).decode() for uri in (image["src"], source["srcset"])
        )
        for svg, background in ((light, "#ffffff"), (dark, "#202224")):
            root = ElementTree.fromstring(svg)
            assert all(
                not name.endswith("href") or value.startswith("#")
                for element in root.iter()
                for name, value in element.attrib.items()
            )
            assert f"fill: {background}" in svg.split("axes_1")[0]
        assert "fill: #ffffff" not in dark.split("axes_1")[0]
        assert source["media"] == "(prefers-color-scheme: dark)"
        assert image["alt"]
        assert int(image["width"]) > 0
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (max-width: 600px)" in page
    assert page.count('class="scroll"') == page.count("<table") == 1


def test_the_numbers_of_the_check_are_there(page_path: Path, check: dict[str, Any]) -> None:
    _, reader = read(page_path)
    assert TITLE in reader.text
    assert "11\u202f000 pairs of weights" in reader.text
    assert "no violations" in reader.text
    assert "None is violated." in reader.text
    head, *lines = reader.lines
    assert head == ["attack", "claim", "formula", "pairs", "violations", "tightness", "reached by"]
    assert len(lines) == len(check["claims"]) == 7
    for line, claim in zip(lines, check["claims"], strict=True):
        assert line[1:3] == [claim["name"], claim["statement"]]
        assert int(line[3].replace("\u202f", "")) == claim["pairs"]
        assert line[4] == "0"
        assert float(line[5]) == pytest.approx(claim["tightness"], abs=1e-6)
        assert float(line[5]) <= 1
    assert lines[-1][5] == "1"


def test_violations_are_said(tmp_path: Path, check: dict[str, Any], picture: dict[str, Any]) -> None:
    wrong = copy.deepcopy(check)
    wrong["violations"] = wrong["claims"][0]["violations"] = 3
    wrong["claims"][0] |= {"tightness": 1.25, "name": "<b>bold"}
    wrong["claims"][1]["tightness"] = None
    page, reader = read(write_theory_page(wrong, picture, tmp_path, title="A & title"))
    assert "A & title" in reader.text
    assert "3 violations beyond the rounding of float64" in reader.text
    assert "None is violated" not in reader.text
    assert reader.lines[1][1:2] + reader.lines[1][4:6] == ["<b>bold", "3", "1.25"]
    assert reader.lines[2][5] == "–"
    assert "<b>" not in page


def test_same_records_same_bytes_whatever_the_users_style(
    tmp_path: Path, page_path: Path, check: dict[str, Any], picture: dict[str, Any]
) -> None:
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):
        before = dict(matplotlib.rcParams)
        assert write_theory_page(check, picture, tmp_path).read_bytes() == page_path.read_bytes()
        assert dict(matplotlib.rcParams) == before


def test_the_figure_has_the_four_panels(picture: dict[str, Any]) -> None:
    figure = theory_figure(picture, "Title $x")
    assert len(figure.axes) == 4
    stairs = next(line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 2)
    assert len(stairs.get_xdata()) == 70


def test_bad_records_and_a_full_disk(
    tmp_path: Path, check: dict[str, Any], picture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CurvactError, match="the record lacks 'claims' in write_theory_page"):
        write_theory_page({k: v for k, v in check.items() if k != "claims"}, picture, tmp_path)
    with pytest.raises(CurvactError, match="the record lacks 'path'"):
        write_theory_page(check, {"epsilon": {"linf": 1, "l2": 2}}, tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CurvactError, match=r"disk full while writing .*theory\.html"):
        write_theory_page(check, picture, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_command_writes_page_record_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pairs", "110", "--dimensions", "2", "5", "--out", str(tmp_path / "out")]
    assert theory.main(arguments) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["theory.html", "theory.json", "theory.png"]
    record = json.loads((tmp_path / "out" / "theory.json").read_text(encoding="utf-8"))
    assert (record["check"]["pairs"], record["check"]["violations"]) == (110, 0)
    assert "2ε√K" in capsys.readouterr().out

    class Violated:
        def as_dict(self) -> dict[str, Any]:
            return {**record["check"], "violations": 1}

    monkeypatch.setattr(theory, "check_theory", lambda *_, **__: Violated())
    assert theory.main(arguments) == 1
    for wrong in (["--dimensions", "2", "2"], ["--pairs", "3"]):
        with pytest.raises(SystemExit):
            theory.main(wrong)
