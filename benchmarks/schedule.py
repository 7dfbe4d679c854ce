"""How long a cluster takes for the published grid, by simulation: makespan, utilisation and tail
against the number of GPUs and the order of the runs. Nothing is trained.

    python benchmarks/schedule.py [--spec reproductions/rctaf/cluster.yaml] [--rate 20TFLOPS]
        [--records digits.csv] [--failures 1000] [--draws 20] [--figure docs/img/schedule]

A run takes its counted operations (`curvact sweep cost`) at the given rate, times a factor that is
drawn from records in docs/results: seconds of a run over the mean of the runs with the same
settings but for κ and seed. `--records "*.csv"` takes all of them; most shared their CPU with other
work, so that spread is wider than that of a machine alone.

A GPU fails once in `--failures` hours. The run goes on from its state, which is at most five
minutes old, after a restart of six minutes.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from curvact.lab.cost import costs_of, parse_rate
from curvact.lab.sweep import read_sweep

ROOT = Path(__file__).parents[1]
STATE_HOURS, RESTART_HOURS = 5 / 60, 6 / 60
SAME = ("activation", "method", "reference", "model.name", "training.epochs", "centered", "network")
ORDERS = {
    "seeds": "seed by seed, as the sweep runs them",
    "seeds, longest": "seed by seed, longest first in each",
    "longest": "longest first",
    "shortest": "shortest first",
}


def spread(records: str) -> NDArray[np.float64]:
    """Factors on the mean run time, from our own records."""
    factors: list[float] = []
    for file in sorted((ROOT / "docs" / "results").glob(records)):
        groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if row.get("status") == "done" and row.get("seconds"):
                    groups[tuple(row.get(key, "") for key in SAME)].append(float(row["seconds"]))
        for seconds in groups.values():
            if len(seconds) >= 3:
                factors += (np.array(seconds) / np.mean(seconds)).tolist()
    return np.array(factors)


@dataclass(frozen=True)
class Work:
    """Runs in the order of the sweep: the seed of each, and its hours without chance."""

    seeds: NDArray[np.int64]
    hours: NDArray[np.float64]


def work_of(spec: Path, rate: float) -> Work:
    """One run of each kind is counted; κ and seed change no operation."""
    content = yaml.safe_load(spec.read_text())
    few = read_sweep(spec, [f"grid.curvature=[{content['grid']['curvature'][0]}]", "grid.seed=[0]"])
    each = np.array([cost.total for cost in costs_of(run.spec for run in few.planned)]) / rate / 3600
    kappas, seeds = len(content["grid"]["curvature"]), len(content["grid"]["seed"])
    return Work(np.repeat(np.arange(seeds), kappas * len(each)), np.tile(each, seeds * kappas))


def ordered(work: Work, order: str) -> NDArray[np.int64]:
    """Indices of the runs as they are given to the GPUs."""
    if order == "seeds":
        return np.arange(len(work.hours))
    if order == "seeds, longest":
        return np.lexsort((-work.hours, work.seeds))
    return np.argsort(-work.hours if order == "longest" else work.hours, kind="stable")


@dataclass(frozen=True)
class Outcome:
    """makespan: hours until all is done. utilisation: the part of all GPU hours that trains and
    measures. tail: hours from the first GPU without a run to the end. first: hours until a whole
    curve of the first seed is there.
    """

    makespan: float
    utilisation: float
    tail: float
    first: float


def simulate(
    work: Work,
    order: str,
    gpus: int,
    factors: NDArray[np.float64],
    failures: float,
    random: np.random.Generator,
) -> Outcome:
    """The next run goes to the GPU that is free first. failures: hours between two of one GPU."""
    hours = work.hours * random.choice(factors, len(work.hours))
    failed = random.poisson(hours / failures) if np.isfinite(failures) else np.zeros(len(hours), dtype=int)
    lost = np.array([random.uniform(RESTART_HOURS, RESTART_HOURS + STATE_HOURS, n).sum() for n in failed])
    free = [0.0] * gpus
    heapq.heapify(free)
    end = np.zeros(len(hours))
    for run in ordered(work, order):
        end[run] = heapq.heappop(free) + hours[run] + lost[run]
        heapq.heappush(free, end[run])
    makespan = max(free)
    return Outcome(makespan, hours.sum() / gpus / makespan, makespan - min(free), end[work.seeds == 0].max())


def median(outcomes: Sequence[Outcome]) -> Outcome:
    """Of each number."""
    return Outcome(*np.median([list(vars(o).values()) for o in outcomes], axis=0).tolist())


def draw(found: dict[tuple[str, int], Outcome], sizes: Sequence[int], path: Path) -> None:
    """Days until the first seed is complete, and utilisation, against the number of GPUs."""
    from matplotlib.figure import Figure

    from curvact.lab.report.style import OKABE_ITO, house_style, write_figure

    with house_style():
        figure = Figure(figsize=(8.6, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for colour, marker, (order, label) in zip(OKABE_ITO, "osD^", ORDERS.items(), strict=False):
            rows = [found[order, size] for size in sizes]
            left.plot(sizes, [r.first / 24 for r in rows], color=colour, marker=marker, ms=4, label=label)
            right.plot(sizes, [100 * r.utilisation for r in rows], color=colour, marker=marker, ms=4)
        left.set(yscale="log", ylabel="days until the first seed is complete")
        right.set(ylabel="GPU hours that are used, %", ylim=(80, 101))
        for ax in (left, right):
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes, [str(size) for size in sizes])
            ax.set_xlabel("GPUs")
        left.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        write_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, default=ROOT / "reproductions" / "rctaf" / "cluster.yaml")
    parser.add_argument("--rate", default="20TFLOPS")
    parser.add_argument("--records", default="digits.csv")
    parser.add_argument("--failures", type=float, default=1000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    factors = spread(given.records)
    work = work_of(given.spec, parse_rate(given.rate))
    sizes = [1, 2, 4, 8, 16, 32, 64]
    found = {}
    for order, gpus in itertools.product(ORDERS, sizes):
        random = np.random.default_rng(0)
        found[order, gpus] = median(
            [simulate(work, order, gpus, factors, given.failures, random) for _ in range(given.draws)]
        )
    print(f"{len(work.hours)} runs of {work.hours.min():.1f} to {work.hours.max():.1f} h at {given.rate}")
    print(
        f"spread: {len(factors)} runs, 5 %, 50 %, 95 %, most: "
        + ", ".join(f"{q:.2f}" for q in np.quantile(factors, [0.05, 0.5, 0.95, 1]))
    )
    print("| order | GPUs | days | used | tail, h | first seed, days |\n|---|---|---|---|---|---|")
    for (order, gpus), outcome in found.items():
        print(
            f"| {order} | {gpus} | {outcome.makespan / 24:.1f} | {outcome.utilisation:.1%} "
            f"| {outcome.tail:.0f} | {outcome.first / 24:.1f} |"
        )
    if given.figure is not None:
        draw(found, sizes, given.figure)


if __name__ == "__main__":
    main()
