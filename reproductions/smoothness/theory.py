"""Check every claim of the linear theory on random pairs of weights, and write the page about it.

    python reproductions/smoothness/theory.py --out runs/theory

Exits with 1 if a claim is violated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from linear_theory import KINDS, check_theory, illustrate
from page import theory_figure, write_theory_page

from curvact.analysis.records import plain
from curvact.errors import CurvactError
from curvact.lab.environment import environment


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="the folder to write")
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs of weights for every claim")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 5, 20, 50], help="of the inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    sizes = options.dimensions
    if min(sizes) < 1 or len(set(sizes)) < len(sizes) or options.pairs < len(KINDS) * len(sizes):
        parser.error(f"dimensions >= 1, each once, and at least {len(KINDS)} pairs for each")
    started = time.perf_counter()
    check = check_theory(options.pairs, dimensions=sizes, seed=options.seed).as_dict()
    picture = illustrate().as_dict()
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "config": {"pairs": options.pairs, "dimensions": sizes, "seed": options.seed},
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 3),
        "check": check,
        "picture": picture,
    }
    (options.out / "theory.json").write_text(
        json.dumps(plain(record), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    theory_figure(picture).savefig(options.out / "theory.png", dpi=160)
    page = write_theory_page(check, picture, options.out)
    for claim in check["claims"]:
        tightness = "–" if claim["tightness"] is None else f"{claim['tightness']:.4f}"
        print(
            f"{claim['norm']:5} {claim['name']}: {claim['statement']}  pairs {claim['pairs']:,}, "
            f"violations {claim['violations']:,}, tightness {tightness}"
        )
    print(f"page: {page}")
    return 1 if check["violations"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CurvactError as error:
        sys.exit(f"error: {error}")
