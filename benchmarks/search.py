"""How many gradient evaluations a search takes until it is as good as a grid, on handwritten digits.

    OMP_NUM_THREADS=1 nice -n 15 python benchmarks/search.py [--seeds 3] [--trials 20] [--out FOLDER]

Two keys are searched: κ and the learning rate of an MLP of width 64. For each seed (of the sampler and
of the runs) a whole grid is run first. Its best validation robust accuracy, less one binomial standard
error over the validation images, is the target. Then the cost of each search until its first trial at
the target, and until one as good as the grid's best, is counted in gradient evaluations, as the records
count them. The grid is run in an order that the seed draws, to its end. The other searches have the same
budget.
A folder that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from rich.console import Console

from curvact.lab.environment import environment
from curvact.lab.placement import Placement
from curvact.lab.search import SearchSpec
from curvact.lab.search_run import Trial, cost_of, open_study, run_search, spent, trials_of

BASE = {
    "data": {"name": "digits", "train": 600},
    "model": {"name": "mlp", "width": 64},
    "activation": "rctaf(beta=0)",
    "training": {"epochs": 4, "attack": "pgd(steps=2, step=0.6)"},
    "evaluation": {"attack": "pgd-10", "train_images": 16, "weights": "last"},
}
SPACE = {
    "curvature": {"low": 0.3, "high": 60, "log": True, "points": 5},
    "training.learning_rate": {"low": 0.003, "high": 1.0, "log": True, "points": 5},
}
KINDS = {
    "grid": ("grid", "none"),
    "random": ("random", "none"),
    "tpe": ("tpe", "none"),
    "tpe, pruned": ("tpe", "median"),
}


def search(kind: str, seed: int, budget: int, folder: Path) -> tuple[SearchSpec, list[Trial]]:
    """The trials of one search."""
    sampler, pruning = KINDS[kind]
    spec = SearchSpec(
        name="benchmark",
        base=BASE,
        space=SPACE,
        budget=budget,
        sampler=sampler,
        pruning=pruning,
        seed=seed,
        baseline={},
    )
    run_search(spec, folder, Placement("inline", workers=1), resume=True, console=Console(quiet=True))
    return spec, trials_of(spec, open_study(folder))


def cost_until(trials: list[Trial], target: float) -> int | None:
    """Gradient evaluations up to and with the first trial at the target; None where there is none."""
    for number, trial in enumerate(trials):
        if trial.state == "completed" and (trial.accuracy or 0) >= target:
            return spent(trials[: number + 1])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--trials", type=int, default=20, help="budget of each search but the grid, in trials"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-search"))
    options = parser.parse_args()
    began = time.perf_counter()
    rows: list[tuple[int, str, int | None, int | None, float, int, int]] = []
    for seed in range(options.seeds):
        target = top = math.nan
        for kind in KINDS:
            cost = cost_of(SearchSpec(name="a", base=BASE, space=SPACE, budget=1).baseline_run)
            grid = kind == "grid"
            budget = cost * (25 if grid else options.trials)
            spec, trials = search(kind, seed, budget, options.out / f"{kind.replace(', ', '-')}-{seed}")
            best = max(t.accuracy or 0.0 for t in trials if t.state == "completed")
            if grid:
                images = len(spec.trial(next(spec.corners())).data.load().validation)
                top = best
                target = best - math.sqrt(best * (1 - best) / images)
            costs = cost_until(trials, target), cost_until(trials, top)
            rows.append((seed, kind, *costs, best, len(trials), spent(trials)))
            print(*rows[-1], f"target {target:.4f}", f"{time.perf_counter() - began:.0f} s", flush=True)
    place = environment()
    print(f"\n{place['processor']}, one thread; commit {place['commit']}; torch {place['torch']}")
    print(f"{cost} gradient evaluations a whole trial; {time.perf_counter() - began:.0f} s in all")
    print("| search | until the target, by seed | until the grid's best | best accuracy | trials | spent |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        mine = [row for row in rows if row[1] == kind]
        until, best_until = (
            ", ".join("never" if row[column] is None else f"{row[column]:,}" for row in mine)
            for column in (2, 3)
        )
        print(
            f"| {kind} | {until} | {best_until} | {', '.join(f'{row[4]:.3f}' for row in mine)} "
            f"| {', '.join(str(row[5]) for row in mine)} | {', '.join(f'{row[6]:,}' for row in mine)} |"
        )


if __name__ == "__main__":
    main()
