"""Run a search: ask Optuna for trials within a budget, run them side by side, judge the winner.

The records in runs/ID are the truth. Optuna's storage, optuna.journal in the folder, says which trial has
which run; deleted, it is made again from the same seed, and no finished run is repeated.
"""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from curvact.data import batches_per_epoch
from curvact.errors import CurvactError, short
from curvact.files import atomic_write
from curvact.lab.claim import check_claim
from curvact.lab.engines import Job
from curvact.lab.imports import copy_code, hashes
from curvact.lab.layout import RECORD_FILE, RUNS
from curvact.lab.loggers import Shown
from curvact.lab.placement import Placement
from curvact.lab.progress import SweepBars
from curvact.lab.remote import Store, is_of_a_list
from curvact.lab.run import images_of
from curvact.lab.search import SEARCH_FILE, SearchSpec, read_search
from curvact.lab.settings import read_plain
from curvact.lab.spec import DataSpec, RunSpec
from curvact.lab.store import (
    OUT_OF_MEMORY,
    Record,
    check_writable,
    finished,
    locked,
    read_history,
    read_record,
)
from curvact.lab.sweep import Planned, in_words
from curvact.lab.sweep_run import check_empty, given_up, rehearse
from curvact.lab.table import Value
from curvact.random import generator
from curvact.training import most_evaluations
from curvact.workers import Event

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.journal"
STARTUP_TRIALS = 5
"""Trials that are drawn at random before the estimator of "tpe" begins. [ours]"""

PRUNE_AFTER = 4
"""Completed trials before the first one is pruned. [ours]"""

PRUNE_FROM = 1 / 3
"""The part of its epochs that every trial may run: the learning rate rises in the first. [ours]"""

MOST_IN_VAIN = 100
"""The search ends after so many trials in turn that cost nothing: repetitions, impossible ones, and those
that fail in their first epoch.
"""


@dataclass(frozen=True)
class Trial:
    """A trial of a search, as its storage knows it.

    settings: by key of the space. state: "completed", "pruned", "failed" (its loss diverged, memory was
    too short, or its settings cannot be together; `cause` says which), "running", or "left" where the
    budget did not suffice.
    accuracy: validation robust accuracy that it was judged by; 0 of a diverged run; None of a pruned
    trial, which was not attacked as the others were, and of one without memory.
    curve: validation robust accuracy by epoch, by the validation attack of training.
    evaluations: gradient evaluations that it cost.
    """

    number: int
    settings: dict[str, Value]
    run: str
    state: str
    accuracy: float | None
    curve: dict[int, float]
    evaluations: int
    cause: str = ""

    @property
    def label(self) -> str:
        """The trial in words."""
        return ", ".join(in_words(key, value) for key, value in self.settings.items())


def run_search(
    spec: SearchSpec,
    folder: Path,
    place: Placement | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
    store: Store | None = None,
) -> list[str]:
    """Execute trials until the budget is spent, and the baseline.

    With one worker the same spec gives the same trials on the same machine with the same versions,
    killed and resumed or not. With several, a trial is drawn from those that have ended by then, so
    the trials depend on which ends first.

    place, store: as in `run_sweep`.
    resume: go on in a folder that holds this search. Its budget may have grown.
    Returns one line for each run that did not finish because its worker died again and again.
    Raises CurvactError for a missing Optuna, a budget too small for one run, a folder that holds
    something else, a damaged record, or a full disk.
    """
    check_optuna()
    console = console or Console(stderr=True)
    place = place or Placement()
    check_writable(folder)
    _check_folder(folder, spec, resume)
    corners = [Planned(settings, spec.trial(settings)) for settings in spec.corners()]
    workers = place.count([place.settled(run.spec) for run in corners])
    _rehearse(spec, corners, place)
    with locked(folder):
        _check_folder(folder, spec, resume)  # another process may have begun since
        copy_code(spec.imports, folder)
        atomic_write(folder / SEARCH_FILE, spec.to_yaml())
        (folder / RUNS).mkdir(exist_ok=True)
        study = open_study(spec, folder)
        driver = _Driver(spec, folder, study, place, workers, console, store)
        return driver.run()


def check_optuna() -> None:
    """CurvactError where Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise CurvactError("a search needs Optuna: pip install 'curvact[search]'") from None


def open_study(spec: SearchSpec, folder: Path) -> optuna.Study:
    """The study in a search's folder, made where there is none. The caller holds the folder.

    What a killed process left of a line is cut off. CurvactError where the file is damaged, or says
    something else of a trial than the record and the epochs of its run.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = folder / STORAGE
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for stale in folder.glob(f"{STORAGE}.lock*"):  # nobody else is here
        stale.unlink()
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            atomic_write(path, content[: content.rfind(b"\n") + 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        if optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name="search", storage=storage)
        else:
            study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
        expected = _distributions(spec)
        for trial in study.get_trials(deepcopy=False):
            if any(expected[key] != found for key, found in trial.distributions.items()):
                raise ValueError
        if any(_is_wrong(spec, folder, trial) for trial in trials_of(spec, study)):
            raise ValueError
        return study
    except CurvactError:
        raise
    except (*_OF_A_DAMAGED_STUDY, optuna.exceptions.OptunaError):
        raise CurvactError(
            f"{path} is damaged: delete it and go on with --resume; the runs that have finished are not repeated"
        ) from None


_OF_A_DAMAGED_STUDY = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)


def _is_wrong(spec: SearchSpec, folder: Path, trial: Trial) -> bool:
    """Whether a trial is said to be something else than its run."""
    if trial.state not in ("completed", "failed", "pruned"):
        return False
    try:
        run = spec.trial(trial.settings).id
    except CurvactError as error:
        return (trial.run, trial.state, trial.cause) != ("", "failed", str(error))
    if run != trial.run:
        return True
    place = folder / RUNS / run
    history = read_history(place)
    curve = _curve(history)
    if trial.state == "pruned":  # a later trial of the same settings may have gone on with the run
        costs = {epoch["epoch"]: epoch["gradient_evaluations"] for epoch in history}
        last = costs.get(max(trial.curve, default=0))
        return not trial.curve.items() <= curve.items() or trial.evaluations != last
    if not (place / RECORD_FILE).exists():
        return False
    record = read_record(place)
    if not record.is_final or trial.cause.startswith(OUT_OF_MEMORY):
        return False  # its run is tried again where it is the baseline too
    ended = (record.status == "failed", judged(record), record.gradient_evaluations, record.cause)
    told = (trial.state == "failed", trial.accuracy, trial.evaluations, trial.cause)
    return ended != told or trial.curve != curve


def _curve(history: Sequence[dict[str, Any]]) -> dict[int, float]:
    return {epoch["epoch"]: epoch["validation_robust_accuracy"] for epoch in history}


def trials_of(spec: SearchSpec, study: optuna.Study) -> list[Trial]:
    """The trials of a study, in the order in which they were asked for."""
    return [_as_trial(spec, trial) for trial in study.get_trials(deepcopy=False)]


def _as_trial(spec: SearchSpec, trial: optuna.trial.FrozenTrial) -> Trial:
    known = trial.user_attrs
    ends = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
    state = "running"
    if trial.state.name in ends:  # what a killed process noted of an end that it did not tell is no end
        state = known.get("state") or ends[trial.state.name]
    return Trial(
        trial.number,
        _settings(spec, trial.params),
        known.get("run", ""),
        state,
        None if state == "pruned" else trial.value,
        dict(trial.intermediate_values),
        known.get("evaluations", 0),
        known.get("cause", ""),
    )


def _settings(spec: SearchSpec, parameters: dict[str, Any]) -> dict[str, Value]:
    """Settings by key from Optuna's parameters: a choice is known by its place in the list."""
    settings: dict[str, Value] = {}
    for key, values in spec.space.items():
        if key in parameters:
            value = parameters[key]
            settings[key] = values[value] if isinstance(values, tuple) else values.plain(value)
    return settings


def _distributions(spec: SearchSpec) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(values: Any) -> Any:
        if isinstance(values, tuple):
            return CategoricalDistribution(tuple(range(len(values))))
        if values.integer:
            return IntDistribution(int(values.low), int(values.high), log=values.log)
        return FloatDistribution(values.low, values.high, log=values.log)

    return {key: of(values) for key, values in spec.space.items()}


def judged(record: Record) -> float:
    """The accuracy that a trial is judged by: robust, on validation images, of the best validation
    epoch where the evaluation has it, else of the last. 0 for a run that failed.
    """
    if record.status == "failed":
        return 0.0
    best = "best_" if record.spec.evaluation.weights == "both" else ""
    return record.metrics[best + record.spec.evaluation.metric("robust_accuracy")]


def spent(trials: Sequence[Trial]) -> int:
    """Gradient evaluations of trials, of each run once."""
    by_run: dict[str, int] = {}
    for trial in trials:
        by_run[trial.run] = max(by_run.get(trial.run, 0), trial.evaluations)
    return sum(by_run.values())


def cost_of(run: RunSpec) -> int:
    """At most so many gradient evaluations has a run. Its data have to be there."""
    steps = _steps_of_an_epoch(run.data, run.training.batch_size)
    return most_evaluations(run.training, steps)


@cache
def _steps_of_an_epoch(data: DataSpec, batch_size: int) -> int:
    images, extra = images_of(data)
    return batches_per_epoch(images.train, batch_size, extra)


def _seed(seed: int, purpose: str, number: int) -> int:
    """A seed for other packages, 32 bits, as `curvact.random.generator` makes its own."""
    return generator(seed, f"search/{purpose}", number).initial_seed() % 2**32


def _check_folder(folder: Path, spec: SearchSpec, resume: bool) -> None:
    if (folder / SEARCH_FILE).exists():
        content = read_plain(folder / SEARCH_FILE)
        theirs = hashes(content.get("imports") if isinstance(content, dict) else ())
        if theirs != hashes(spec.imports):
            raise CurvactError(f"{folder} holds a search with other code: choose another --out")
        present = read_search(folder).model_dump(mode="json")
        for key, value in spec.model_dump(mode="json").items():
            if key not in ("question", "budget", "imports", "test_attack") and present[key] != value:
                raise CurvactError(
                    f"{folder} holds another search ({key} is {short(repr(present[key]))} there and "
                    f"{short(repr(value))} here): choose another --out"
                )
        if not resume:
            raise CurvactError(
                f"{folder} holds a search already: --resume goes on with it, --out chooses another folder"
            )
    else:
        check_empty(folder, "search")


def _rehearse(spec: SearchSpec, corners: Sequence[Planned], place: Placement) -> None:
    """Prepare the baseline and the trials at the corners of the space, and check the budget."""
    others = [Planned(spec.baseline, spec.baseline_run)] if spec.baseline_run is not None else []
    runs = [*others, *corners]
    rehearse([replace(run, spec=place.settled(run.spec)) for run in runs], elsewhere=place.elsewhere)
    least = min(cost_of(run.spec) for run in corners)
    if least > spec.budget:
        raise CurvactError(
            f"budget={spec.budget}: one trial takes {least:,} gradient evaluations; give at least as many"
        )


class _Driver:
    """One session of a search.

    jobs: those that the engine has; it sees the list grow. labels: in words, by run. causes: how its last worker died, by run.
    reserved: gradient evaluations that running jobs may still cost, by run.
    waiting: trials by the run whose end they wait for.
    left: a trial for which the budget has no room yet.
    in_vain: trials in turn that were not run. without_cost: runs in turn that failed in their first epoch.
    """

    def __init__(
        self,
        spec: SearchSpec,
        folder: Path,
        study: optuna.Study,
        place: Placement,
        workers: int,
        console: Console,
        store: Store | None,
    ) -> None:
        self.spec, self.folder, self.study, self.store = spec, folder, study, store
        self.place, self.workers = place, workers
        self.jobs: list[Job] = []
        self.labels: dict[str, str] = {}
        self.causes: dict[str, str] = {}
        self.reserved: dict[str, int] = {}
        self.waiting: dict[str, list[int]] = {}
        self.left: tuple[int, RunSpec] | None = None
        self.in_vain = 0
        self.without_cost = 0
        self.bars = SweepBars(console, spec.name, total=0, finished=0)

    def run(self) -> list[str]:
        """Run what there is to run. Returns a line for each run whose worker kept dying."""
        problems = []
        with self.bars:
            self._go_on()
            self._fill()
            while self.jobs:
                lost = {
                    self.jobs[index].spec.id for index in self.place.run(self.jobs, self.workers, self._on)
                }
                problems += [given_up(self.labels[run], self.causes.get(run, "")) for run in lost]
                # An engine may leave the jobs that were appended to its next call.
                self.jobs = [
                    job for job in self.jobs if job.spec.id in self.reserved and job.spec.id not in lost
                ]
        if self.left is not None:
            self._tell(self.left[0], None, state="left", cause="the rest of the budget is too small for it")
        return problems

    # ---- what is to be run ----

    def _go_on(self) -> None:
        """The baseline, and the trials that an earlier session left unfinished."""
        baseline = self.spec.baseline_run
        record = None if baseline is None else finished(self._place(baseline.id), baseline.id)
        if baseline is not None and (record is None or not record.is_final):
            self._append(baseline, "baseline", 0)
        for trial in trials_of(self.spec, self.study):
            if trial.state == "running":
                self._begin(trial.number, trial.settings)

    def _fill(self) -> None:
        """New trials until every worker has a job, or the budget or the space is exhausted."""
        while len(self.reserved) < self.workers:
            if self.left is not None:
                if not self._fits(self.left[1]):
                    return
                (number, run), self.left = self.left, None
                self._append_trial(number, run)
                continue
            if self._exhausted() or not self._ask():
                return

    def _exhausted(self) -> bool:
        if max(self.in_vain, self.without_cost) >= MOST_IN_VAIN:
            return True
        trials = self.study.get_trials(deepcopy=False)
        if len({tuple(sorted(trial.params.items())) for trial in trials}) >= self.spec.size:
            return True
        return self._spent() + sum(self.reserved.values()) + self._least > self.spec.budget

    def _ask(self) -> bool:
        """One more trial. False where it has to wait for budget that a running one may leave."""
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self._sampler(number)
        distributions = _distributions(self.spec)
        if self.spec.sampler == "grid":
            self.study.enqueue_trial(self._grid[number])
        trial = self.study.ask(distributions)
        return self._begin(trial.number, _settings(self.spec, trial.params))

    def _sampler(self, number: int) -> Any:
        """A sampler that depends on the seed and the number of the trial alone, so that a search that
        was killed goes on as if it had not been."""
        import optuna

        seed = _seed(self.spec.seed, "sampler", number)
        if self.spec.sampler == "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Optuna: options that may change
                return optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True
                )
        return optuna.samplers.RandomSampler(seed=seed)

    @cached_property
    def _grid(self) -> list[dict[str, Any]]:
        """Optuna's parameters of every combination, in an order drawn from the seed: a budget too small
        for all of them is spread over the space."""
        combinations = []
        for settings in self.spec.combinations():
            combinations.append(
                {
                    key: values.index(settings[key]) if isinstance(values, tuple) else settings[key]
                    for key, values in self.spec.space.items()
                }
            )
        random.Random(_seed(self.spec.seed, "grid", 0)).shuffle(combinations)
        return combinations

    def _begin(self, number: int, settings: dict[str, Value]) -> bool:
        """Take a trial up: from its record, with a running one of the same run, or as a new job."""
        try:
            run = self.spec.trial(settings)
        except CurvactError as error:
            self.in_vain += 1
            self._tell(number, None, state="failed", cause=str(error))
            return True
        if any(t.run == run.id and t.number != number for t in trials_of(self.spec, self.study)):
            self.in_vain += 1
        self._note(number, run=run.id)
        record = finished(self._place(run.id), run.id)
        if record is not None:
            self._judge(number, record, run)
        elif run.id in self.reserved:
            self.waiting.setdefault(run.id, []).append(number)
        elif not self._fits(run):
            self.left = number, run
            return False
        else:
            self._append_trial(number, run)
        return True

    def _append_trial(self, number: int, run: RunSpec) -> None:
        self.in_vain = 0
        trial = trials_of(self.spec, self.study)[number]
        self.waiting.setdefault(run.id, []).append(number)
        self._append(run, f"trial {number}, {trial.label}", self._rest_of(run))

    def _append(self, run: RunSpec, label: str, cost: int) -> None:
        self.reserved[run.id], self.labels[run.id] = cost, label
        self.bars.add()
        store = None if self.store is None else self.store.below(RUNS, run.id)
        devices = self.place.devices(run)
        if self.place.elsewhere:
            run = self.place.settled(run)
        shown = Shown(self.spec.name, label)
        self.jobs.append(Job(run, self._place(run.id), self._thresholds(run), devices, store, shown))

    def _thresholds(self, run: RunSpec) -> tuple[float, ...]:
        """The rule of Optuna's MedianPruner, fixed when a trial begins: so its end depends on no other
        process. A trial is pruned after an epoch where its best accuracy so far is below the median of
        the completed trials at that epoch."""
        if self.spec.pruning == "none" or self.spec.baseline_run == run:
            return ()
        curves = [t.curve for t in trials_of(self.spec, self.study) if t.state == "completed" and t.curve]
        if len(curves) < PRUNE_AFTER:
            return ()
        last = max(max(curve) for curve in curves)
        first = math.ceil(PRUNE_FROM * last)
        values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in range(1, last)]
        return tuple(
            statistics.median(at) if epoch > first and at else -1.0
            for epoch, at in enumerate(values, start=1)
        )

    # ---- costs ----

    @cached_property
    def _least(self) -> int:
        """What the cheapest trial costs, as far as the corners of the space tell."""
        return min(cost_of(self.spec.trial(corner)) for corner in self.spec.corners())

    def _fits(self, run: RunSpec) -> bool:
        rest = self.spec.budget - self._spent() - sum(self.reserved.values())
        return self._rest_of(run) <= rest

    def _rest_of(self, run: RunSpec) -> int:
        """What the run may still cost: one that was pruned goes on."""
        known = [t.evaluations for t in trials_of(self.spec, self.study) if t.run == run.id]
        return max(0, cost_of(run) - max(known, default=0))

    def _spent(self) -> int:
        return spent(trials_of(self.spec, self.study))

    # ---- what happens ----

    def _on(self, event: Event) -> None:
        job = self.jobs[event.job]
        self.bars.show(self.labels[job.spec.id], job.spec.training.epochs, event)
        if event.kind == "died":
            self.causes[job.spec.id] = event.cause
        elif event.kind == "done":
            del self.reserved[job.spec.id]
            if job.store is not None:
                job.store.pull(is_of_a_list)
            record = event.content
            ended_at_once = record is not None and record.gradient_evaluations == 0
            self.without_cost = self.without_cost + 1 if ended_at_once else 0
            for number in self.waiting.pop(job.spec.id, []):
                self._judge(number, record, job.spec)
            self._fill()
            if self.store is not None:
                check_claim(self.store.url)
                self.store.push()

    def _judge(self, number: int, record: Record | None, run: RunSpec) -> None:
        """Tell the study how a trial ended, with its curve and its cost."""
        history = read_history(self._place(run.id))
        trial = self._opened(number)
        for epoch, accuracy in _curve(history).items():
            trial.report(accuracy, epoch)
        cost = record.gradient_evaluations if record is not None else history[-1]["gradient_evaluations"]
        self._note(number, evaluations=cost)
        if record is None:
            self._tell(number, None, state="pruned")
        elif record.status == "failed":
            value = None if record.cause.startswith(OUT_OF_MEMORY) else judged(record)
            self._tell(number, value, state="failed", cause=record.cause)
        else:
            self._tell(number, judged(record))

    def _tell(self, number: int, value: float | None, *, state: str = "", cause: str = "") -> None:
        from optuna.trial import TrialState

        if state:
            self._note(number, state=state)
        if cause:
            self._note(number, cause=cause)
        if value is not None:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def _note(self, number: int, **known: Any) -> None:
        trial = self._opened(number)
        for key, value in known.items():
            trial.set_user_attr(key, value)

    def _opened(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _place(self, run: str) -> Path:
        return self.folder / RUNS / run
