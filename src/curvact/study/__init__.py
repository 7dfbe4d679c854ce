"""A sweep: spec → trials → worker processes → records → statistics."""

from curvact.study.run import run_study
from curvact.study.spec import StudySpec, load_spec
from curvact.study.store import read_study, rows_of

__all__ = ["StudySpec", "load_spec", "read_study", "rows_of", "run_study"]
