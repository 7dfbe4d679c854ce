"""From records to the verdict: what is planted in synthetic records comes out in words, rows and files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from curvact.errors import CurvactError
from curvact.lab.report import summary as summary_module
from curvact.lab.report.summary import summarize
from curvact.lab.store import METRICS, open_folder
from curvact.lab.study_spec import StudySpec, trial_id

CURVATURES = [0.1, 0.3, 1, 2, 4, 6, 10, 20, 60, 200]


def _plant(folder: Path, curve: Any, *, norms: bool = True, **factors: Any) -> StudySpec:
    """A finished study whose robust accuracy is curve(κ, config) plus small noise; its Hessian norms are least at κ = 6."""
    spec = StudySpec.model_validate(
        {"name": "planted", "factors": {"curvature": CURVATURES, "seed": [0, 1, 2, 3, 4], **factors}}
    )
    trials = open_folder(folder, spec, resume=False)
    noise = np.random.default_rng(0)
    for config in spec.trials():
        place = trials / trial_id(config)
        place.mkdir()
        kappa = config["curvature"]
        metrics: dict[str, float | None] = dict.fromkeys(METRICS, 0.1)
        metrics.update(
            {
                name: 10 ** (abs(np.log10(kappa / 6)) + 0.02 * noise.normal())
                for name in METRICS
                if "hessian" in name
            }
        )
        if not norms:
            metrics = {name: None if "hessian" in name else value for name, value in metrics.items()}
        metrics["robust_accuracy"] = curve(kappa, config) + 0.004 * noise.normal()
        metrics["clean_accuracy"] = 0.95
        record = {
            "trial": place.name,
            "config": config,
            "status": "done",
            "cause": "",
            "metrics": metrics,
            "gradient_evaluations": 10,
            "seconds": 1.0,
            "data_sha256": {"train": "0" * 64, "test": "1" * 64},
        }
        (place / "record.json").write_text(json.dumps(record))
        environment = dict.fromkeys(
            ["commit", "curvact", "torch", "python", "processor", "kernels"], "planted"
        )
        (place / "environment.json").write_text(json.dumps(environment))
        save_file({"x": torch.zeros(1)}, place / "model.safetensors")
    return spec


def test_a_planted_peak_is_found(tmp_path: Path) -> None:
    _plant(tmp_path / "s", lambda kappa, config: 0.7 - 0.1 * np.log10(kappa / 6) ** 2)
    summary = summarize(tmp_path / "s")
    text = "\n".join(summary.sentences)
    assert "An interior peak is supported" in text
    assert "at κ = 6" in text
    assert "A U shape of the Hessian norm is supported for 6 of 6 norms" in text
    assert (
        "correction for the 6 such tests of this study this is left: ‖diag H‖₂/√P of the clean loss" in text
    )
    page = summary.page.read_text()
    assert "interior peak" in page
    assert "planted" in page


def test_one_of_many_u_shapes_has_to_pass_the_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The p-values of the first norm are made 0.003 and 0.02 in two families: 12 × 0.003 passes, 11 × 0.02 does not."""
    real = summary_module._verdict
    values = iter([0.003, 0.02])

    def doctored(*arguments: Any) -> Any:
        verdict = real(*arguments)
        first, *others = verdict.norms
        norms = {first: replace(verdict.norms[first], peak_p=next(values))}
        norms |= {name: replace(verdict.norms[name], peak_p=0.5, kind="inconclusive") for name in others}
        return replace(verdict, norms=norms)

    monkeypatch.setattr(summary_module, "_verdict", doctored)
    families = ["rctaf(beta=0)", "rctaf(beta=1)"]
    _plant(tmp_path / "s", lambda kappa, config: 0.7, family=families)
    text = "\n".join(summarize(tmp_path / "s").sentences)
    assert text.count("is supported for 1 of 6 norms") == 2
    assert (
        text.count("for the 12 such tests of this study this is left: ‖diag H‖₂/√P of the clean loss.") == 1
    )
    assert text.count("for the 12 such tests of this study none is left.") == 1


def test_a_planted_plateau_is_no_peak(tmp_path: Path) -> None:
    _plant(tmp_path / "s", lambda kappa, config: 0.5 + 0.1 * min(np.log10(kappa / 0.1), np.log10(20)))
    text = "\n".join(summarize(tmp_path / "s").sentences)
    assert "An interior peak is not supported" in text
    assert "plateau" in text


def test_factor_levels_are_told_apart(tmp_path: Path) -> None:
    def curve(kappa: float, config: dict[str, Any]) -> float:
        return 0.5 + 0.1 * config["centered"] + 0.05 * (config["epochs"] == 40)

    families = ["rctaf(beta=0)", "swish"]
    _plant(tmp_path / "s", curve, norms=False, centered=[False, True], epochs=[10, 40], family=families)
    summary = summarize(tmp_path / "s")
    text = "\n".join(summary.sentences)
    for level in ("not centred, 10 epochs", "centred, 40 epochs"):
        assert f"rctaf(beta=0), {level}: The best mean robust accuracy" in text
        assert f"swish, {level}: " in text
    assert "centred, 40 epochs: The confidence sets of the optimum" in text
    with summary.csv.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 10 * 5
    assert list(rows[0])[-1] == "seconds"


def test_one_seed_is_inconclusive(tmp_path: Path) -> None:
    _plant(tmp_path / "s", lambda kappa, config: 0.5 + 0.1 * (kappa == 6), seed=[0])
    text = "\n".join(summarize(tmp_path / "s").sentences).lower()
    assert "an error bar nothing more can be said" in " ".join(text.split())
    assert "peak is supported" not in text
    assert "no u shape of the hessian norm is shown, for none of 6 norms" in text


def test_nothing_finished_is_one_line(tmp_path: Path) -> None:
    spec = StudySpec.model_validate({"name": "empty", "factors": {"curvature": [1]}})
    open_folder(tmp_path / "s", spec, resume=False)
    with pytest.raises(CurvactError, match="has no finished trial"):
        summarize(tmp_path / "s")
