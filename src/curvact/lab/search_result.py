"""What a search found: its winner, attacked once on the test images beside the baseline."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from curvact.attacks import SuspectModelWarning, named_attack
from curvact.errors import CurvactError
from curvact.files import atomic_write, cell_text, csv_text
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.layout import RUNS, STATE_FILE
from curvact.lab.placement import Placement
from curvact.lab.record import EvaluationRecord, evaluate, read_record, record_key, write_record
from curvact.lab.record.evaluation import short_name
from curvact.lab.record.record import existing_record, record_paths
from curvact.lab.remote import Store
from curvact.lab.report.interactive import Explorer, drawable
from curvact.lab.report.search.about import Point, SearchAbout
from curvact.lab.report.search.page import report_search
from curvact.lab.run import device_of
from curvact.lab.search import Range, SearchSpec, on_test_images, read_search
from curvact.lab.search_run import Trial, judged, open_study, spent, trials_of
from curvact.lab.spec import RunSpec
from curvact.lab.statistics.interval import interval_text
from curvact.lab.statistics.words import count
from curvact.lab.store import Record, finished, locked, read_environment
from curvact.lab.sweep_run import run_about

EVALUATIONS = "evaluations"
WINNER_FILE = "winner.yaml"
BATCH = 250


@dataclass(frozen=True)
class Judged:
    """A run on record, and the attack on its test images."""

    label: str
    record: Record
    test: EvaluationRecord


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    images: validation images that judged the trials. best: the winner among the trials.
    near: trials whose accuracy is within one standard error of the best.
    looks: how many networks of this folder were attacked on the test images in all.
    """

    spec: SearchSpec
    folder: Path
    trials: tuple[Trial, ...]
    images: int
    best: Trial
    winner: Judged
    baseline: Judged | None
    looks: int

    @property
    def standard_error(self) -> float:
        """Of the best trial's accuracy, from the choice of validation images."""
        share = self.best.accuracy or 0.0
        return math.sqrt(share * (1 - share) / self.images)

    @property
    def near(self) -> tuple[Trial, ...]:
        """Other completed trials within one standard error of the best."""
        least = (self.best.accuracy or 0.0) - self.standard_error
        return tuple(
            t
            for t in self.trials
            if t.state == "completed" and t.run != self.best.run and (t.accuracy or 0.0) >= least
        )

    @property
    def command(self) -> str:
        """Trains the winner again, and attacks it on the test images."""
        return f"curvact train {self.folder / WINNER_FILE} --out runs/{self.spec.name}-winner"

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, a line each."""
        states = [t.state for t in self.trials]
        kinds = ", ".join(
            f"{states.count(s)} {s}" for s in ("completed", "pruned", "failed", "left") if s in states
        )
        lines = [
            (
                f"{count(len(states), 'trial')} ({kinds}); {spent(self.trials):,} of {self.spec.budget:,} "
                "gradient evaluations."
            ),
            (
                f"The best is trial {self.best.number}, {self.best.label}: {100 * (self.best.accuracy or 0):.1f} % "
                f"robust on {self.images:,} validation images ({self.winner.record.spec.evaluation.attack}). "
                f"{_near(self)}"
            ),
            self._on_test("The winner", self.winner),
        ]
        if self.baseline is not None:
            lines.append(self._on_test(f"The baseline, {self.baseline.label},", self.baseline))
            lines.append(_difference(self.winner.test, self.baseline.test))
        lines.append(
            "The intervals (95 %) come from the choice of test images. Each network was trained once: the "
            f"noise between trainings is not in them. {count(self.looks, 'network')} of this search "
            "met the test images."
        )
        for who, found in (("winner", self.winner), ("baseline", self.baseline)):
            lines += [f"{who}: {text}" for text in (found.test.findings if found is not None else [])]
        return tuple(lines)

    def _on_test(self, who: str, found: Judged) -> str:
        clean, robust = (
            interval_text(share, brackets=True) for share in (found.test.clean, found.test.robust)
        )
        return (
            f"{who} has {robust} % robust and {clean} % clean accuracy on {found.test.data.count:,} test images "
            f"({found.test.attack})."
        )


def _near(result: SearchResult) -> str:
    number = len(result.near)
    which = "No other trial is" if not number else "1 other is" if number == 1 else f"{number} others are"
    return f"{which} within one standard error, {100 * result.standard_error:.1f} points."


def _difference(winner: EvaluationRecord, baseline: EvaluationRecord) -> str:
    pairs = list(zip(winner.robust_correct, baseline.robust_correct, strict=True))
    ours, theirs = pairs.count(("1", "0")), pairs.count(("0", "1"))
    return f"The winner resists on {count(ours, 'image')} that the baseline loses, and loses {theirs} that it resists on."


def result_of(folder: Path, device: str = "auto", store: Store | None = None) -> SearchResult:
    """The result of a search that has ended. The test images are attacked where they were not yet.

    device: of these attacks, where it is not "auto"; else that of the spec. store: of the weights.
    The caller holds the folder. Raises CurvactError for a folder without a search or without a trial that was completed.
    """
    spec = read_search(folder)
    trials = tuple(trials_of(spec, open_study(spec, folder)))
    done = [t for t in trials if t.state == "completed"]
    if not done:
        raise CurvactError(
            f"{folder} has no completed trial: `curvact search {folder}` goes on; --set budget=… raises it"
        )
    best = max(done, key=lambda t: (t.accuracy or 0.0, -t.number))
    place = Placement(device=device)
    winner = _judge(spec, folder, place.settled(spec.trial(best.settings)), best.label, store)
    baseline = None
    if spec.baseline_run is not None:
        baseline = _judge(spec, folder, place.settled(spec.baseline_run), spec.baseline_run.activation, store)
    splits = winner.record.spec.data.load()
    images = len(splits.validation.first(winner.record.spec.evaluation.images))
    records = [read_record(path) for path in (folder / EVALUATIONS).glob("*.evaluation.json")]
    looks = len({record.model.sha256 for record in records})
    return SearchResult(spec, folder, trials, images, best, winner, baseline, looks)


def _judge(spec: SearchSpec, folder: Path, run: RunSpec, label: str, store: Store | None) -> Judged:
    """The record of a run and its evaluation on the test images, which is made once."""
    place = folder / RUNS / run.id
    if store is not None:
        store.below(RUNS, run.id).pull(lambda name: name != STATE_FILE)
    record = finished(place, run.id)
    if record is None:
        raise CurvactError(f"{place} has not finished: `curvact search {folder}` goes on with it")
    if record.status == "failed":
        raise CurvactError(f"the baseline {label} failed: {record.cause}; set another baseline, or {{}}")
    weights = "best" if run.evaluation.weights == "both" else "last"
    checkpoint = open_checkpoint(place, weights)
    splits = run.data.load()
    test = splits.test.first(run.evaluation.images)
    attack = named_attack(spec.test_attack or str(run.evaluation.attack))
    model = checkpoint.model.to(device_of(run.hardware))
    size = min(BATCH, len(test))
    key = record_key(
        model,
        test,
        run.threat_model,
        attack=attack,
        seed=spec.seed,
        batch_size=size,
        mode="plain",
        architecture=checkpoint.architecture,
    )
    names = (checkpoint.name, short_name(attack), f"{test.name}{len(test)}")
    path, _ = record_paths(folder / EVALUATIONS, key, "quick", names)
    found = existing_record(path, key, "quick")
    if found is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SuspectModelWarning)  # they are findings of the record
            found = evaluate(
                model,
                test,
                run.threat_model,
                attack=attack,
                seed=spec.seed,
                batch_size=size,
                name=checkpoint.name,
                architecture=checkpoint.architecture,
            )
        write_record(found, path)
    return Judged(label, record, found)


def conclude(
    folder: Path, device: str = "auto", store: Store | None = None
) -> tuple[SearchResult, Mapping[str, Path]]:
    """The result of a search, and the files that were written of it, by name: report.html, its figures,
    trials.csv and winner.yaml.

    device, store: as in `result_of`.
    """
    with locked(folder):
        result = result_of(folder, device, store)
        asked = result.spec.trial(result.best.settings).hardware.accelerator  # not where a worker computed
        winner = on_test_images(result.winner.record.spec).on(asked).to_yaml()
        files = {name: folder / name for name in (WINNER_FILE, "trials.csv")}
        atomic_write(files[WINNER_FILE], winner)
        atomic_write(files["trials.csv"], csv_text(_lines(result)))
        return result, {**report_search(_about(result, winner), folder), **files}


def _about(result: SearchResult, winner: str) -> SearchAbout:
    spec, baseline = result.spec, result.baseline
    points = [
        Point(
            t.number, t.run, t.settings, t.state, t.accuracy, len(t.curve), t.evaluations,
            spent(result.trials[: i + 1]), t.cause,
        )
        for i, t in enumerate(result.trials)
    ]  # fmt: skip
    return SearchAbout(
        title=spec.question or spec.name,
        sentences=result.sentences,
        keys=tuple(spec.space),
        logarithmic=_logarithmic(spec),
        points=tuple(points),
        best=result.best.number,
        standard_error=result.standard_error,
        baseline=None if baseline is None else (baseline.label, judged(baseline.record)),
        budget=spec.budget,
        command=result.command,
        winner_yaml=winner,
        spec_yaml=spec.to_yaml(),
        provenance=_provenance(result),
        explorer=_explorer(result),
    )


def _explorer(result: SearchResult) -> Explorer:
    """The trials, against κ or the first key."""
    keys = sorted(result.spec.space, key=lambda key: key != "curvature")
    lines = _lines(result)
    metrics = drawable(lines, ("accuracy", "epochs", "gradient_evaluations"))
    runs = {
        t.run: run_about(
            result.folder / RUNS / t.run,
            {key: cell_text(value) for key, value in t.settings.items()},
            len(result.trials),
        )
        for t in result.trials
    }
    return Explorer(
        lines,
        tuple(keys),
        metrics,
        keys[0],
        "accuracy" if "accuracy" in metrics else next(iter(metrics), ""),
        "trials.csv",
        _logarithmic(result.spec),
        connected=False,
        titles={"accuracy": "validation robust accuracy"},
        runs=runs,
    )


def _logarithmic(spec: SearchSpec) -> frozenset[str]:
    """The keys that are drawn on a logarithmic scale."""
    return frozenset(k for k, v in spec.space.items() if (isinstance(v, Range) and v.log) or k == "curvature")


def _provenance(result: SearchResult) -> dict[str, str]:
    done = [t.run for t in result.trials if t.state in ("completed", "pruned")]
    places = [read_environment(result.folder / RUNS / run) for run in dict.fromkeys(done)]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(place.get(key, "unknown")) for place in places}))

    spec, record = result.spec, result.winner.record
    return {
        "search": spec.name,
        "sampler": f"{spec.sampler}, seed {spec.seed}, pruning {spec.pruning}",
        "judged by": f"{record.spec.evaluation.attack}, {record.spec.threat_model}, {result.images:,} validation images",
        "commit": all_of("commit"),
        "curvact": all_of("curvact"),
        "torch": all_of("torch"),
        "Optuna": version("optuna"),
        "python": all_of("python"),
        "hardware": all_of("processor"),
        "data": record.spec.data.name,
    }


def _lines(result: SearchResult) -> list[list[object]]:
    keys = list(result.spec.space)
    heads: list[object] = [
        "trial",
        "run",
        *keys,
        "state",
        "accuracy",
        "epochs",
        "gradient_evaluations",
        "cause",
    ]
    return [heads] + [
        [
            t.number,
            t.run,
            *(t.settings.get(key) for key in keys),
            t.state,
            t.accuracy,
            len(t.curve),
            t.evaluations,
            t.cause,
        ]
        for t in result.trials
    ]
