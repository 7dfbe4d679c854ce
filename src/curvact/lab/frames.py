"""Runs, tables and evaluations as pandas data frames. pandas is loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvact.errors import CurvactError

if TYPE_CHECKING:
    import pandas


def frame(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """A data frame with a line for each row; what a row does not have is NaN.

    Raises CurvactError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise CurvactError("pandas is not installed: pip install curvact[pandas]") from None
    return pandas.DataFrame(list(rows))


def load_runs(folder: str | Path) -> pandas.DataFrame:
    """The runs of a folder as a data frame, a line each.

    folder: a path, or a URL such as s3://bucket/sweep. That of a sweep: its finished runs, with a
    column for each axis and `reference`. Any other: every run below it, with its data, network,
    activation, objective and seed. Both have run, status, cause, the metrics (accuracies are
    fractions), gradient_evaluations and seconds.
    Raises CurvactError for a folder without a run, a damaged record, and where pandas is not
    installed.
    """
    from curvact.lab.remote import local_runs
    from curvact.lab.sweep import SWEEP_FILE, read_sweep
    from curvact.lab.sweep_run import sweep_records, table_of

    folder = local_runs(Path(folder))
    if (folder / SWEEP_FILE).is_file():
        spec = read_sweep(folder)
        rows = table_of(spec, sweep_records(spec, folder)).as_dicts()
    else:
        rows = _runs_below(folder)
    if not rows:
        raise CurvactError(
            f"{folder} holds no finished run: `curvact train` and `curvact sweep run` write them"
        )
    return frame(rows)


def _runs_below(folder: Path) -> list[dict[str, Any]]:
    from curvact.lab.stored import stored_runs

    rows = []
    for run in stored_runs(folder) if folder.is_dir() else ():
        if run.status == "unreadable":
            raise CurvactError(run.cause)
        if run.status == "unfinished":
            continue
        rows.append(
            {
                "run": run.run,
                "name": run.name,
                "data": run.get("data.name"),
                "model": run.get("model.name"),
                "activation": run.activation,
                "objective": run.get("training.objective"),
                "seed": run.seed,
                "status": run.status,
                "cause": run.cause,
                **run.metrics,
                "gradient_evaluations": run.get("gradient_evaluations"),
                "seconds": run.seconds,
            }
        )
    return rows


def load_evaluations(folder: str | Path) -> pandas.DataFrame:
    """The evaluation records below a folder as a data frame, a line each: model, data, attack, threat
    model, accuracies with their intervals, and the number of findings.

    Warns of files that are no records, as `curvact.lab.record.read_records` does.
    Raises CurvactError for no folder, no record, and where pandas is not installed.
    """
    from curvact.lab.record import read_records

    records = read_records(Path(folder))
    if not records:
        raise CurvactError(f"{folder} holds no records: `curvact evaluate` writes one")
    return frame([record.as_row() for record in records])
