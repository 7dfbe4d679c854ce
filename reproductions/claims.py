"""The published claims, their criteria and their verdicts.

    python reproductions/claims.py                     read all claims and results, write the pages and pictures
    python reproductions/claims.py --check             exit with 1 where a page is not what this command writes
    python reproductions/claims.py --collect RUNS      copy the results of finished sweeps below RUNS first

Each folder has a `claims.yaml` with a criterion for every claim, and `results/` with one csv a sweep. The
verdict of a claim follows from both by the statistics of `curvact.lab.statistics`; no number of a page is
typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from criteria import (
    HERE,
    Claim,
    CurveJudge,
    Finding,
    Paper,
    Piece,
    all_results,
    evidence_of,
    read_papers,
    read_pieces,
    read_results,
    sweep_of,
    together,
)
from origin import read_origin, write_origin
from pictures import means_table, pictures
from verdicts import FEWEST_SEEDS, FEWEST_STRATA, HARDLY, after_holm, judge, mean_curves, verdict_on_mean

from curvact.errors import CurvactError
from curvact.files import atomic_write
from curvact.lab.statistics.interval import interval_text, student
from curvact.lab.statistics.strata import STRONG, metric_of
from curvact.lab.sweep import SWEEP_FILE
from second_opinion import second_opinion

WIDTH = 100
COMMANDS = {
    **{
        name: f"curvact sweep run {name} --out runs/{name}"
        for name in (
            *("demo", "digits", "digits-confounds", "digits-compare", "fashion-compare"),
            *("digits-smoothness", "digits-methods", "fashion-methods", "sparta-transfer"),
        )
    },
    "steered": "python reproductions/curvature_tuning/steer.py runs/standard",
    "adaptive": "python reproductions/rctaf/adaptive.py runs/kappa-digits-* runs/kappa-cifar10-resnet-pgd-all",
    "theory": "python reproductions/smoothness/theory.py --out runs/theory",
}
"""What makes the results that no piece makes."""
BEGIN, END = "<!-- claims: written by claims.py -->", "<!-- end of claims -->"


def told(claim: Claim, found: Finding, results: Mapping[str, Path]) -> Finding:
    """The finding, with its note and with how many of the pieces that the claim waits for have run."""
    if claim.note and found.verdict != "not run":
        found = replace(found, sentence=f"{found.sentence} {claim.note}")
    names = [Path(piece.spec).stem for piece in read_pieces()]
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in claim.evidence)]
    done = [name for name in wanted if name in results]
    if not done or len(done) == len(wanted):
        return found
    return replace(
        found, sentence=f"Planned sweeps that have run: {len(done)} of {len(wanted)}. {found.sentence}"
    )


def claims_table(paper: Paper, found: Mapping[str, Finding], results: Mapping[str, Path]) -> str:
    """The claims of a folder as Markdown: a table, then the criterion and the finding of each, with its curves."""
    lines = ["| claim | mark | where | criterion | verdict |", "|---|---|---|---|---|"]
    for claim in paper.claims:
        lines.append(
            f"| {claim.claim} | [{claim.mark}] | {claim.place} | stated {claim.stated} the runs | "
            f"**{found[claim.id].verdict}** |"
        )
    for claim in paper.claims:
        lines += [
            "",
            f"### {claim.id}",
            "",
            f"{claim.claim} [{claim.mark}]",
            "",
            f"- Runs: {', '.join(f'`{name}`' for name in claim.evidence)}.",
            f"- Measure: {claim.measure}",
            f"- Supports: {claim.supports}",
            f"- Refutes: {claim.refutes}",
            f"- Leaves open: {claim.open}",
            f"- Found: {found[claim.id].sentence} **{found[claim.id].verdict.capitalize()}.**",
            f"- To settle it: {claim.settle}",
            *_curves(claim, results),
        ]
    return "\n".join(map(wrapped, lines))


def _curves(claim: Claim, results: Mapping[str, Path]) -> list[str]:
    """The table of means and the picture of a claim on a curve."""
    files = evidence_of(claim, results)
    if not isinstance(claim.judge, CurveJudge) or not files:
        return []
    means = means_table(claim.judge, together({name: read_results(path) for name, path in files.items()}))
    about = "Means over seeds in per cent; ± is the median half width of the 95 % intervals of a row."
    return [*(["", about, "", *means] if means else []), "", f"![The curves of {claim.id}]({claim.id}.png)"]


def folder_page(before: str, paper: Paper, found: Mapping[str, Finding], results: Mapping[str, Path]) -> str:
    """The README of a folder with its table of claims made anew, between two marks."""
    head, mark, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not mark:
        head, tail = f"# {paper.paper}\n\n{wrapped(f'arXiv {paper.arxiv}. {paper.about}')}\n\n", "\n"
    return f"{head}{BEGIN}\n\n{claims_table(paper, found, results)}\n\n{END}{tail}"


def main_page(
    papers: Mapping[str, Paper],
    found: Mapping[str, Mapping[str, Finding]],
    results: Mapping[str, Path],
    pieces: Sequence[Piece],
) -> str:
    """The page across all papers."""
    counts = Counter(one.verdict for part in found.values() for one in part.values())
    total = sum(counts.values())
    tests = sum(len(one.tests) for part in found.values() for one in part.values())
    lines = [
        "# Which published claims hold here",
        "",
        "<!-- Written by `python reproductions/claims.py`. Change the claims or the results, not this file. -->",
        "",
        (
            "Each claim has a criterion: what is measured, and which outcome supports it, refutes it or leaves it open. "
            "A criterion that was written after its runs is marked so; the author of the others knew those earlier "
            "results. The networks are small and the attacks short of the whole AutoAttack: a verdict speaks of this "
            "setting, not of the paper's own experiments. Where planned sweeps have not run yet, the verdict is that of "
            "those that have. Each further sweep makes the verdict anew, and may change it."
        ),
        "",
        f"Of {total} claims and conditions: "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        + ".",
        "",
        *_shown(papers, found),
    ]
    for folder, paper in papers.items():
        lines += [
            f"## [{paper.paper}]({folder}/README.md)",
            "",
            "| claim | mark | criterion | verdict | found |",
            "|---|---|---|---|---|",
        ]
        for claim in paper.claims:
            one = found[folder][claim.id]
            lines.append(
                f"| {claim.claim} | [{claim.mark}] | {claim.stated} | **{one.verdict}** | {one.sentence} |"
            )
        lines.append("")
    lines += [*_second_opinions(papers, results), *_evidence(results), *_pieces(pieces, results)]
    lines += [
        "## The effects",
        "",
        "![The difference that each claim is about, with its interval](effects.png)",
        "",
        "## How a verdict is made",
        "",
        (
            "- A mean curve takes every stratum (network, data, method, decay) as one replicate, and is judged as a sweep "
            "judges a curve over seeds ([statistics](../docs/statistics.md)). Strata share data and networks, so the true "
            "uncertainty is larger than its intervals."
        ),
        (
            "- Two strata that differ in weight decay alone are nearly copies. So a claim over strata is judged twice: as "
            "its criterion says, and with such strata as one. A verdict that the second reading does not confirm is taken "
            "back, and `p` is the larger of the two. This rule came after the runs; it takes verdicts back, and gives none."
        ),
        (
            "- A verdict on a difference is also taken back where more than half of the networks compared hardly learned. "
            "This rule came after the runs as well."
        ),
        (
            "- Intervals are over seeds or strata, on the same 60 to 1,000 test images. Other test images would add an "
            "uncertainty of some points to each."
        ),
        (
            "- A difference is paired by seed and by everything else, and has Student's t interval over strata or over "
            "seeds, as its criterion says. A claim is supported where the interval excludes 0 on its side, and not "
            "supported where it excludes a gain as large as the margin."
        ),
        (
            f"- A claim over strata needs at least {FEWEST_STRATA} of them, each with {FEWEST_SEEDS} seeds; a claim over "
            f"seeds needs at least {FEWEST_SEEDS} seeds."
        ),
        (
            "- A verdict is that of its own criterion. `p` is of the test that led to it: against 0, or against the "
            f"margin that stands beside it. `after Holm` is the same p, corrected for {tests} tests: two for each claim "
            "about a difference, against 0 and against the margin, whatever came of them. What is above 0.05 there may "
            "be chance among so many questions. Verdicts on curves have their own statistics and are not part of it."
        ),
        "",
        "What the sweeps before these criteria gave, in detail: [findings](findings.md).",
        "",
    ]
    return "\n".join(map(wrapped, lines))


def _shown(papers: Mapping[str, Paper], found: Mapping[str, Mapping[str, Finding]]) -> list[str]:
    """The verdicts that the correction over all claims leaves."""
    left = [
        f"- {found[folder][claim.id].verdict.capitalize()}: {claim.claim}"
        for folder, paper in papers.items()
        for claim in paper.claims
        if (found[folder][claim.id].corrected or 1.0) <= 0.05
    ]
    if not left:
        return []
    about = "Verdicts on differences that are left after the correction over all claims (Holm, 0.05):"
    return [about, "", *left, ""]


def wrapped(line: str) -> str:
    """A line of prose in lines of at most WIDTH characters; a line of a table or a heading as it is."""
    if line.startswith(("|", "#", "<!--")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return "\n".join(
        textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def _second_opinions(papers: Mapping[str, Paper], results: Mapping[str, Path]) -> list[str]:
    """Our set of the optimum beside that of a Gaussian process, for every claim on a mean curve."""
    lines = []
    for folder, paper in papers.items():
        for claim in paper.claims:
            rule = claim.judge
            files = evidence_of(claim, results)
            if not isinstance(rule, CurveJudge) or not files:
                continue
            table = together({name: read_results(path) for name, path in files.items()})
            points, values, _ = mean_curves(table, rule.outcome)
            verdict = verdict_on_mean(rule, points, values)
            if verdict is None:
                continue
            other = second_opinion(points, values, rule.band, maximise=rule.shape == "peak")
            ours = verdict.optimum
            agree = "overlap" if other.low <= ours.high and other.high >= ours.low else "do not overlap"
            lines.append(
                f"| {folder}: {claim.id} | {values.shape[1]} | {ours.low:g} to {ours.high:g} | {other.low:.3g} to "
                f"{other.high:.3g} | {100 * other.in_band:.0f} % | {agree} |"
            )
    if not lines:
        return []
    return [
        "## A second opinion on the mean curves",
        "",
        (
            "A Gaussian process on log κ (scikit-learn) shares no code with our procedure. It assumes a smooth curve, and "
            "so can name a place between two curvatures; ours assumes nothing, and names a set of those that were run. "
            "Both are made from the same means of strata."
        ),
        "",
        "| curve | strata | ours, 95 % set | Gaussian process, 95 % | its probability of 4 to 10 | the two |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def _evidence(results: Mapping[str, Path]) -> list[str]:
    lines = [
        "## The results",
        "",
        (
            f"A network with a clean accuracy below {100 * HARDLY:.0f} %, three times chance, has hardly learned. It says that "
            "its activation does not train in this setting, and nothing else. A commit with `dirty` had changes that were "
            "not committed. The commit of fashion-methods is not in this repository: it was of a clone with two lines changed."
        ),
        "",
        "| result | runs | failed | hardly learned | clean, mean % | robust, mean % | hours | processor | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, path in results.items():
        if path.suffix != ".csv":
            continue
        table = read_results(path)
        rows = [*table.rows, *table.references]
        done = [row for row in rows if row.status == "done"]
        robust = metric_of("strongest", table)
        judge_name = " (AutoAttack's parts)" if robust == STRONG else ""
        means = [
            interval_text(student([r.metrics[m] for r in done if m in r.metrics])).split(" ")[0]
            if any(m in r.metrics for r in done)
            else "–"
            for m in ("clean_accuracy", robust)
        ]
        hours = read_origin(path).get("hours_of_runs", sum(row.seconds for row in rows) / 3600)
        known = [r.metrics["clean_accuracy"] for r in done if "clean_accuracy" in r.metrics]
        hardly = sum(value < HARDLY for value in known) if known else "–"
        link = f"{path.parent.parent.name}/results/{path.name}"
        lines.append(
            f"| [{name}]({link}) | {len(rows)} | {len(rows) - len(done)} | {hardly} | {means[0]} | {means[1]}{judge_name} | "
            f"{hours:.1f} | {read_origin(path).get('processor', '–')} | {_commit(path)} |"
        )
    return [*lines, ""]


def _commit(path: Path) -> str:
    return str(read_origin(path).get("commit", "–"))


def _pieces(pieces: Sequence[Piece], results: Mapping[str, Path]) -> list[str]:
    lines = [
        "## The pieces",
        "",
        (
            "`curvact sweep run reproductions/SPEC --out runs/NAME --resume`, in the order of their worth, NAME being the "
            "spec's own without its folder; then `python reproductions/claims.py --collect runs`. CPU minutes are "
            "measured where a piece is done (on machines of several speeds, some busy with other work), and else "
            "estimated from one run of each kind. Two workers take half as long."
        ),
        "",
        "| spec | runs | CPU minutes | done |",
        "|---|---|---|---|",
    ]
    spent, left = 0.0, 0.0
    for piece in pieces:
        spec = sweep_of(HERE / piece.spec)
        done = results.get(spec.name)
        minutes = 60 * read_origin(done).get("hours_of_runs", 0.0) if done else 0.0
        spent, left = spent + minutes, left + (0 if done else piece.minutes)
        shown = f"{minutes:.0f}" if minutes else f"some {piece.minutes:g}"
        lines.append(
            f"| [{piece.spec}]({piece.spec}) | {len(spec.planned)} | {shown} | {'yes' if done else ''} |"
        )
    return [
        *lines,
        "",
        f"Done: {spent / 60:.1f} hours of CPU time. Not done: some {left / 60:.0f} hours.",
        "",
        "What made the other results:",
        "",
        "| result | command |",
        "|---|---|",
        *(
            f"| [{name}]({results[name].relative_to(HERE)}) | `{command}` |"
            for name, command in COMMANDS.items()
            if name in results
        ),
        "",
    ]


def findings(papers: Mapping[str, Paper], results: Mapping[str, Path]) -> dict[str, dict[str, Finding]]:
    """folder → id of a claim → what was found of it."""
    judged = {f: {c.id: judge(c, results) for c in paper.claims} for f, paper in papers.items()}
    corrected = after_holm(judged)
    return {
        folder: {claim.id: told(claim, corrected[folder][claim.id], results) for claim in paper.claims}
        for folder, paper in papers.items()
    }


def pages(
    papers: Mapping[str, Paper], found: Mapping[str, Mapping[str, Finding]], results: Mapping[str, Path]
) -> dict[Path, str]:
    """file → text, of every page that the command writes."""
    written = {HERE / "README.md": main_page(papers, found, results, read_pieces())}
    for folder, paper in papers.items():
        path = HERE / folder / "README.md"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        written[path] = folder_page(before, paper, found[folder], results)
    return written


def collect(runs: Path, root: Path = HERE) -> list[Path]:
    """Copy results.csv of every sweep below `runs` that is finished and has its spec here, with its origin.

    A sweep is finished when results.csv has a line for each of its runs.
    """
    from curvact.lab.store import read_environment
    from curvact.lab.sweep_run import RUNS

    specs = {path.stem: path for path in root.glob("*/*.yaml") if path.name != "claims.yaml"}
    copied = []
    for folder in sorted({path.parent for path in runs.glob(f"*/{SWEEP_FILE}")}):
        source = folder / "results.csv"
        if folder.name not in specs or not source.is_file():
            continue
        table = read_results(source)
        wanted = [run.id for run in sweep_of(specs[folder.name]).planned if run.source is None]
        got = [row.run for row in (*table.rows, *table.references)]
        if set(got) != set(wanted):
            print(
                f"{folder}: {len(set(got) & set(wanted))} of {len(set(wanted))} runs: left out",
                file=sys.stderr,
            )
            continue
        places = [read_environment(folder / RUNS / run) for run in got]
        target = specs[folder.name].parent / "results" / f"{folder.name}.csv"
        target.parent.mkdir(exist_ok=True)
        atomic_write(target, source.read_text(encoding="utf-8"))
        write_origin(target, places, len(got), sum(row.seconds for row in (*table.rows, *table.references)))
        copied.append(target)
    theory = runs / "theory" / "theory.json"
    if theory.is_file():
        copied.append(_collect_theory(json.loads(theory.read_text(encoding="utf-8")), root))
    return copied


def _collect_theory(record: dict[str, Any], root: Path) -> Path:
    """What `smoothness/theory.py` found, in four numbers."""
    claims = record["check"]["claims"]
    found = {
        "violations": record["check"]["violations"],
        "bounds": len(claims),
        "pairs": record["config"]["pairs"],
        "commit": record["environment"].get("commit", "unknown"),
    }
    target = root / "smoothness" / "results" / "theory.violations.json"
    atomic_write(target, json.dumps(found, indent=1) + "\n")
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where a page differs"
    )
    parser.add_argument(
        "--collect", type=Path, metavar="RUNS", help="copy results of finished sweeps below RUNS"
    )
    options = parser.parse_args(arguments)
    if options.collect is not None:
        if not options.collect.is_dir():
            raise CurvactError(f"--collect {options.collect}: no such folder")
        for path in collect(options.collect):
            print(f"collected: {path}")
    papers, results = read_papers(), all_results()
    found = findings(papers, results)
    texts = {path: text.encode() for path, text in pages(papers, found, results).items()}
    drawn = {} if options.check else pictures(papers, found, results)
    stale = 0
    for path, content in {**texts, **drawn}.items():
        if path.is_file() and path.read_bytes() == content:
            continue
        stale += 1
        if options.check:
            print(f"not what claims.py writes: {path}")
        else:
            atomic_write(path, content)
            print(f"written: {path}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CurvactError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
