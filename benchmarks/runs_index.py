"""How long it takes to list, filter and export many runs.

    python benchmarks/runs_index.py [--runs 10000] [--out FOLDER]

The runs are synthetic: the folder of a run holds its record.json and its spec.yaml, as a run of a sweep
writes them. Each figure is that of a new process of `curvact`, best of three.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curvact.lab.environment import environment
from curvact.lab.layout import INDEX_FILE, RECORD_FILE, SPEC_FILE
from curvact.lab.settings import check_settings
from curvact.lab.spec import RunSpec
from curvact.lab.store import Record


def make(folder: Path, count: int) -> None:
    """Write the folders of so many runs."""
    spec = check_settings(RunSpec, {"activation": "rctaf(beta=0)", "curvature": 4}, "synthetic")
    metrics = {"clean_accuracy": 0.9, "robust_accuracy": 0.5, "best_robust_accuracy": 0.5, "best_epoch": 3.0}
    record = Record(
        run="0" * 12,
        spec=spec,
        status="done",
        metrics=metrics,
        epochs=10,
        gradient_evaluations=1620,
        max_curvature=4.0,
        test_images=360,
        data_sha256={"test": "0" * 64},
        files={"last.safetensors": "0" * 64},
        seconds=12.5,
    )
    content, yaml = json.loads(record.model_dump_json()), spec.to_yaml()
    for number in range(count):
        content["run"] = f"{number:012x}"
        content["max_curvature"] = 0.1 * (1 + number % 100)
        content["metrics"]["robust_accuracy"] = (number * 7919 % 10007) / 10007
        content["spec"]["seed"] = number
        content["spec"]["training"]["objective"] = ("pgd-at", "trades(beta=6)")[number % 2]
        place = folder / f"sweep-{number % 10}" / "runs" / content["run"]
        place.mkdir(parents=True)
        (place / RECORD_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        (place / SPEC_FILE).write_text(yaml)


def seconds(*arguments: str) -> tuple[float, float]:
    """CPU and wall time of one process of the command."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "curvact", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="where the runs are made; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        folder = Path(name)
        make(folder, options.runs)
        place = environment()
        print(f"{options.runs:,} runs; {place['processor']}; commit {place['commit']}\n")
        print("| command | CPU seconds | wall seconds |\n|---|---|---|")

        def show(words: str, *arguments: str, fresh: bool = False) -> None:
            times = []
            for _ in range(3):
                if fresh:
                    (folder / INDEX_FILE).unlink(missing_ok=True)
                times.append(seconds(*arguments))
            cpu, wall = min(t for t, _ in times), min(t for _, t in times)
            print(f"| {words} | {cpu:.2f} | {wall:.2f} |", flush=True)

        show("`curvact --version`", "--version")
        show("`runs ls`, the index is made", "runs", "ls", name, fresh=True)
        show("`runs ls`", "runs", "ls", name)
        condition = ("--where", "training.objective=trades", "--where", "curvature>4", "--sort", "-robust")
        show(
            "`runs ls --where training.objective=trades --where curvature>4 --sort -robust`",
            "runs",
            "ls",
            name,
            *condition,
        )
        show("`runs ls --limit 0`", "runs", "ls", name, "--limit", "0")
        show("`runs export --out runs.csv`", "runs", "export", name, "--out", str(folder / "runs.csv"))
        print(f"\nThe index has {(folder / INDEX_FILE).stat().st_size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
