"""Steer the networks of curvature_tuning/standard.yaml, and write results/steered.csv.

    curvact sweep run reproductions/curvature_tuning/standard.yaml --out runs/standard --resume
    python reproductions/curvature_tuning/steer.py runs/standard

Each network is steered at two radii: one at which it keeps part of its accuracy, and the usual one of its
data set. β is chosen by PGD-20 on 300 validation images; the network as it is and the steered one are then
attacked once by apgd-ce + apgd-t on 300 test images. The file is written after each, and a later call goes
on with it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from curvact.activations import CTU, swap_activations
from curvact.attacks import ThreatModel, ensemble
from curvact.errors import CurvactError
from curvact.files import atomic_write, csv_text, read_csv
from curvact.lab import open_checkpoint, steer
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import RUNS, sweep_records

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from origin import begin_origin  # noqa: E402

RADII = {"digits": (0.02, 0.2), "fashion-mnist": (0.01, 0.1), "cifar10": (1 / 255, 8 / 255)}
"""The radii of a data set, in input units."""
IMAGES = 300
"""Of each split."""
PARTS = ("apgd-ce", "apgd-t")
COLUMNS = (
    "run",
    "data",
    "epsilon",
    "steering",
    "seed",
    "status",
    "cause",
    "clean_accuracy",
    "robust_accuracy",
    "beta",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="the folder of the sweep of standard.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "steered.csv")
    parser.add_argument("--images", type=int, default=IMAGES, help="of each split")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = read_csv(options.out, COLUMNS)
    done, write_origin = {line[0] for line in lines}, begin_origin(options.out)
    for planned, record in sweep_records(read_sweep(options.runs), options.runs):
        loaded = open_checkpoint(options.runs / RUNS / record.run, "last").model
        data = record.spec.data.load()
        validation, test = data.validation.first(options.images), data.test.first(options.images)
        for epsilon in RADII[record.spec.data.name]:
            if f"{record.run}-{epsilon:.4g}-steered" in done:
                continue
            threat = ThreatModel("linf", epsilon)
            found = steer(loaded, validation, test, threat, attack="pgd-20", seed=record.spec.seed)
            steered = swap_activations(loaded, "relu", CTU(found.beta, found.c), inplace=False).model
            for name, model in (("as it is", loaded), ("steered", steered)):
                result = ensemble(
                    model, test.inputs(), test.labels, threat, attacks=PARTS, seed=record.spec.seed
                )
                labels = (planned.labels["data"], f"{epsilon:.4g}", name, record.spec.seed)
                beta = found.beta if name == "steered" else ""
                run = f"{record.run}-{epsilon:.4g}-{name}"
                found_here = (run, *labels, "done", "", result.clean_accuracy, result.robust_accuracy, beta)
                lines.append([str(value) for value in found_here])
                print(*lines[-1], flush=True)
            atomic_write(options.out, csv_text([COLUMNS, *lines]))
            write_origin(len(lines))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CurvactError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
