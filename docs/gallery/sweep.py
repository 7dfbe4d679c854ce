"""A sweep in Python, and its verdict

A sweep trains a network for each κ and each seed. Then it answers its question in sentences. With two
seeds and one epoch it cannot be sure of much, and says so.
"""

from pathlib import Path

from curvact.lab import Placement, SweepSpec, run_sweep
from curvact.lab.sweep_run import report

spec = SweepSpec(
    name="kappa",
    question="Which curvature is the most robust?",
    base={
        "data": "digits",
        "model": {"name": "mlp", "width": 32},
        "threat_model": {"norm": "linf", "epsilon": 0.15},
        "training": {"epochs": 2, "attack": "pgd-2", "validation": "pgd-0", "warmup": 0.3},
        "evaluation": {"attack": "pgd-5"},
    },
    grid={"activation": ["rctaf(beta=0)"], "curvature": [0.1, 1, 10], "seed": [0, 1]},
    references=["relu"],
)
folder = Path("kappa-sweep")
run_sweep(spec, folder, Placement("inline"))  # the default engine, local, has a process for each core
for sentence in report(folder).sentences:
    print("-", sentence)
