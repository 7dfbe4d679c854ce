"""AutoAttack (arXiv 2003.01690): the reference itself, or the same ensemble faster."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import torch
from torch import Tensor, nn

from curvact.attacks.arguments import door
from curvact.attacks.autoattack.checks import checked_data, devices_of, late_suspicions, probe
from curvact.attacks.autoattack.ensemble import (
    QUERIES,
    STEPS,
    Mode,
    Precision,
    Step,
    Version,
    check_attacks,
    check_version,
    chosen_steps,
    ensemble_name,
    version_steps,
    with_second_look,
)
from curvact.attacks.autoattack.parallel import packed, run_shards
from curvact.attacks.autoattack.reference import check_square
from curvact.attacks.autoattack.result import AutoAttackResult, Progress, outcome_of, progress_of
from curvact.attacks.autoattack.shard import Job, Runner, Unit, global_randomness_kept, on_device
from curvact.attacks.autoattack.store import (
    config_hash,
    hash_data,
    hash_network,
    open_folder,
    stored_units,
    unit_path,
    write_unit,
)
from curvact.attacks.batch import (
    SuspectModelWarning,
    cuts_graph,
    radius_doubt,
    training_parts,
)
from curvact.attacks.pgd import Model, OnStep
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError, nearest
from curvact.files import atomic_write
from curvact.models.hashing import model_hash
from curvact.models.modes import mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHARD_SIZE = 250


class AutoAttackSettings(TypedDict, total=False):
    """Keyword arguments of `autoattack` and `ensemble`; `autoattack` explains them."""

    seed: int
    mode: Mode
    shard_size: int
    batch_size: int | None
    folder: str | Path | None
    workers: int
    devices: Sequence[str | torch.device] | None
    threads: int | None
    precision: Precision
    compiled: bool
    on_progress: Callable[[Progress], None] | None


@dataclass(frozen=True)
class _Settings:
    """The same, checked, with their defaults."""

    seed: int = 0
    mode: Mode = "plain"
    shard_size: int = SHARD_SIZE
    batch_size: int | None = None
    folder: str | Path | None = None
    workers: int = 1
    devices: Sequence[str | torch.device] | None = None
    threads: int | None = None
    precision: Precision = "fp32"
    compiled: bool = False
    on_progress: Callable[[Progress], None] | None = None

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> _Settings:
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise CurvactError(
                    f"{name} takes no {key!r}{nearest(key, known)}; known are {', '.join(known)}"
                )
        return cls(**given)

    def __post_init__(self) -> None:
        for key, names in (("mode", get_args(Mode)), ("precision", get_args(Precision))):
            value = getattr(self, key)
            if value not in names:
                raise CurvactError(
                    f"{key}={value!r} of autoattack{nearest(str(value), names)}; known are {', '.join(names)}"
                )
        for key in ("shard_size", "batch_size", "workers", "threads"):
            size = getattr(self, key)
            if size is None and key in ("batch_size", "threads"):
                continue
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise CurvactError(f"{key}={size!r} of autoattack: a whole number >= 1")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise CurvactError(f"seed={self.seed!r} of autoattack: a whole number from 0 to 2^63 - 1")
        if self.mode == "plain" and (self.precision != "fp32" or self.compiled):
            raise CurvactError(
                f"precision={self.precision!r}, compiled={self.compiled} need mode='fast': plain mode is the reference as it is"
            )


@door
def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    version: Version = "standard",
    **settings: Unpack[AutoAttackSettings],
) -> AutoAttackResult:
    """Robust accuracy under the full AutoAttack ensemble. A point is robust only if every attack,
    at its full budget, fails.

    model: maps N×C×H×W images in [0, 1] to N×classes logits in float32. It is evaluated in eval
        mode (restored after; "rand" leaves it as it is), and its parameters and gradients are not
        touched.
    x: N×C×H×W, float32, in [0, 1]. y: N, whole numbers. threat_model: its epsilon in input units.
    version: "standard", "plus", or "rand" for randomized models. With fewer than 10 classes every
        other class is a target once.
    seed: 0.
    mode: "plain" (default) runs the reference's attacks (pyautoattack) as they are. "fast" runs the
        same ensemble by a faster twin of the model and, for l∞ and l2, own loops of APGD and Square
        that points leave as they fall [ours].
    shard_size: points are attacked in slices of this size by index, 250. In plain mode each is
        attacked as pyautoattack's run_standard_evaluation(…, batch_size=batch_size) attacks it
        alone, the first with the seed itself.
    batch_size: plain: the reference's, which changes the result (it draws its random numbers by
        batch); default the whole shard. fast: how many points are evaluated together; default by
        memory; it changes rounding only.
    folder: where each shard and attack is stored as it ends. The same call goes on from there,
        however the last one ended.
    workers: processes that share the shards, on the devices in turn. They do not change the result
        (at equal `threads`).
    devices: default the model's. threads: CPU threads a process; default those of this process,
        shared out.
    precision: "bf16" (fast mode) searches in bf16 and then runs APGD once more in fp32 on the
        survivors; the name says so.
    compiled: search by torch.compile (fast mode).
    on_progress: called after every attack on every shard.

    Every success counted is misclassified by the plain float32 model, in [0, 1], and in the ball
    (up to float32 rounding).
    Raises CurvactError for bad input, a folder of another run, a model that workers > 1 cannot
    pickle, or a shard whose worker dies 3 times. Warns (`SuspectModelWarning`) for outputs that are
    probabilities, that change from call to call, for a model in training mode, for zero gradients,
    and where Square finds much that gradients did not.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    >>> result = autoattack(model, torch.rand(3, 1, 5, 5), torch.arange(3), ThreatModel("linf", 0.9))
    >>> result.name, result.robust_accuracy
    ('AutoAttack', 0.0)
    """
    chosen = _Settings.of("autoattack", settings)
    if version == "rand" and chosen.precision != "fp32":
        raise CurvactError(f"precision={chosen.precision!r} with version='rand': only fp32")
    steps = lambda classes: version_steps(version, threat_model.norm, classes)  # noqa: E731
    return _run(model, x, y, threat_model, steps, version, chosen)


@door
def ensemble(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    attacks: Sequence[str],
    steps: int = STEPS,
    queries: int = QUERIES,
    **settings: Unpack[AutoAttackSettings],
) -> AutoAttackResult:
    """Some of AutoAttack's attacks, in the order given. The result is named after them and never
    "AutoAttack".

    attacks: of "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", set as in the standard
        version; and "apgd-malt" (linf and l2), which is "apgd-t" with the targets of `malt_order`. It
        runs in our own loop in both modes.
    steps: iterations of APGD and FAB a run. queries: of Square. Others than the standard ones show
        in the name.
    settings: as `autoattack`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    >>> x, y = torch.rand(3, 1, 5, 5), torch.arange(3)
    >>> ensemble(model, x, y, ThreatModel("l2", 0.1), attacks=["apgd-ce", "square"], queries=50).name
    'apgd-ce + square(50 queries)'
    """
    chosen = _Settings.of("ensemble", settings)
    choose = lambda classes: chosen_steps(  # noqa: E731
        attacks, threat_model.norm, classes, steps=steps, queries=queries
    )
    return _run(model, x, y, threat_model, choose, None, chosen)


@dataclass(frozen=True)
class AutoAttack:
    """A version of AutoAttack, or some of its attacks, as a value.

    version: "standard", "plus" or "rand"; None for the attacks listed. Raises CurvactError for
        unknown ones.

    >>> str(AutoAttack("plus")), str(AutoAttack(None, ("apgd-ce", "square")))
    ('autoattack-plus', 'apgd-ce+square')
    """

    version: Version | None = "standard"
    attacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.version is not None and self.attacks:
            raise CurvactError(
                f"AutoAttack takes version={self.version!r} or attacks={self.attacks!r}: not both"
            )
        if self.version is None:
            check_attacks(self.attacks)
        else:
            check_version(self.version)

    def __str__(self) -> str:
        if self.version is None:
            return "+".join(self.attacks)
        return "autoattack" if self.version == "standard" else f"autoattack-{self.version}"

    def title(self, precision: Precision = "fp32") -> str:
        """The name of the result: "AutoAttack" for a whole version, else the attacks.

        >>> AutoAttack().title(), AutoAttack(None, ("apgd-ce", "square")).title()
        ('AutoAttack', 'apgd-ce + square')
        """
        steps = [Step(name, QUERIES if name == "square" else STEPS) for name in self.attacks]
        return ensemble_name(self.version, steps, precision)

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        **settings: Unpack[AutoAttackSettings],
    ) -> AutoAttackResult:
        """`autoattack` of this version, or `ensemble` of these attacks. Arguments as `autoattack`."""
        if self.version is None:
            return ensemble(model, x, y, threat_model, attacks=self.attacks, **settings)
        return autoattack(model, x, y, threat_model, version=self.version, **settings)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The attacked images only. The seed is drawn from the generator; `run` takes the seed
        itself. on_step is not called.
        """
        device = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        return self.run(model, x, y, threat_model, seed=seed).x_adv


def _run(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    choose: Callable[[int], tuple[Step, ...]],
    version: Version | None,
    chosen: _Settings,
) -> AutoAttackResult:
    """choose: the attacks, from the number of classes."""
    started = time.perf_counter()
    x, y, highest = checked_data(model, x, y, threat_model)
    devices = devices_of(model, chosen.devices)
    randomized = version == "rand"
    suspicions = [doubt] if (doubt := radius_doubt(threat_model, x)) else []
    evaluating: AbstractContextManager[None] = nullcontext()
    if isinstance(model, nn.Module) and not randomized:
        suspicions += [f"{line}; attacked in evaluation mode" for line in training_parts(model)]
        evaluating = mode(model, training=False)
    with evaluating, global_randomness_kept(devices[0]):
        local = on_device(model, devices[0])
        logits, doubts = probe(local, x, highest, devices[0], randomized)
        suspicions += doubts
        steps = choose(logits.shape[1])
        by_reference = chosen.mode == "plain" or threat_model.norm == "l1"
        if by_reference and any(step.attack == "square" for step in steps):
            check_square(x.shape[2], x.shape[3], threat_model)
        cut = cuts_graph(local, x[:1].to(devices[0]))
        if cut:
            suspicions.append(
                "the model's outputs do not depend on its inputs by a differentiable way: only Square sees anything"
            )
        for line in suspicions:
            warnings.warn(line, SuspectModelWarning, stacklevel=3)
        job = Job(
            model=local,
            x=x.detach().contiguous(),
            y=y,
            threat_model=threat_model,
            steps=with_second_look(steps) if chosen.precision == "bf16" else steps,
            mode=chosen.mode,
            seed=chosen.seed,
            shard_size=min(chosen.shard_size, len(x)),
            batch_size=chosen.batch_size,
            precision=chosen.precision,
            compiled=chosen.compiled,
            randomized=randomized,
            cut=cut,
        )
        config = _config(job, version, hashed=chosen.folder is not None)
        session = _Session(job, chosen, config_hash(config), started)
        content = packed(job) if chosen.workers > 1 and job.shards > 1 else b""
        notes = session.resume(config, logits[:0] if randomized else logits)
        resumed = session.units
        session.attack(devices, content)
        units = session.units
        torch.manual_seed(chosen.seed)
        outcome = outcome_of(job, units, local, devices[0])
    late = late_suspicions(job, units, outcome["accuracy_after"])
    for line in late:
        warnings.warn(line, SuspectModelWarning, stacklevel=3)
    notes += dict.fromkeys(note for unit in units for note in unit.notes)
    if outside := sum(unit.outside for unit in units):
        notes.append(f"{outside} successes were outside the threat model and were not counted")
    result = AutoAttackResult(
        name=ensemble_name(version, steps, chosen.precision),
        **outcome,
        threat_model=threat_model,
        mode=chosen.mode,
        seed=chosen.seed,
        seconds=time.perf_counter() - started,
        seconds_resumed=sum(unit.seconds for unit in resumed),
        units_resumed=len(resumed),
        notes=tuple(notes),
        suspicions=(*suspicions, *late),
        versions={name: package_version(name) for name in ("curvact", "pyautoattack", "torch")},
        config=config,
    )
    if session.folder is not None:
        text = json.dumps(result.as_dict(), indent=1, sort_keys=True) + "\n"
        atomic_write(session.folder / "result.json", text)
    return result


class _Session:
    """The units of a run so far. Each new one is written to the folder, if there is one.

    run: hash of the run's config. started: by `time.perf_counter`.
    """

    def __init__(self, job: Job, chosen: _Settings, run: str, started: float) -> None:
        self.job, self.chosen, self.run, self.started = job, chosen, run, started
        self.folder = None if chosen.folder is None else Path(chosen.folder)
        self.done: dict[int, list[Unit]] = {shard: [] for shard in range(job.shards)}
        self.fresh: list[Unit] = []

    @property
    def units(self) -> list[Unit]:
        return [unit for shard in sorted(self.done) for unit in self.done[shard]]

    def resume(self, config: Mapping[str, Any], logits: Tensor) -> list[str]:
        """Read the units that the folder holds; returns a line for each damaged file."""
        notes: list[str] = []
        if self.folder is not None:
            open_folder(self.folder, config, logits)
            for shard in self.done:
                self.done[shard], damaged = stored_units(
                    self.folder, self.job, self.run, shard, self.job.model
                )
                notes += damaged
        return notes

    def attack(self, devices: Sequence[torch.device], content: bytes) -> None:
        """Run all missing units, here or in workers. content: the job, packed for workers."""
        workers, threads = self.chosen.workers, self.chosen.threads
        waiting = [shard for shard, units in self.done.items() if len(units) < len(self.job.keys)]
        count = torch.get_num_threads()
        if workers > 1 and len(waiting) > 1:
            each = threads or max(1, count // min(workers, len(waiting)))
            run_shards(content, self.done, waiting, workers, devices, each, self._keep)
            return
        try:
            torch.set_num_threads(threads or count)
            runner = Runner(self.job, devices[0])
            for shard in waiting:
                runner.run(shard, tuple(self.done[shard]), self._keep)
        finally:
            torch.set_num_threads(count)

    def _keep(self, unit: Unit) -> None:
        if self.folder is not None:
            atomic_write(unit_path(self.folder, unit.shard, unit.key), write_unit(unit, self.run))
        self.done[unit.shard].append(unit)
        self.fresh.append(unit)
        if self.chosen.on_progress is not None:
            seconds = time.perf_counter() - self.started
            self.chosen.on_progress(progress_of(self.job, self.done, self.fresh, seconds))


def _config(job: Job, version: str | None, *, hashed: bool) -> dict[str, Any]:
    """All settings that determine the result. hashed: with hashes of model and data."""
    if hashed and not isinstance(job.model, nn.Module):
        raise CurvactError(
            f"folder needs a model whose weights can be compared: an nn.Module, not {type(job.model).__name__}"
        )
    network = job.model if hashed and isinstance(job.model, nn.Module) else None
    return {
        "model": None if network is None else model_hash(network),
        "network": None if network is None else hash_network(network),
        "data": hash_data(job.x, job.y) if hashed else None,
        "points": len(job.x),
        "norm": job.threat_model.norm,
        "epsilon": job.threat_model.epsilon,
        "version": version,
        "attacks": [step.as_dict() for step in job.steps],
        "seed": job.seed,
        "mode": job.mode,
        "shard_size": job.shard_size,
        "batch_size": job.batch_size if job.mode == "plain" else None,
        "precision": job.precision,
        "compiled": job.compiled,
        "pyautoattack": package_version("pyautoattack"),
    }
