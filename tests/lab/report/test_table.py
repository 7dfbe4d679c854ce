from __future__ import annotations

import csv
import errno
import math
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from curvact.errors import CurvactError
from curvact.lab.report.table import (
    COLUMNS,
    Group,
    cells,
    estimate_text,
    interval_of,
    level_names,
    results_table,
    student_intervals,
    summaries,
    write_csv,
)

Row = dict[str, object]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def rendered(rows: list[Row], width: int = 120) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(results_table(rows))
        return console.export_text()


def test_csv_round_trip_is_exact(tmp_path: Path, make: Callable[..., list[Row]]) -> None:
    rows = make(failed=lambda index: index % 5 == 0)
    write_csv(rows, tmp_path / "results.csv")
    back = {row["trial"]: row for row in read(tmp_path / "results.csv")}
    assert len(back) == len(rows)
    for row in rows:
        line = back[str(row["trial"])]
        assert tuple(line) == COLUMNS
        for column in COLUMNS:
            value = row.get(column)
            if value is None:
                assert line[column] == ""
            elif isinstance(value, bool):
                assert line[column] == {True: "true", False: "false"}[value]
            elif isinstance(value, float):
                assert float(line[column]) == value
            else:
                assert line[column] == str(value)


@given(
    value=st.floats(allow_nan=False),
    cause=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")),
)
def test_any_float_and_any_text_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: float, cause: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "results.csv"
    write_csv([{"trial": "a", "cause": cause, "robust_accuracy": value, "seconds": np.float64(value)}], path)
    (row,) = read(path)
    assert row["cause"] == cause
    assert float(row["robust_accuracy"]) == value
    assert float(row["seconds"]) == value


def test_csv_depends_neither_on_the_order_of_rows_nor_of_keys(tmp_path: Path, study: list[Row]) -> None:
    write_csv(study, tmp_path / "a.csv")
    mixed = [
        dict(random.Random(index).sample(list(row.items()), len(row))) for index, row in enumerate(study)
    ]
    random.Random(0).shuffle(mixed)
    write_csv(mixed, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    curvatures = [float(row["curvature"]) for row in read(tmp_path / "a.csv")[:30]]
    assert curvatures == sorted(curvatures)


def test_further_columns_are_kept_before_the_seconds(tmp_path: Path) -> None:
    write_csv([{"trial": "a", "zeta": 1, "awp": 2, "seconds": 3.0}], tmp_path / "r.csv")
    (row,) = read(tmp_path / "r.csv")
    assert list(row)[-3:] == ["awp", "zeta", "seconds"]
    assert (row["awp"], row["zeta"]) == ("2", "1")


def test_a_full_disk_leaves_the_old_csv(
    tmp_path: Path, study: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.csv"
    write_csv(study[:3], path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CurvactError, match="disk full while writing"):
        write_csv(study, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.csv"]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_student_intervals_agree_with_scipy(values: list[float]) -> None:
    mean, low, high = student_intervals(np.array([[*values, math.nan]]))
    error = statistics.stdev(values) / math.sqrt(len(values))
    wanted = (
        stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), error)
        if error
        else (mean[0], mean[0])
    )
    # float64 rounding in two orders of summation, magnified by at most t(0.975, 1) = 12.7
    np.testing.assert_allclose([low[0], high[0]], wanted, atol=1e-12)
    np.testing.assert_allclose(mean[0], statistics.fmean(values), atol=1e-14)


def test_coverage_of_student_intervals_by_simulation() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, (20_000, 3))
    _, low, high = student_intervals(values)
    covered = ((low <= 2.0) & (high >= 2.0)).mean()
    assert abs(covered - 0.95) < 0.006  # 4 standard errors of a share of .95 in 20 000


def test_one_seed_has_a_mean_and_no_interval() -> None:
    mean, low, high = student_intervals(np.array([[math.nan, 0.5]]))
    assert mean.tolist() == [0.5]
    assert np.isnan([low[0], high[0]]).all()


def test_logarithmic_intervals_are_those_of_the_logarithms() -> None:
    values = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, math.nan], [3.0, 0.0, 3.0]])
    mean, low, high = interval_of(values, student_intervals, logarithmic=True)
    half = stats.t.ppf(0.975, 2) * math.log(2) / math.sqrt(3)
    np.testing.assert_allclose([mean[0], low[0], high[0]], 2 * np.exp([0, -half, half]), rtol=1e-12)
    assert np.isnan([mean[1], low[1], high[1]]).all()
    np.testing.assert_allclose([mean[2], low[2], high[2]], 3.0, rtol=1e-12)


def test_summaries_leave_failed_trials_out_and_count_them(make: Callable[..., list[Row]]) -> None:
    rows = make(families=("swish",), kappas=(0.5, 4.0), failed=lambda index: index == 1)
    first, second = summaries(rows)
    assert (first.done, first.planned, second.done, second.planned) == (2, 3, 3, 3)
    wanted = statistics.fmean(float(rows[i]["robust_accuracy"]) for i in (0, 2))  # type: ignore[arg-type]
    assert first.estimates["robust_accuracy"].mean == pytest.approx(wanted, rel=1e-14)
    assert first.estimates["robust_accuracy"].count == 2
    norms = [float(row["clean_hessian_rms"]) for row in rows[3:]]  # type: ignore[arg-type]
    assert second.estimates["clean_hessian_rms"].mean == pytest.approx(
        statistics.geometric_mean(norms), rel=1e-12
    )


def test_intervals_can_be_given(study: list[Row]) -> None:
    def fixed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.nanmean(values, 1), np.nanmin(values, 1), np.nanmax(values, 1)

    line = summaries(study, fixed)[0]
    values = [float(row["robust_accuracy"]) for row in study[:3]]  # type: ignore[arg-type]
    assert (line.estimates["robust_accuracy"].low, line.estimates["robust_accuracy"].high) == (
        min(values),
        max(values),
    )
    assert "[" in estimate_text(line.estimates["robust_accuracy"], percent=True)  # not symmetric: both ends


def test_cells_keep_seeds_aligned_across_curvatures() -> None:
    rows = [
        {"family": "f", "status": "done", "epochs": 1, "curvature": k, "seed": s, "robust_accuracy": k + s}
        for k, s in ((2.0, 7), (1.0, 3), (1.0, 7))
    ]
    table = cells(rows, Group("f", False, 1), "robust_accuracy")
    assert table.curvatures.tolist() == [1.0, 2.0]
    assert table.seeds == (3, 7)
    np.testing.assert_array_equal(table.values, [[4.0, 8.0], [math.nan, 9.0]])


def test_two_trials_in_one_cell_are_refused(study: list[Row]) -> None:
    with pytest.raises(CurvactError, match=r"two finished trials .* curvature 0.1 and seed 0"):
        summaries([*study, {**study[0], "trial": "another"}])


def test_a_word_where_a_number_belongs_is_named(study: list[Row]) -> None:
    with pytest.raises(
        CurvactError, match=r"column 'robust_accuracy' of trial .* must be a number, not 'high'"
    ):
        summaries([{**study[0], "robust_accuracy": "high"}])


def test_levels_are_named_only_where_there_are_several(study: list[Row], confounds: list[Row]) -> None:
    assert set(level_names(study).values()) == {""}
    assert level_names(confounds)[Group("rctaf(beta=0)", True, 40)] == "centred, 40 epochs"
    only_budget = [row for row in confounds if row["centered"]]
    assert set(level_names(only_budget).values()) == {"10 epochs", "40 epochs"}


def test_table_shows_the_means(make: Callable[..., list[Row]]) -> None:
    rows = make(families=("swish[b]",), kappas=(0.1, 200.0), failed=lambda index: index == 5)
    text = rendered(rows)
    robust = [100 * float(row["robust_accuracy"]) for row in rows[:3]]  # type: ignore[arg-type]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(robust) / math.sqrt(3)
    assert f"{statistics.fmean(robust):.1f} ± {half:.1f}" in text
    norms = [float(row["adversarial_hessian_rms"]) for row in rows[:3]]  # type: ignore[arg-type]
    assert f"{statistics.geometric_mean(norms):.3g}"[:5] in text
    assert "swish[b]" in text  # no markup
    assert "2/3" in text
    assert "centred" not in text
    assert "epochs" not in text


def test_table_fits_a_terminal_of_80_columns(study: list[Row]) -> None:
    lines = rendered(study, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_table_names_the_levels(confounds: list[Row]) -> None:
    text = rendered(confounds)
    for name in ("not centred, 10 epochs", "centred, 40 epochs"):
        assert name in text


def test_table_of_degenerate_studies(degenerate: list[Row]) -> None:
    assert "robust" in rendered(degenerate)
