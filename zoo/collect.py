"""Copies the networks of runs into the zoo of the package, and writes its table and docs/zoo.md.

    python zoo/collect.py runs/zoo

RUNS/NAME is the run of the network NAME, RUNS/evaluations has the record of AutoAttack, or of parts of it, on it.
`bash zoo/make.sh` makes both. Without RUNS, docs/zoo.md is written again from the table.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curvact.attacks import radius_text
from curvact.files import atomic_write, hash_of_file, with_checksum
from curvact.lab.record import read_records
from curvact.models import ZOO, ZooEntry, save_pretrained
from curvact.models.checkpoint import find_weights
from curvact.models.zoo import FOLDER, read_zoo

ROOT = Path(__file__).parents[1]
ATTACKS = ("AutoAttack", "apgd-ce + apgd-t")
"""Of records; the first that a network has is taken."""

HEAD = """# The zoo

Small networks that are trained already, with their records. They need no download.

```python
import curvact as cv

model = cv.models.from_zoo("digits-resnet-rctaf6")  # eval mode; images in [0, 1], normalization is inside
test, linf = cv.data.load("digits").test.first(50), cv.ThreatModel("linf", 0.2)
print(cv.attacks.accuracy(model, test.inputs(), test.labels, "pgd-20", threat_model=linf).robust)
```

Every command that takes a checkpoint takes `zoo:NAME`. `curvact zoo` prints the table.

```sh
curvact evaluate zoo:digits-resnet-rctaf6 --attack pgd-20
curvact analyze hessian zoo:fashion-resnet18-relu
curvact steer zoo:digits-resnet-relu
```

## The networks

"""

TAIL = """
Accuracies are those of the first so many test images, as measured: without attack, under 20 steps of PGD, and under
the attack that the table names. AutoAttack is the whole standard one; apgd-ce + apgd-t are its first two parts, which
can leave more images than the whole. κ is that of the activation. Each network is one run with one seed. So a difference
between two of them is no evidence for a claim about activations: [the sweeps](sweeps.md) ask such questions with
several seeds. No setting was tuned for either activation.

## What comes with a network

A network is a [checkpoint](interchange.md): NAME.safetensors and NAME.json in `curvact/models/pretrained/NAME/`. The JSON has
the architecture, the whole spec with its seed, the commit, the versions and the hardware, what the training cost, the
sha256 of the images, and what was measured. pretrained/zoo.json is the table, `curvact.models.ZOO` in Python, with
the sha256 of every file. A file with another sha256 is refused.

```python
import curvact as cv
from curvact.models.checkpoint import read_sidecar

sidecar = read_sidecar(cv.models.zoo_weights("digits-resnet-rctaf6"))
print(sidecar["spec"]["seed"], sidecar["origin"]["environment"]["commit"], sidecar["cost"])
```

The specs are [zoo/digits.yaml](../zoo/digits.yaml) and [zoo/fashion.yaml](../zoo/fashion.yaml). `bash zoo/make.sh` trains
and attacks all networks again, and writes this page.

## Larger networks

A network that is too large for the package is an asset: its entry in the table has `packaged: false`. Its files are
downloaded from the server that the environment's `CURVACT_ZOO` names (ADDRESS/NAME.safetensors, ADDRESS/NAME.json), once,
into the user's cache (`CURVACT_CACHE`), and their sha256 is checked before each use. No asset is published yet.
"""


def collect(runs: Path, name: str) -> ZooEntry:
    """Copy the files of one network, and return its entry. Nothing is copied where a check fails."""
    weights = find_weights(runs / name)
    record = json.loads((runs / name / "record.json").read_text())
    records = {
        r.attack: r
        for r in read_records(runs / "evaluations")
        if r.model.name == f"{name}-best" and r.mode == "plain" and r.attack in ATTACKS
    }
    if not records:
        raise SystemExit(f"{runs}/evaluations has no plain record of {' or '.join(ATTACKS)} on {name}")
    evaluation = records[min(records, key=ATTACKS.index)]
    with tempfile.TemporaryDirectory() as folder:
        cost = {key: record[key] for key in ("seconds", "gradient_evaluations")}
        keep = {"mode", "seed", "seconds", "accuracy_after", "masking", "versions", "environment"}
        about = {
            "cost": cost,
            "metrics": record["metrics"],
            "run": record["run"],
            "evaluation": evaluation.model_dump(mode="json", include=keep),
        }
        described = save_pretrained(runs / name, folder, about=about, records=[evaluation], name=name)
        description = json.loads((described / "config.json").read_text())
    if len(description["measured"]) != 2:
        raise SystemExit(f"{runs / name} has no record of these weights")
    pgd = description["measured"][0]
    text = json.dumps(with_checksum(description), indent=1, sort_keys=True, allow_nan=False)
    files = [FOLDER / name / f"{name}.safetensors", FOLDER / name / f"{name}.json"]
    files[0].parent.mkdir(exist_ok=True)
    shutil.copyfile(weights, files[0])
    atomic_write(files[1], text + "\n")
    if pgd["count"] != evaluation.data.count:
        raise SystemExit(f"{name}: PGD attacked {pgd['count']} images and AutoAttack {evaluation.data.count}")
    training, spec = record["spec"]["training"], record["spec"]
    return ZooEntry(
        name=name,
        data=spec["data"]["name"],
        network=_network(description["architecture"], spec["model"]),
        activation=spec["activation"],
        curvature=float(description["activation"]["curvature"][0]),
        norm=evaluation.threat_model.norm,
        epsilon=evaluation.threat_model.epsilon,
        images=evaluation.data.count,
        clean=evaluation.clean_accuracy,
        pgd=pgd["robust"],
        robust=evaluation.robust_accuracy,
        attack=evaluation.attack,
        recipe=f"{training['objective']}, {training['attack']}, {training['epochs']} epochs",
        packaged=True,
        size=sum(file.stat().st_size for file in files),
        sha256={file.name: hash_of_file(file) for file in files},
    )


def _network(architecture: dict[str, Any], model: dict[str, Any]) -> str:
    inside = ", ".join(f"{k}={v!r}" for k, v in model.items() if k not in ("name", "scope") and v is not None)
    return f"{architecture['name']}({inside})"


def page(zoo: dict[str, ZooEntry]) -> str:
    """docs/zoo.md."""
    lines = [
        "| name | network | activation | κ | threat model | test images | clean % | PGD-20 % | robust % | under | KB |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    for e in zoo.values():
        kappa = f"{e.curvature:g}".replace("inf", "∞")
        shares = " | ".join(f"{100 * share:.1f}" for share in (e.clean, e.pgd, e.robust))
        threat = f"{e.norm}, ε = {radius_text(e.epsilon)}"
        lines.append(
            f"| `{e.name}` | `{e.network}` | `{e.activation}` | {kappa} | {threat} | {e.images:,} | {shares} | "
            f"{e.attack} | {e.size / 1000:.0f} |"
        )
    return HEAD + "\n".join(lines) + "\n" + TAIL


def main() -> None:
    zoo = ZOO
    if len(sys.argv) > 1:
        runs = Path(sys.argv[1])
        names = sorted(path.parent.name for path in runs.glob("*/record.json"))
        zoo = ZOO | {name: collect(runs, name) for name in names}
        rows = [{**asdict(e), "curvature": str(e.curvature)} for e in zoo.values()]
        atomic_write(FOLDER / "zoo.json", json.dumps(rows, indent=1) + "\n")
        zoo = read_zoo((FOLDER / "zoo.json").read_text())
    atomic_write(ROOT / "docs" / "zoo.md", page(zoo))


if __name__ == "__main__":
    main()
