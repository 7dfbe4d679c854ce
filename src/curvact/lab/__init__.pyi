# The public names of the lab. `__init__.py` loads each of them from here when it is first used.
from . import record as record
from .checkpoints import open_checkpoint as open_checkpoint
from .frames import load_evaluations as load_evaluations
from .frames import load_runs as load_runs
from .imports import import_code as import_code
from .imports import trust_code as trust_code
from .run import execute as execute
from .search import SearchSpec as SearchSpec
from .search import read_search as read_search
from .search_run import run_search as run_search
from .spec import RunSpec as RunSpec
from .spec import read_spec as read_spec
from .store import Record as Record
from .sweep import SweepSpec as SweepSpec
from .sweep import read_sweep as read_sweep
from .sweep_run import run_sweep as run_sweep
