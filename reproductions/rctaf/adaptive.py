"""Attack networks of the principal study adaptively, and write results/adaptive.csv.

    python reproductions/rctaf/adaptive.py runs/kappa-digits-* runs/kappa-cifar10-resnet-pgd-all

Of every stratum, at κ = 6 and at κ = 200 and of ReLU, the networks are attacked by apgd-ce + apgd-t, and
the images that stay robust by the adaptive attack. `adaptive_loss` is the share of all images that only the
adaptive attack breaks. The file is written after each network, and a later call goes on with it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from curvact.attacks import adaptive_attack, ensemble
from curvact.errors import CurvactError
from curvact.files import atomic_write, csv_text, read_csv
from curvact.lab import open_checkpoint
from curvact.lab.spec import RunSpec
from curvact.lab.sweep import read_sweep
from curvact.lab.sweep_run import RUNS, sweep_records
from curvact.random import generator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from origin import begin_origin  # noqa: E402

CURVATURES = (6, 200)
AXES = ("network", "data", "method", "decay", "curvature", "seed")
METRICS = ("subset_robust_accuracy", "adaptive_accuracy", "adaptive_loss")
COLUMNS = ("run", *AXES, "reference", "status", "cause", *METRICS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of sweeps of rctaf/kappa-*.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adaptive.csv")
    parser.add_argument("--images", type=int, default=60, help="the first so many test images")
    parser.add_argument("--steps", type=int, default=40, help="of each attack")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = read_csv(options.out, COLUMNS)
    done, write_origin = {line[0] for line in lines}, begin_origin(options.out)
    for folder in options.runs:
        for planned, record in sweep_records(read_sweep(folder), folder):
            if record.status != "done" or planned.labels.get("curvature") not in (*CURVATURES, None):
                continue
            if record.run in done:
                continue
            numbers = attacked(folder / RUNS / record.run, record.spec, options.images, options.steps)
            labels = [planned.labels.get(axis, "") for axis in AXES]
            line = (record.run, *labels, planned.reference or "", "done", "", *numbers)
            lines.append([str(value) for value in line])
            print(*lines[-1], flush=True)
            atomic_write(options.out, csv_text([COLUMNS, *lines]))
            write_origin(len(lines))
    return 0


def attacked(folder: Path, spec: RunSpec, count: int, steps: int) -> tuple[float, float, float]:
    """Accuracy after AutoAttack's parts, after the adaptive attack too, and what that one took."""
    model = open_checkpoint(folder, "last").model
    images = spec.data.load().test.first(count)
    x, y = images.inputs(), images.labels
    parts = spec.evaluation.autoattack_parts
    left = ensemble(model, x, y, spec.threat_model, attacks=parts, seed=spec.seed).robust
    kept = 0
    if left.any():
        random = generator(spec.seed, "adaptive")
        found = adaptive_attack(model, x[left], y[left], spec.threat_model, steps=steps, generator=random)
        kept = int(found.robust.sum())
    before, after = int(left.sum()) / len(y), kept / len(y)
    return before, after, before - after


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CurvactError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
