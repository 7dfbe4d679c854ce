"""The page of `curvact explore`, in a browser: its formulas against the families, its controls, its networks."""

from __future__ import annotations

import base64
import inspect
import itertools
import json
import math
import re
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curvact.activations import activation, registry
from curvact.lab.report.explore.page import (
    NETWORKS,
    Measured,
    explore_html,
    measured,
    sentences,
    write_explore,
)
from curvact.lab.statistics.interval import student

ROOT = Path(__file__).parents[4]
CONTENT = json.loads(NETWORKS.read_text())
KAPPAS = (0.1, 6.0, 200.0)
X = np.unique(
    np.concatenate([np.linspace(-8, 8, 49), *(sign * np.logspace(-7, 4, 23) for sign in (-1, 1)), [0, -3, 3]])
)
OF_THE_FORM = ("learnable", "centered", "channels", "variant", "norm", "inplace")
"""Arguments that the page does not show: they are switches, or words."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explore(tmp_path_factory.mktemp("explore") / "explore.html")


@contextmanager
def opened(browser: Any, file: Path, view: str = "", **context: Any) -> Iterator[Any]:
    """The page. Nothing may appear in its console, and it may ask for no other file."""
    said: list[str] = []
    asked: list[str] = []
    made = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
    page = made.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri() + view)
    yield page
    made.close()
    assert said == []
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {file.as_uri()}


def code(page: Any) -> str:
    """The activation in the line to copy."""
    text = page.locator("#code").inner_text()
    found = re.fullmatch(
        r'cv\.(?:swap_activations\(model, "relu", |models\.build\("mini_resnet", activation=)"(.*)"\)', text
    )
    assert found, text
    return found[1]


def kappa(page: Any) -> float:
    return float(page.locator("#plot-curvature").get_attribute("data-kappa"))


# ---- the formulas ----


def written(name: str, parameters: dict[str, float | None]) -> str:
    """The name in Python, with fixed parameters: a learned one is rounded to float32."""
    fixed = {"learnable": False} if registry._REGISTRY[name].__dict__.get("learned_by_default") else {}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in (parameters | fixed).items())})"


def grid(page: Any, name: str, about: dict[str, Any]) -> list[dict[str, float | None]]:
    """Parameters from one end of their range to the other, the free one at several κ."""
    own = {}
    for key, p in about["parameters"].items():
        if key != about.get("free"):
            middle = [2] if p["kind"] == "whole" else []
            own[key] = [
                *sorted({p["low"], p["high"], *middle}),
                *([None] if p["start"] is None else [p["start"]]),
            ]
    chosen = [dict(zip(own, values, strict=True)) for values in itertools.product(*own.values())]
    if "free" not in about:
        return chosen
    return page.evaluate(FREE, [name, chosen, KAPPAS])  # type: ignore[no-any-return]


FREE = """([name, all, kappas]) => all.flatMap(own => kappas.map(kappa => {
  const { free, inverse, least } = families[name];
  return { [free]: inverse(Math.max(kappa, least(own)), own), ...own };
}))"""
EVALUATE = """([name, all, xs]) => all.map(p => {
  const f = families[name].at(p), of = order => xs.map(x => f[order](x));
  return { kappa: String(f.kappa), place: f.place, value: of("value"), slope: of("slope"), curvature: of("curvature") };
})"""


def test_every_family_is_computed_as_in_python(browser: Any, file: Path) -> None:
    """σ, σ′, σ″ to 1e-12 (of κ, for σ″), κ and its place to 1e-12, at 27 families, from κ = 0.1 to 200."""
    ours = {
        name
        for name, f in registry._REGISTRY.items()
        if f.__module__.startswith("curvact.activations.families")
    }
    x = torch.tensor(X, dtype=torch.float64)
    with opened(browser, file) as page:
        known = page.evaluate("JSON.parse(JSON.stringify(families))")
        assert set(known) == ours
        for name, about in known.items():
            signature = inspect.signature(registry._REGISTRY[name]).parameters
            defaults = {key: p.default for key, p in signature.items() if key not in OF_THE_FORM}
            assert {key: p["start"] for key, p in about["parameters"].items()} == defaults, name
            assert about.get("learned", False) == getattr(
                registry._REGISTRY[name], "learned_by_default", False
            ), name
            if name == "sparta":  # it is Swish as it starts, and no function of one number afterwards
                continue
            assert ("free" in about) == hasattr(registry._REGISTRY[name], "from_curvature"), name
            every = grid(page, name, about)
            for parameters, found in zip(
                every, page.evaluate(EVALUATE, [name, every, X.tolist()]), strict=True
            ):
                what = written(name, parameters)
                act = activation(what).double().requires_grad_(False)
                peak = act.max_curvature
                assert float(found["kappa"]) == pytest.approx(peak.value, rel=1e-12), what
                assert found["place"] == pytest.approx(peak.at, rel=1e-12, abs=1e-12), what
                size = 1 if math.isinf(peak.value) else max(1.0, peak.value)
                for order, true, tolerance in (
                    ("value", act(x), 1e-12 * np.maximum(1, abs(X))),
                    ("slope", act.slope(x), 1e-12),
                    ("curvature", act.curvature(x), 1e-12 * size),
                ):
                    gap = np.abs(np.array(found[order], dtype=float) - true.numpy())
                    assert (gap <= tolerance).all(), (what, order, X[np.nanargmax(gap)], np.nanmax(gap))


# ---- the controls ----


NO_CLIPBOARD = """() => {
  navigator.clipboard.writeText = () => Promise.reject(new Error("not here"));
  document.execCommand = () => false;
}"""


def test_the_line_to_copy_has_the_kappa_that_is_marked(browser: Any, file: Path) -> None:
    with opened(browser, file, "#family=rctaf&curvature=6.8&beta=2") as page:
        assert code(page) == "rctaf(curvature=6.8, beta=2)"
        chooser = page.get_by_role("combobox", name="Family")
        for name in chooser.locator("option").all_inner_texts():
            chooser.select_option(name)
            act = activation(code(page))
            assert code(page).partition("(")[0] == name
            if name != "sparta":
                assert kappa(page) == pytest.approx(act.max_curvature.value, rel=1e-11), name
                assert page.locator(".kappa-text").text_content().startswith("κ = ")
        chooser.select_option("rcraf")
        page.get_by_role("checkbox", name="γ").check()
        assert activation(code(page)).max_curvature.value == kappa(page) == math.inf
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied.").wait_for()
        assert page.locator("textarea").count() == 0
        page.evaluate(NO_CLIPBOARD)
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Selected: press Ctrl+C.").wait_for()
        assert page.evaluate("getSelection().toString()") == page.locator("#code").inner_text()


def test_sliders_answer_to_keys_and_mouse(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        assert (code(page), kappa(page)) == ("rctaf(curvature=6, beta=1)", 6)
        curvature, alpha = page.get_by_label("κ", exact=True), page.get_by_label("α", exact=True)
        curvature.press("ArrowRight")
        assert kappa(page) == 6.8
        assert alpha.get_attribute("aria-valuetext") == "α 18.133"  # 4κ(2/3)
        curvature.press("End")
        assert kappa(page) == 200
        alpha.press("Home")
        assert kappa(page) == pytest.approx(0.375 * 0.27)  # the least round α for κ ≥ 0.1
        assert curvature.get_attribute("aria-valuetext") == "κ 0.10125"
        assert activation(code(page)).max_curvature.value == pytest.approx(kappa(page), rel=1e-11)
        page.get_by_label("β", exact=True).press("ArrowRight")
        assert (kappa(page), code(page)[-7:]) == (pytest.approx(0.10125), "beta=2)")
        box = curvature.bounding_box()
        page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        assert 3 < kappa(page) < 6  # √(0.1·200) = 4.5 is in the middle
        # The mark is at the top of the curve.
        place = re.search(r",([\d.]+)\)", page.locator(".kappa-mark").get_attribute("transform"))
        curve = re.findall(r",([\d.]+)", page.locator("#plot-curvature .curve").get_attribute("d"))
        assert place
        assert float(place[1]) == pytest.approx(min(map(float, curve)), abs=0.02)


REACHED = """() => {
  const element = document.activeElement;
  return [element.id || element.innerText || element.type, getComputedStyle(element).outlineStyle];
}"""


def test_every_control_is_reached_by_the_tab_key(browser: Any, file: Path) -> None:
    with opened(browser, file) as page:
        reached = []
        for _ in range(7):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(REACHED))
        names = [name for name, _ in reached]
        assert {"slider-curvature", "slider-alpha", "slider-beta", "checkbox", "Copy"} <= set(names)
        assert {style for _, style in reached[:6]} == {"solid"}


def test_the_address_keeps_the_view(browser: Any, file: Path) -> None:
    with opened(browser, file, "#family=powergate&curvature=2.4&n=5&zoom=1") as page:
        assert code(page) == "powergate(curvature=2.4, n=5)"
        assert page.get_by_role("checkbox", name="zoom").is_checked()
        page.get_by_label("κ", exact=True).press("ArrowRight")
        page.wait_for_url(lambda url: url.endswith("#family=powergate&curvature=2.7&n=5&zoom=1"))
        page.evaluate("location.hash = '#family=pssilu&curvature=1e9&beta=oops'")
        page.get_by_text("pssilu(curvature=200)").wait_for()
        assert kappa(page) == 200
    with opened(browser, file, "#family=__proto__&curvature=-1") as page:
        assert code(page) == "rctaf(curvature=6, beta=1)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Any, file: Path, scheme: str) -> None:
    size = {"width": 390, "height": 800}
    with opened(browser, file, viewport=size, color_scheme=scheme, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.get_by_role("combobox", name="Family").select_option("leaky_relu")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator("#boundary").scroll_into_view_if_needed()
        assert page.locator("#slider-curvature").is_visible()
        page.set_viewport_size({"width": 800, "height": 390})
        page.wait_for_function("document.querySelector('#plot-value svg').getAttribute('width') > 400")


# ---- the networks ----


def test_the_networks_that_are_shown_are_named(browser: Any, file: Path) -> None:
    by_kappa = {n["curvature"]: n for n in CONTENT["networks"]}

    def fooled(n: dict[str, Any]) -> str:
        count = sum(c and not r for c, r in zip(n["clean_right"], n["robust_right"], strict=True))
        return f"wrong at {count} of 70 test points"

    with opened(browser, file, "#family=rctaf&curvature=6") as page:
        which, picture = page.locator(".which"), page.locator("#boundary svg")
        assert which.inner_text() == "Shown are networks trained at κ = 6."
        assert fooled(by_kappa[6]) in picture.get_attribute("aria-label")
        assert f"{100 * by_kappa[6]['robust'][0]:.1f} % [" in page.locator(".numbers").inner_text()
        # The line runs where the stored probability passes 1/2.
        n, side = CONTENT["grid"], float(picture.get_attribute("width"))
        stored = np.frombuffer(base64.b64decode(by_kappa[6]["probability"]), np.uint8).reshape(n, n)
        ends = re.findall(r"[ML]([\d.]+),([\d.]+)", page.locator("#boundary .own").get_attribute("d"))
        assert len(ends) > 100
        for a, b in ends:  # each lies between two centres of cells
            i, j = float(a) / side * n - 0.5, (1 - float(b) / side) * n - 0.5
            near = [(i0, j0) for i0 in (int(i), int(i) + 1) for j0 in (int(j), int(j) + 1) if max(i0, j0) < n]
            shares = [(1 - abs(i - i0)) * (1 - abs(j - j0)) for i0, j0 in near]
            level = sum(share * stored[j0, i0] for share, (i0, j0) in zip(shares, near, strict=True)) / sum(
                shares
            )
            assert level == pytest.approx(127.5, abs=3)  # the page rounds to a tenth of a pixel
        page.get_by_label("κ", exact=True).press("ArrowRight")
        assert (
            which.inner_text()
            == "Shown are networks trained at κ = 6, the nearest to 6.8 of those that were trained."
        )
        page.locator("#plot-robust .dot").nth(1).click()
        assert "trained at κ = 0.2." in which.inner_text()
        assert kappa(page) == 0.2
        page.get_by_role("combobox", name="Family").select_option("swish")
        assert which.inner_text().endswith("They have rctaf with β = 0, not swish.")
        page.get_by_role("combobox", name="Family").select_option("leaky_relu")
        assert (
            which.inner_text()
            == "Shown are networks trained with ReLU, κ = ∞. They have relu, not leaky_relu."
        )
        assert fooled(by_kappa[None]) in picture.get_attribute("aria-label")


def test_the_numbers_of_the_networks_are_of_the_script() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "explore.py"))
    x, y = script["moons"](script["TESTED"], 10_000)
    points = np.array(CONTENT["points"])
    assert np.allclose(points[:, :2], x[:70].flatten(1).numpy(), atol=6e-5)
    assert (points[:, 2] == y[:70].numpy()).all()
    assert [n["curvature"] for n in CONTENT["networks"]] == [*script["KAPPAS"], None]
    assert NETWORKS.stat().st_size < 250_000
    epsilon = CONTENT["setting"]["epsilon"]
    for network in CONTENT["networks"]:
        assert np.abs(np.array(network["attacked"]) - points[:, :2]).max() <= epsilon + 1.5e-4
        assert len(base64.b64decode(network["probability"])) == CONTENT["grid"] ** 2
        for name, scale in script["SCALES"].items():
            of_seeds = network["by_seed"][name]
            assert len(of_seeds) == CONTENT["setting"]["seeds"] == script["SEEDS"]
            mean = student(of_seeds, scale=scale)
            assert network[name] == pytest.approx([mean.value, mean.low, mean.high], rel=1e-4)


def test_the_sentences() -> None:
    relu = Measured(None, 0.98, 0.88, 0.12)
    rising = [
        Measured(k, 0.9, r, h) for k, r, h in ((0.1, 0.77, 0.04), (2.0, 0.875, 0.02), (200.0, 0.88, 0.4))
    ]
    text = " ".join(sentences([*rising, relu]))
    assert (
        "From κ = 2 on, robust accuracy hardly depends on κ here: its means lie between 87.5 % and 88.0 %"
        in text
    )
    assert "77.0 % at κ = 0.1" in text
    assert "lowest at κ = 2 (0.02); at κ = 200 it is 0.4." in text
    assert sentences([*rising[1:], relu])[0].startswith("Robust accuracy hardly depends on κ")
    peaked = [*rising, Measured(300.0, 0.9, 0.8, 0.5)]
    assert sentences([*peaked, relu])[0].startswith("Robust accuracy is highest at κ = 200, 88.0 %")
    assert all(line in explore_html() for line in sentences(measured()))
