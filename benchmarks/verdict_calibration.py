"""Print how often the verdict of a curvature sweep is right, by simulation: `python benchmarks/verdict_calibration.py`.

Options: --seeds 3 10 --sd 0.015 --studies 4000 --curvatures 0.1 0.5 1 2 4 6 10 20 50 200
"""

from __future__ import annotations

import argparse

from curvact.lab.statistics.calibration import calibrate

CURVATURES = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 50.0, 200.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulated error rates and power of the verdict.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--sd", type=float, default=0.015, help="noise standard deviation of one trial")
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--curvatures", type=float, nargs="+", default=list(CURVATURES))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    results = [
        calibrate(chosen.curvatures, seeds, chosen.sd, studies=chosen.studies, seed=chosen.seed)
        for seeds in chosen.seeds
    ]
    print(f"{len(chosen.curvatures)} curvatures, noise sd {chosen.sd:g}, {chosen.studies} studies a figure\n")
    print("| | " + " | ".join(f"{seeds} seeds" for seeds in chosen.seeds) + " | |")
    print("|---|" + "---|" * len(results) + "---|")
    for rows in zip(*(result.rows for result in results), strict=True):
        what, _, meaning = rows[-1]
        what, meaning = (
            text.replace(f" over {chosen.seeds[-1]} seeds", "").replace(f" at {chosen.seeds[-1]} seeds", "")
            for text in (what, meaning)
        )
        print(f"| {what} | " + " | ".join(figure for _, figure, _ in rows) + f" | {meaning} |")


if __name__ == "__main__":
    main()
