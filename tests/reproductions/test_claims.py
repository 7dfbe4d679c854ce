from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import claims
import numpy as np
import pytest
from claims import COMMANDS, findings, folder_page, pages
from criteria import (
    HERE,
    Claim,
    CommonJudge,
    CurveJudge,
    DifferenceJudge,
    Finding,
    GapJudge,
    MeanTest,
    RatioJudge,
    SlopeJudge,
    all_results,
    evidence_of,
    fnmatch,
    read_papers,
    read_pieces,
    read_results,
    sweep_of,
)
from origin import PLACE, read_origin, write_origin
from pictures import EDGES, curves, effects, means_table
from scipy.stats import ttest_1samp
from verdicts import _decided, _kind, after_holm, differences, judge, mean_curves, verdict_on

from curvact.errors import CurvactError
from curvact.lab.statistics.verdict import decide
from curvact.lab.table import Row, Table
from second_opinion import second_opinion

PAPERS = read_papers()
CLAIMS = [(folder, claim) for folder, paper in PAPERS.items() for claim in paper.claims]
SWEEPS = [path for path in sorted(HERE.glob("*/*.yaml")) if "\ngrid:" in path.read_text(encoding="utf-8")]
SPECS = [path for path in SWEEPS if "accelerator: cuda" not in path.read_text(encoding="utf-8")]
"""Those that two cores can run; the others are for GPUs."""

KAPPA = (0.1, 0.5, 2.0, 6.0, 20.0, 60.0, 200.0)


# ---- what is shipped ----


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_every_spec_is_a_sweep_with_its_own_name(path: Path) -> None:
    spec = sweep_of(path)
    assert spec.name == {"cluster": "rctaf-cluster"}.get(path.stem, path.stem)
    chooses = spec.base["evaluation"].get("split") == "validation"  # a setting, and decides no claim
    assert len(spec.grid["seed"]) >= (2 if chooses else 3)


@pytest.mark.parametrize(("folder", "claim"), CLAIMS, ids=[f"{f}-{c.id}" for f, c in CLAIMS])
def test_every_claim_names_specs_or_results_that_exist(folder: str, claim: Claim) -> None:
    known = {path.stem for path in SWEEPS} | {
        path.stem for path in (HERE.parent / "src/curvact/lab/sweeps").glob("*.yaml")
    }
    known |= {"theory", "steered", "adaptive"}
    for pattern in claim.evidence:
        assert any(fnmatch(name, pattern) for name in known), pattern
    for text in (claim.supports, claim.refutes, claim.open, claim.measure, claim.settle):
        assert text.endswith(".")


def test_the_judge_of_a_claim_names_labels_of_its_specs() -> None:
    """A misspelt label would leave a claim open for ever."""
    specs = {path.stem: path for path in [*SWEEPS, *(HERE.parent / "src/curvact/lab/sweeps").glob("*.yaml")]}
    for _, claim in CLAIMS:
        rule = claim.judge
        if not isinstance(rule, DifferenceJudge) or set(claim.evidence) & {"steered", "adaptive"}:
            continue
        named = [
            sweep_of(path)
            for name, path in specs.items()
            if any(fnmatch(name, pattern) for pattern in claim.evidence)
        ]
        labels = {str(label) for spec in named for label in (*spec.axes[rule.axis], *spec.references)}
        assert {str(rule.label), str(rule.baseline)} <= labels, claim.id
        assert set(rule.where) | set(rule.baseline_where) <= {axis for spec in named for axis in spec.axes}


def test_every_piece_is_a_spec() -> None:
    pieces = [piece.spec for piece in read_pieces()]
    assert len(set(pieces)) == len(pieces)
    assert {HERE / spec for spec in pieces} == set(SPECS)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Finding]]:
    return findings(PAPERS, all_results())


def test_the_pages_are_what_the_command_writes(found: dict[str, dict[str, Finding]]) -> None:
    for path, text in pages(PAPERS, found, all_results()).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python reproductions/claims.py"


# ---- how a verdict is made ----


def table(value: Callable[[float, int, int], float], strata: int = 6, seeds: int = 3) -> Table:
    """κ × strata × seeds, with value(κ, stratum, seed), and a reference that has 0.5."""
    rows = [
        Row(
            f"{k}-{g}-{s}",
            {"curvature": k, "network": f"n{g}", "seed": s},
            "done",
            "",
            {"m_accuracy": value(k, g, s)},
            1,
            1.0,
        )
        for k in KAPPA
        for g in range(strata)
        for s in range(seeds)
    ]
    base = [
        Row(f"r-{g}-{s}", {"network": f"n{g}", "seed": s}, "done", "", {"m_accuracy": 0.5}, 1, 1.0, "relu")
        for g in range(strata)
        for s in range(seeds)
    ]
    return Table(("network", "curvature", "seed"), tuple(rows), tuple(base))


def noise(k: float, g: int, s: int, size: float = 0.005) -> float:
    return size * float(np.random.default_rng([KAPPA.index(k), g, s]).standard_normal())


def peaked(k: float) -> float:
    return 0.6 - 0.1 * float(np.log10(k / 6) ** 2)


CURVE = CurveJudge(kind="curve", outcome="m_accuracy", band=(4, 10), margin=0.02, shape="peak")


def verdict(found: Finding) -> str:
    return found.verdict


def test_a_peak_in_the_band_is_supported_and_one_elsewhere_is_not() -> None:
    inside = table(lambda k, g, s: peaked(k) + 0.1 * g + noise(k, g, s))
    assert verdict(verdict_on(CURVE, inside)) == "supported"
    low = table(lambda k, g, s: peaked(k * 12) + noise(k, g, s))
    assert verdict(verdict_on(CURVE, low)) == "not supported"
    flat = table(lambda k, g, s: 0.5 + noise(k, g, s, 0.002))
    assert verdict(verdict_on(CURVE, flat)) == "not supported"
    noisy = table(lambda k, g, s: 0.5 + noise(k, g, s, 0.2))
    assert verdict(verdict_on(CURVE, noisy)) == "inconclusive"
    few = table(lambda k, g, s: peaked(k) + noise(k, g, s), strata=3)
    assert verdict(verdict_on(CURVE, few)) == "inconclusive"


def difference(**changes: object) -> DifferenceJudge:
    base = {
        "kind": "difference",
        "outcome": "m_accuracy",
        "axis": "curvature",
        "label": 6,
        "baseline": "relu",
    }
    return DifferenceJudge.model_validate(
        {**base, "expect": "higher", "margin": 0.01, "replicate": "stratum", **changes}
    )


@pytest.mark.parametrize(
    ("gap", "expect", "wanted"),
    [
        (0.05, "higher", "supported"),
        (-0.05, "higher", "not supported"),
        (0.0, "higher", "not supported"),
        (-0.05, "lower", "supported"),
        (0.05, "lower", "not supported"),
        (0.0, "not-higher", "supported"),
        (0.05, "not-higher", "not supported"),
    ],
)
def test_a_difference_to_a_reference(gap: float, expect: str, wanted: str) -> None:
    found = table(lambda k, g, s: 0.5 + (gap if k == 6 else 0.3) + noise(k, g, s, 0.002))
    assert verdict(verdict_on(difference(expect=expect), found)) == wanted
    assert verdict(verdict_on(difference(expect=expect, replicate="seed"), found)) == wanted


def test_a_difference_that_noise_hides_is_inconclusive() -> None:
    found = table(lambda k, g, s: 0.5 + noise(k, g, s, 0.1))
    assert verdict(verdict_on(difference(), found)) == "inconclusive"
    assert verdict(verdict_on(difference(), table(lambda k, g, s: 0.6, strata=3))) == "inconclusive"


def test_differences_are_paired_and_filtered() -> None:
    found = table(lambda k, g, s: 10 * g + s + (k == 6), strata=4)
    rule = difference(label=6, baseline=2, where={"network": ("n1", "n2")})
    values = differences(rule, found)
    assert set(values.values()) == {1.0}
    assert len(values) == 3  # the two networks are a choice: their mean, at each seed


@pytest.mark.parametrize("expect", ["higher", "lower", "not-higher"])
def test_the_p_value_of_a_verdict_agrees_with_its_interval(expect: str) -> None:
    """Where the interval excludes 0, or the margin, the p of that test is below 0.05."""
    seen = set()
    for shift in np.linspace(-0.08, 0.08, 33):
        values = (shift + 0.01 * np.array([-1.3, -0.2, 0.1, 0.5, 0.9])).tolist()
        found = _decided("a minus b", values, "robust_accuracy", expect, 0.01, "5 seeds", 3)
        seen.add(found.verdict)
        if found.verdict != "inconclusive":
            assert found.tests[found.verdict].p < 0.05
    assert seen == {"supported", "not supported", "inconclusive"}


def test_verdicts_are_corrected_over_all_claims() -> None:
    """Holm by hand: 4 tests, the smallest times 4, the next times 3."""
    found = {
        "x": {
            "a": Finding(
                "supported",
                "A.",
                {"supported": MeanTest(0.01, "0"), "not supported": MeanTest(0.9, "+1 point")},
            )
        },
        "y": {
            "b": Finding(
                "not supported",
                "B.",
                {"supported": MeanTest(0.6, "0"), "not supported": MeanTest(0.02, "+1 point")},
            ),
            "c": Finding("not run", "C."),
        },
    }
    told = after_holm(found)
    assert told["x"]["a"].sentence == "A. p = 0.01, after Holm = 0.04."
    assert told["y"]["b"].sentence == "B. p = 0.02 against +1 point, after Holm = 0.06."
    assert told["y"]["c"].sentence == "C."
    assert [told["x"]["a"].corrected, told["y"]["b"].corrected] == pytest.approx([0.04, 0.06])
    assert told["y"]["c"].corrected is None


def test_the_page_names_the_verdicts_that_the_correction_leaves(found: dict[str, dict[str, Finding]]) -> None:
    words = " ".join((HERE / "README.md").read_text(encoding="utf-8").partition("## ")[0].split())
    for folder, claim in CLAIMS:
        one = found[folder][claim.id]
        p = re.search(r", after Holm = (\S+)\.(?: |$)", one.sentence)
        left = p is not None and float(p[1]) <= 0.05
        assert (f"- {one.verdict.capitalize()}: {claim.claim}" in words) is left, claim.id


def test_a_claim_over_several_results_has_the_p_value_of_the_weakest(tmp_path: Path) -> None:
    """So its tests take part in the correction over all claims, as the page says."""
    head = "run,activation,seed,status,cause,m_accuracy,gradient_evaluations,seconds\n"
    shifts = {"one": (0.05, 0.06, 0.08), "two": (0.04, 0.05, 0.06)}
    for name, own in shifts.items():
        lines = [
            f"{name}{a}{s},{a},{s},done,,{0.5 + (shift if a == 'new' else 0)},1,1\n"
            for s, shift in enumerate(own)
            for a in ("new", "relu")
        ]
        (tmp_path / f"{name}.csv").write_text(head + "".join(lines))
    rule = DifferenceJudge(
        kind="difference",
        outcome="m_accuracy",
        axis="activation",
        label="new",
        baseline="relu",
        expect="higher",
        margin=0.01,
        each=True,
    )
    claim = PAPERS["paf"].claims[0].model_copy(update={"judge": rule, "evidence": ("one", "two")})
    found = judge(claim, {name: tmp_path / f"{name}.csv" for name in shifts})
    assert found.verdict == "supported"
    assert found.tests["supported"].p == pytest.approx(max(ttest_1samp(v, 0).pvalue for v in shifts.values()))
    assert found.tests["not supported"].p == pytest.approx(
        max(ttest_1samp(v, 0.01).pvalue for v in shifts.values())
    )


def test_the_words_on_the_steps_of_entropysgd_are_those_of_its_spec() -> None:
    spec, claim = (
        sweep_of(HERE / "smoothness" / "entropy-digits.yaml"),
        next(claim for folder, claim in CLAIMS if claim.id == "entropy-improves-outer"),
    )
    ours, theirs = (
        next(
            run.spec.training
            for run in spec.planned
            if (run.labels["method"], run.labels["training.budget"]) == (method, budget)
        )
        for method, budget in (("EntropySGD, authors' code", 8100), ("SGD", 1620))
    )
    inner = int(re.findall(r"inner_steps=(\d+)", str(ours.optimizer))[0])
    assert ours.attack == theirs.attack
    assert (ours.budget, theirs.budget, ours.budget / inner) == (8100, 1620, theirs.budget / 4)
    assert f"With {inner} inner steps EntropySGD then makes a quarter of the outer steps" in claim.measure


def test_gap_slope_and_common() -> None:
    made = table(lambda k, g, s: peaked(k) + noise(k, g, s, 0.001))
    rows = tuple(
        replace(
            row,
            metrics={
                **row.metrics,
                "other_accuracy": row.metrics["m_accuracy"]
                - 0.2
                - 0.03 * float(np.log10(float(str(row.labels["curvature"]))))
                + 0.001 * int(str(row.labels["seed"])),
            },
        )
        for row in made.rows
    )
    made = replace(made, rows=rows)
    common = {"outcome": "m_accuracy", "minus": "other_accuracy", "margin": 0.01, "words": "m minus other"}
    assert verdict(verdict_on(GapJudge(kind="gap", expect="higher", **common), made)) == "supported"
    assert verdict(verdict_on(GapJudge(kind="gap", expect="lower", **common), made)) == "not supported"
    slope = SlopeJudge(kind="slope", expect="higher", axis="curvature", **common)
    found = verdict_on(slope, made)
    assert "+3.0" in found.sentence
    assert "18 curves in 6 strata" in found.sentence
    assert "6 strata" in verdict_on(slope.model_copy(update={"replicate": "stratum"}), made).sentence
    apart = SlopeJudge(kind="slope", expect="higher", axis="curvature", replicate="stratum", **common)
    assert "3 strata, and 4 are asked for" in verdict_on(apart, with_decays(made)).sentence
    one = verdict_on(CommonJudge(kind="common", outcome="m_accuracy", band=(4, 10)), made)
    assert verdict(one) == "supported"


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    from curvact.lab.report.sweep.results import write_csv

    made = table(lambda k, g, s: 0.25 + g, strata=2)
    write_csv(made, tmp_path / "a.csv")
    again = read_results(tmp_path / "a.csv")
    assert again.axes == made.axes
    assert [
        (r.run, dict(r.labels), dict(r.metrics), r.reference) for r in (*again.rows, *again.references)
    ] == [(r.run, dict(r.labels), dict(r.metrics), r.reference) for r in (*made.rows, *made.references)]


def test_a_claim_without_results_is_not_run() -> None:
    _, claim = CLAIMS[0]
    assert judge(claim, {}).verdict in ("not run", "not testable here")
    assert evidence_of(claim, {"elsewhere": HERE}) == {}


def test_text_outside_the_marks_stays() -> None:
    paper = PAPERS["smoothness"]
    found = {claim.id: Finding("not run", "Nothing.") for claim in paper.claims}
    page = folder_page("# Mine\n\nBefore.\n", paper, found, {})
    own = page.replace(f"# {paper.paper}", "# Mine", 1).replace(claims.END, claims.END + "\n\nAfter.", 1)
    again = folder_page(own, paper, found, {})
    assert again == own


def test_a_claim_over_two_networks_is_judged_on_their_mean_at_each_seed() -> None:
    """From the files by hand: κ = 6 minus ReLU of every network and decay, their mean at each seed, a t interval."""
    (claim,) = [c for c in PAPERS["rctaf"].claims if c.id == "pgd-relu-fashion"]
    assert "over both networks" in next(
        c.measure for c in PAPERS["rctaf"].claims if c.id == "pgd-high-fashion"
    )
    values: dict[str, dict[tuple[str, str], float]] = {}
    for name in claim.evidence:
        with (HERE / "rctaf" / "results" / f"{name}.csv").open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                key = row["curvature"] or "relu"
                place = (f"{name} {row['decay']}", row["seed"])
                values.setdefault(key, {})[place] = float(row["subset_robust_accuracy"])
    gaps: dict[str, list[float]] = {}
    for (stratum, seed), value in values["6"].items():
        gaps.setdefault(seed, []).append(value - values["relu"][stratum, seed])
    means = [100 * float(np.mean(found)) for found in gaps.values()]
    low, high = ttest_1samp(means, 0).confidence_interval(0.95)
    found = judge(claim, all_results())
    assert "3 seeds in 3 strata" in found.sentence
    assert f"{np.mean(means):+.1f} [{low:+.1f}, {high:+.1f}]" in found.sentence


def test_two_claims_of_one_id_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    folder.mkdir()
    text = (HERE / "sparta" / "claims.yaml").read_text(encoding="utf-8")
    (folder / "claims.yaml").write_text(text.replace("id: warm", "id: cross"), encoding="utf-8")
    with pytest.raises(CurvactError, match="'cross' occurs twice"):
        read_papers(tmp_path)


# ---- the second opinion ----


def test_both_opinions_agree_on_clear_curves() -> None:
    points = np.array(KAPPA)
    for at in (2.0, 6.0, 60.0):
        values = np.array([[-0.1 * np.log10(k / at) ** 2 + noise(k, 0, s) for s in range(5)] for k in KAPPA])
        other = second_opinion(points, values, (4, 10))
        ours = decide(list(KAPPA), values, planned=False).optimum
        assert other.low <= at <= other.high
        assert other.low <= ours.high
        assert other.high >= ours.low
        assert (other.in_band > 0.9) == (at == 6.0)


def test_a_flat_curve_has_its_optimum_anywhere() -> None:
    values = np.array([[noise(k, 1, s) for s in range(5)] for k in KAPPA])
    assert second_opinion(np.array(KAPPA), values, (4, 10)).in_band < 0.7


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurvactError, match=r"--collect .*typo: no such folder"):
        claims.main(["--check", "--collect", str(tmp_path / "typo")])


# ---- the pictures ----


def test_a_picture_shows_the_means_of_each_stratum() -> None:
    found = table(lambda k, g, s: 0.1 * g + 0.01 * s + 0.001 * KAPPA.index(k), strata=2)
    figure = curves(CURVE, found)
    assert [ax.get_title() for ax in figure.axes] == ["n0", "n1"]
    for g, ax in enumerate(figure.axes):
        curve, relu = ax.lines
        wanted = [100 * (0.1 * g + 0.01 + 0.001 * i) for i in range(len(KAPPA))]
        np.testing.assert_allclose(curve.get_xydata(), np.column_stack([KAPPA, wanted]))
        assert set(relu.get_ydata()) == {50.0}
    header, _, *rows = means_table(CURVE, found)
    assert header == "| κ | 0.1 | 0.5 | 2 | 6 | 20 | 60 | 200 | ReLU | ± |"
    half = (
        100 * 0.01 * 4.302653 / 3**0.5
    )  # Student's t of two degrees of freedom; the values are 0, 1 and 2 points
    assert rows[1] == f"| n1 | 11.0 | 11.1 | 11.2 | 11.3 | 11.4 | 11.5 | 11.6 | 50.0 | {half:.1f} |"


def test_every_effect_is_drawn_where_it_was_found(found: dict[str, dict[str, Finding]]) -> None:
    wanted = [
        effect.mean
        for part in found.values()
        for one in part.values()
        for effect in one.effects
        if effect.points and effect.mean.bounded
    ]
    (ax,) = effects(PAPERS, found).axes
    _, *lines = ax.lines
    ends = [line.get_xdata() for line in lines[::2]]
    np.testing.assert_allclose(ends, [np.clip([100 * m.low, 100 * m.high], *EDGES) for m in wanted])
    for folder, paper in PAPERS.items():
        for claim in paper.claims:
            drawn = isinstance(claim.judge, CurveJudge) and bool(evidence_of(claim, all_results()))
            assert (HERE / folder / f"{claim.id}.png").exists() == drawn


# ---- where results come from ----


def test_an_origin_grows(tmp_path: Path) -> None:
    """A script that goes on at another commit adds it; what was known stays."""
    place = {
        "commit": "a",
        "processor": "x (2 cores)",
        "torch": "2",
        "kernels": "native (gcc, avx2)",
        "python": 3,
    }
    results = tmp_path / "found.csv"
    assert read_origin(results) == {}
    write_origin(results, [place], 2, 360)
    assert read_origin(results) == {**{k: place[k] for k in PLACE}, "runs": 2, "hours_of_runs": 0.1}
    for commit in ("b", "b"):
        write_origin(results, [read_origin(results), {**place, "commit": commit}], 3, 720)
    assert read_origin(results) == {
        **{k: place[k] for k in PLACE},
        "commit": "a, b",
        "runs": 3,
        "hours_of_runs": 0.2,
    }


def with_decays(made: Table) -> Table:
    """The strata of a table in pairs: two ways of weight decay of one network."""

    def paired(row: Row) -> Row:
        number = int(str(row.labels["network"])[1:])
        labels = {**row.labels, "network": f"n{number // 2}", "decay": ("all", "weights")[number % 2]}
        return replace(row, labels=labels)

    rows, references = (tuple(map(paired, part)) for part in (made.rows, made.references))
    return Table(("network", "decay", "curvature", "seed"), rows, references)


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [
        # By hand: the 95 % interval of eight values lies above 0, that of the four pairs does not.
        ((0.004, 0.007, 0.010, 0.035), "inconclusive"),
        ((0.020, 0.022, 0.026, 0.041), "supported"),
    ],
)
def test_copies_take_a_verdict_back(gains: tuple[float, ...], wanted: str) -> None:
    made = with_decays(table(lambda k, g, s: 0.5 + (gains[g // 2] if k == 6 else 0.0), strata=8))
    found = verdict_on(difference(replicate="stratum"), made)
    eight, four = (ttest_1samp(values, 0) for values in (np.repeat(gains, 2), gains))
    low, high = four.confidence_interval(0.95)
    assert eight.confidence_interval(0.95).low > 0
    assert bool(low > 0) is (wanted == "supported")
    assert found.verdict == wanted
    assert (
        f"as one stratum: {100 * np.mean(gains):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points, 4 strata."
        in found.sentence
    )
    assert ("The first reading alone would be 'supported'" in found.sentence) is (wanted == "inconclusive")
    assert found.tests["supported"].p == pytest.approx(four.pvalue)


def test_copies_take_a_verdict_on_a_curve_back() -> None:
    """Four strata with a peak in the band are two networks: too few to decide."""
    made = table(lambda k, g, s: peaked(k) + 0.1 * g + noise(k, g, s), strata=4)
    assert verdict_on(CURVE, made).verdict == "supported"
    found = verdict_on(CURVE, with_decays(made))
    assert found.verdict == "inconclusive"
    assert "With both ways of weight decay as one stratum, 2 in all: interior peak" in found.sentence
    points, values, _ = mean_curves(with_decays(made), "m_accuracy", ["decay"])
    assert tuple(points) == KAPPA
    apart = mean_curves(made, "m_accuracy")[1]
    np.testing.assert_allclose(values, (apart[:, ::2] + apart[:, 1::2]) / 2, rtol=1e-12)


@pytest.mark.parametrize(("clean", "wanted"), [(0.9, "supported"), (0.2, "inconclusive")])
def test_networks_that_hardly_learned_decide_nothing(clean: float, wanted: str) -> None:
    made = table(lambda k, g, s: 0.5 + (0.05 if k == 6 else 0.0) + noise(k, g, s))
    rows = tuple(replace(row, metrics={**row.metrics, "clean_accuracy": clean}) for row in made.rows)
    found = verdict_on(difference(), replace(made, rows=rows))
    assert found.verdict == wanted
    assert ("18 of the 18 networks compared hardly learned" in found.sentence) is (wanted == "inconclusive")


@pytest.mark.parametrize(
    ("baseline", "ours", "wanted"),
    [(0.5, 0.55, "not testable here"), (0.05, 0.055, "not supported"), (0.05, 0.6, "supported")],
)
def test_a_ratio_that_no_accuracy_reaches_is_not_testable(baseline: float, ours: float, wanted: str) -> None:
    rows = tuple(
        Row(
            f"{g}-{s}-{a}",
            {"steering": a, "data": f"d{g}", "seed": s},
            "done",
            "",
            {"m_accuracy": value},
            1,
            1.0,
        )
        for g in range(4)
        for s in range(3)
        for a, value in (("steered", ours), ("as it is", baseline))
    )
    rule = RatioJudge(
        kind="ratio", outcome="m_accuracy", axis="steering", label="steered", baseline="as it is", least=10
    )
    assert verdict_on(rule, Table(("data", "steering", "seed"), rows)).verdict == wanted


def test_every_result_has_a_command() -> None:
    made_by_pieces = {Path(piece.spec).stem for piece in read_pieces()}
    assert made_by_pieces | set(COMMANDS) >= set(all_results())
    assert not made_by_pieces & set(COMMANDS)


@pytest.mark.parametrize(
    ("bests", "words", "wanted"),
    [
        ((6, 6, 6, 6), "have κ = 6 in common; the widest has 1 point.", "supported"),
        ((6, 6, 20, 6), "have no point in common.", "not supported"),
    ],
)
def test_the_points_that_all_sets_of_the_optimum_hold_are_named(
    bests: tuple[float, ...], words: str, wanted: str
) -> None:
    made = table(lambda k, g, s: 0.5 + 0.1 * (k == bests[g]) + noise(k, g, s, 0.002), strata=4)
    found = verdict_on(CommonJudge(kind="common", outcome="m_accuracy", band=(4, 10)), made)
    assert found.sentence.endswith(words)
    assert found.verdict == wanted


def test_sets_of_strata_without_a_shared_curvature_are_not_compared() -> None:
    made = table(lambda k, g, s: 0.5 + noise(k, g, s), strata=4)
    own = {f"n{g}": {KAPPA[g], KAPPA[g + 1], KAPPA[g + 2]} for g in range(4)}
    rows = tuple(r for r in made.rows if r.labels["curvature"] in own[str(r.labels["network"])])
    found = verdict_on(
        CommonJudge(kind="common", outcome="m_accuracy", band=(4, 10)), replace(made, rows=rows)
    )
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("means", "maximise", "words"),
    [
        ((0.2, 0.5, 0.5, 0.3), True, "interior peak"),
        ((0.2, 0.5, 0.5, 0.3), False, "hump"),  # of a norm, whose least is at an end
        ((0.4, 0.2, 0.2, 0.5), False, "U shape"),
        ((0.1, 0.5, 0.2, 0.6), True, "interior peak with a higher end"),
        ((0.1, 0.5, 0.2, 0.5), False, "U shape with a lower end"),
    ],
)
def test_the_kind_of_a_curve_says_where_its_best_is(
    means: tuple[float, ...], maximise: bool, words: str
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, (4, 5))
    verdict = decide([0.5, 2, 6, 20], np.array(means)[:, None] + noise, maximise=maximise, planned=False)
    assert _kind(verdict) == words
