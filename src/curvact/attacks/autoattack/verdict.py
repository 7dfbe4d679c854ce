"""AutoAttack (arXiv 2003.01690): the reference's verdict, or the same ensemble faster; resumable, every success checked."""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from curvact.attacks.autoattack.shard import (
    CLEAN,
    Job,
    Runner,
    Unit,
    global_randomness_kept,
    model_device,
    on_device,
)
from curvact.attacks.autoattack.store import (
    config_hash,
    hash_data,
    hash_network,
    open_folder,
    stored_units,
    unit_path,
    write_unit,
)
from curvact.attacks.pgd import Model, OnStep
from curvact.attacks.pgd import mode as model_mode
from curvact.attacks.threat import (
    SuspectModelWarning,
    ThreatModel,
    check_images,
    check_labels,
    cuts_graph,
    distance,
    suspect_logits,
    training_parts,
    wrong_shape,
)
from curvact.errors import CurvactError, nearest
from curvact.files import atomic_write
from curvact.models.hashing import model_hash

if TYPE_CHECKING:
    from typing_extensions import Unpack

SHARD_SIZE = 250


class AutoAttackSettings(TypedDict, total=False):
    """What `ensemble` shares with `autoattack`, and that explains."""

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
class Progress:
    """Where a run stands. shards_done, points_done: those that every attack of the ensemble is through with.

    attack: the one that ended last. robust_accuracy: the part of the points seen so far that nothing has broken yet; it falls
    as attacks go on. seconds_left: an estimate from the work left (NaN before the first attack has ended).
    """

    attack: str
    shards_done: int
    shards: int
    points_done: int
    points: int
    robust_accuracy: float
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        left = "?" if math.isnan(self.seconds_left) else f"{self.seconds_left:.0f} s"
        return f"{self.points_done}/{self.points} points, robust accuracy so far {self.robust_accuracy:.2%}, {left} left"


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What an ensemble found.

    name: "AutoAttack" (or "AutoAttack (plus)", "AutoAttack (rand)") for a whole version, else the attacks that ran.
    clean_accuracy, robust_accuracy: fractions of all points.
    broken_by: for each point the attack that broke it, "clean" if no attack was needed, None if it is robust.
    x_adv: N×C×H×W; x itself where nothing was found. y_adv: the classes the model takes x_adv for (−1: its logits hold
        NaN, which counts as wrong), N.
    loss: cross-entropy of the model at x_adv, N. perturbation: ‖x_adv − x‖ in the norm of the threat model, N.
    accuracy_after: "clean" and each attack → robust accuracy after it.
    forward_evaluations, gradient_evaluations: images sent through the model without and with a gradient, over all sessions.
    seconds: of this call. units_resumed: shards × attacks read from the folder; seconds_resumed: what these took.
    notes: what was found on the way. suspicions: why the verdict may be wrong; each was also warned of. versions: of packages.
    config: all that fixes it.
    """

    name: str
    clean_accuracy: float
    robust_accuracy: float
    broken_by: tuple[str | None, ...]
    x_adv: Tensor
    y_adv: Tensor
    loss: Tensor
    perturbation: Tensor
    accuracy_after: Mapping[str, float]
    threat_model: ThreatModel
    mode: Mode
    seed: int
    forward_evaluations: int
    gradient_evaluations: int
    seconds: float
    seconds_resumed: float = 0.0
    units_resumed: int = 0
    notes: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def robust(self) -> Tensor:
        """Which points nothing broke. Bool, N."""
        return torch.tensor([by is None for by in self.broken_by])

    def __str__(self) -> str:
        where = f"{self.threat_model.norm} ε = {self.threat_model.epsilon:.4g}"
        return (
            f"{self.name}, {where}: clean {self.clean_accuracy:.2%}, robust {self.robust_accuracy:.2%} "
            f"({len(self.broken_by)} points)"
        )

    def as_dict(self) -> dict[str, Any]:
        """All but the images, ready for JSON."""
        plain = {
            key: getattr(self, key)
            for key in self.__dataclass_fields__
            if key not in ("x_adv", "threat_model")
        }
        tensors = {key: value.tolist() for key, value in plain.items() if isinstance(value, Tensor)}
        return {**plain, **tensors, "threat_model": asdict(self.threat_model)}


def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    version: Version = "standard",
    seed: int = 0,
    mode: Mode = "plain",
    shard_size: int = SHARD_SIZE,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    workers: int = 1,
    devices: Sequence[str | torch.device] | None = None,
    threads: int | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> AutoAttackResult:
    """Robust accuracy under the full AutoAttack ensemble; a point is robust only if every attack, at its full budget, fails.

    model: maps N×C×H×W images in [0, 1] to N×classes logits in float32. It is evaluated in eval mode (restored after; "rand"
        leaves it as it is), and its parameters and gradients are not touched.
    x: N×C×H×W, float32, in [0, 1]. y: N, int64. threat_model: its epsilon in input units.
    version: "standard", "plus", or "rand" for randomized models. With fewer than 10 classes every other class is a target once.
    mode: "plain" runs the reference's attacks (pyautoattack) as they are; "fast" the same ensemble by a faster twin of the
        model and, for l∞ and l2, own loops of APGD and Square that points leave as they fall [ours].
    shard_size: points are attacked in slices of this size by index. In plain mode each is attacked as
        pyautoattack's run_standard_evaluation(…, batch_size=batch_size) attacks it alone, the first with the seed itself.
    batch_size: plain: the reference's, part of the verdict (it draws its random numbers by batch); default the whole shard.
        fast: how many points are evaluated together; default by memory. There it alters nothing but rounding.
    folder: where each shard and attack is stored as it ends; the same call goes on from there, whatever killed the last one.
    workers: processes that share the shards, on the devices in turn. They alter nothing (at equal `threads`).
    devices: default the model's. threads: CPU threads a process; default those of this process, shared out.
    precision: "bf16" (fast mode) searches in bf16 and then runs APGD once more in fp32 on the survivors; the name says so.
    compiled: search by torch.compile (fast mode).
    on_progress: called after every attack on every shard.

    Every success counted is misclassified by the plain float32 model, in [0, 1], and in the ball (up to float32 rounding).
    Raises CurvactError for bad input, a folder of another run, a model that workers > 1 cannot pickle, or a shard whose worker
    dies 3 times. Warns (`SuspectModelWarning`) for outputs that are probabilities, that change from call to call, for a model
    in training mode, for zero gradients, and where Square finds much that gradients did not.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    >>> verdict = autoattack(model, torch.rand(3, 1, 5, 5), torch.arange(3), ThreatModel("linf", 0.9))
    >>> verdict.name, verdict.robust_accuracy
    ('AutoAttack', 0.0)
    """
    return _run(
        model,
        x,
        y,
        threat_model,
        choose=lambda classes: version_steps(version, threat_model.norm, classes),
        version=version,
        seed=seed,
        mode=mode,
        shard_size=shard_size,
        batch_size=batch_size,
        folder=folder,
        workers=workers,
        devices=devices,
        threads=threads,
        precision=precision,
        compiled=compiled,
        on_progress=on_progress,
    )


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
    """Some of AutoAttack's attacks, in the order given; the verdict is named for what ran and never "AutoAttack".

    attacks: of "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", set as in the standard version.
    steps: iterations of APGD and FAB a run. queries: of Square. Others than the standard ones show in the name.
    settings: as `autoattack`, but for version.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(25, 4)).eval()
    >>> x, y = torch.rand(3, 1, 5, 5), torch.arange(3)
    >>> ensemble(model, x, y, ThreatModel("l2", 0.1), attacks=["apgd-ce", "square"], queries=50).name
    'apgd-ce + square(50 queries)'
    """
    defaults = {
        name: p.default
        for name, p in inspect.signature(autoattack).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    del defaults["version"]
    for key in settings:
        if key not in defaults:
            raise CurvactError(
                f"ensemble takes no {key!r}{nearest(key, defaults)}; known are {', '.join(defaults)}"
            )
    return _run(
        model,
        x,
        y,
        threat_model,
        choose=lambda classes: chosen_steps(
            attacks, threat_model.norm, classes, steps=steps, queries=queries
        ),
        version=None,
        **{**defaults, **settings},
    )


@dataclass(frozen=True)
class AutoAttack:
    """A version of AutoAttack, or some of its attacks, as a value.

    version: "standard", "plus" or "rand"; None for the attacks listed. Raises CurvactError for unknown ones.

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
        """The attacked images only. The seed is drawn from the generator; `run` takes the seed itself. on_step is not called."""
        device = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        return self.run(model, x, y, threat_model, seed=seed).x_adv


def _run(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    choose: Callable[[int], tuple[Step, ...]],
    version: Version | None,
    seed: int,
    mode: Mode,
    shard_size: int,
    batch_size: int | None,
    folder: str | Path | None,
    workers: int,
    devices: Sequence[str | torch.device] | None,
    threads: int | None,
    precision: Precision,
    compiled: bool,
    on_progress: Callable[[Progress], None] | None,
) -> AutoAttackResult:
    started = time.perf_counter()
    _check_settings(mode, seed, shard_size, batch_size, workers, threads, precision, compiled, version)
    _check_data(model, x, y, threat_model)
    places = _devices(model, devices)
    randomized = version == "rand"
    suspicions: list[str] = []
    evaluating: AbstractContextManager[None] = nullcontext()
    if isinstance(model, nn.Module) and not randomized:
        suspicions += [f"{line}; attacked in evaluation mode" for line in training_parts(model)]
        evaluating = model_mode(model, training=False)
    done: dict[int, list[Unit]] = {}
    fresh: list[Unit] = []
    notes: list[str] = []
    with evaluating, global_randomness_kept(places[0]):
        local = on_device(model, places[0])
        probe = _probe(local, x, y, places[0], randomized, suspicions)
        steps = choose(probe.shape[1])
        if mode == "plain" and any(step.attack == "square" for step in steps):
            check_square(x.shape[2], x.shape[3], threat_model)
        cut = cuts_graph(local, x[:1].to(places[0]))
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
            steps=with_second_look(steps) if precision == "bf16" else steps,
            mode=mode,
            seed=seed,
            shard_size=min(shard_size, len(x)),
            batch_size=batch_size,
            precision=precision,
            compiled=compiled,
            randomized=randomized,
            cut=cut,
        )
        content = packed(job) if workers > 1 and job.shards > 1 else b""
        config = _config(job, version, hashed=folder is not None)
        run = config_hash(config)
        place = Path(folder) if folder is not None else None
        done.update((shard, []) for shard in range(job.shards))
        if place is not None:
            open_folder(place, config, probe[:0] if randomized else probe)
            for shard in done:
                done[shard], damaged = stored_units(place, job, run, shard, local)
                notes += damaged
        resumed = [unit for units in done.values() for unit in units]

        def on_unit(unit: Unit) -> None:
            if place is not None:
                atomic_write(unit_path(place, unit.shard, unit.key), write_unit(unit, run))
            done[unit.shard].append(unit)
            fresh.append(unit)
            if on_progress is not None:
                on_progress(_progress(job, done, fresh, time.perf_counter() - started))

        waiting = [shard for shard, units in done.items() if len(units) < len(job.keys)]
        count = torch.get_num_threads()
        if workers == 1 or len(waiting) <= 1:
            _run_here(job, done, waiting, places[0], threads or count, on_unit)
        else:
            each = threads or max(1, count // min(workers, len(waiting)))
            run_shards(content, done, waiting, workers, places, each, on_unit)
        units = [unit for shard in sorted(done) for unit in done[shard]]
        torch.manual_seed(seed)
        outcome = _outcome(job, units, local, places[0])
    late = _late_suspicions(job, units, outcome["accuracy_after"])
    for line in late:
        warnings.warn(line, SuspectModelWarning, stacklevel=3)
    verdict = AutoAttackResult(
        name=ensemble_name(version, steps, precision),
        **outcome,
        threat_model=threat_model,
        mode=mode,
        seed=seed,
        forward_evaluations=sum(unit.forward for unit in units),
        gradient_evaluations=sum(unit.gradient for unit in units),
        seconds=time.perf_counter() - started,
        seconds_resumed=sum(unit.seconds for unit in resumed),
        units_resumed=len(resumed),
        notes=(*notes, *dict.fromkeys(note for unit in units for note in unit.notes), *_outside(units)),
        suspicions=(*suspicions, *late),
        versions=_versions(),
        config=config,
    )
    if place is not None:
        atomic_write(place / "verdict.json", json.dumps(verdict.as_dict(), indent=1, sort_keys=True) + "\n")
    return verdict


def _run_here(
    job: Job,
    done: Mapping[int, list[Unit]],
    waiting: Sequence[int],
    device: torch.device,
    threads: int,
    on_unit: Callable[[Unit], None],
) -> None:
    before = torch.get_num_threads()
    try:
        if threads != before:
            torch.set_num_threads(threads)
        runner = Runner(job, device)
        for shard in waiting:
            runner.run(shard, tuple(done[shard]), on_unit)
    finally:
        if threads != before:
            torch.set_num_threads(before)


def _outcome(job: Job, units: Sequence[Unit], model: Model, device: torch.device) -> dict[str, Any]:
    """What the units say about every point, and what the model says at the points found."""
    broken_by: list[str | None] = [None] * len(job.x)
    x_adv, y_adv = job.x.clone(), job.y.clone()
    for unit in units:
        start = job.slice(unit.shard).start
        index = unit.index + start
        for point in index.tolist():
            broken_by[point] = unit.key
        if unit.key == CLEAN:
            y_adv[job.slice(unit.shard)] = unit.y_adv.to(y_adv)
        else:
            x_adv[index.to(x_adv.device)] = unit.x_adv.to(x_adv)
            y_adv[index.to(y_adv.device)] = unit.y_adv.to(y_adv)
    total = len(job.x)
    fallen = 0
    accuracy_after = {}
    for key in job.keys:
        fallen += sum(by == key for by in broken_by)
        accuracy_after[key] = (total - fallen) / total
    with torch.no_grad():
        loss = torch.cat(
            [
                F.cross_entropy(model(images.to(device)), labels.to(device), reduction="none").to(
                    job.x.device
                )
                for images, labels in zip(torch.split(x_adv, 256), torch.split(job.y, 256), strict=True)
            ]
        )
    return {
        "clean_accuracy": accuracy_after[CLEAN],
        "robust_accuracy": accuracy_after[job.keys[-1]],
        "broken_by": tuple(broken_by),
        "x_adv": x_adv,
        "y_adv": y_adv,
        "loss": loss,
        "perturbation": distance(x_adv.double(), job.x.double(), job.threat_model.norm).to(x_adv),
        "accuracy_after": accuracy_after,
    }


def _progress(job: Job, done: Mapping[int, list[Unit]], fresh: Sequence[Unit], seconds: float) -> Progress:
    size = {shard: len(job.x[job.slice(shard)]) for shard in done}
    seen = [shard for shard, units in done.items() if units]
    left = {shard: size[shard] - sum(len(unit.index) for unit in done[shard]) for shard in seen}
    through = [shard for shard in seen if len(done[shard]) == len(job.keys)]
    # The work left: attacks to come on the points that stand now; shards not begun go as those begun went.
    cost = {step.key: step.cost for step in job.steps}
    given: dict[str, list[float]] = {key: [] for key in cost}
    for shard in seen:
        for key in job.keys[1:]:
            known = [unit.standing for unit in done[shard] if unit.key == key]
            given[key].append((known[0] if known else left[shard]) / size[shard])
    to_come = 0.0
    for shard in done:
        for key in job.keys[max(len(done[shard]), 1) :]:
            share = sum(given[key]) / max(len(given[key]), 1)
            to_come += cost[key] * (left[shard] if shard in left else share * size[shard])
    worked = sum(cost.get(unit.key, 0.0) * unit.standing for unit in fresh)
    return Progress(
        attack=fresh[-1].key,
        shards_done=len(through),
        shards=job.shards,
        points_done=sum(size[shard] for shard in through),
        points=len(job.x),
        robust_accuracy=sum(left.values()) / sum(size[shard] for shard in seen),
        seconds=seconds,
        seconds_left=seconds * to_come / worked if worked else math.nan,
    )


def _late_suspicions(job: Job, units: Sequence[Unit], accuracy_after: Mapping[str, float]) -> list[str]:
    lines = []
    nan = sum(int((unit.y_adv < 0).sum()) for unit in units)
    if nan:
        lines.append(f"the logits of {nan} points, clean or attacked, hold NaN: these count as misclassified")
    zero = sum(unit.zero_gradients for unit in units)
    if zero:
        lines.append(f"{zero} runs of APGD started from a zero gradient (or NaN): gradients may be masked")
    if "square" in accuracy_after and job.keys.index("square") > 1:
        before = accuracy_after[job.keys[job.keys.index("square") - 1]]
        targeted = any(key.endswith("-t") for key in job.keys[: job.keys.index("square")])
        # The reference's 0.2 %, and at least two images. Untargeted attacks alone leave more to Square on honest networks too.
        if before - accuracy_after["square"] > max(0.002 if targeted else 0.05, 1.5 / len(job.x)):
            lines.append(
                f"Square took the robust accuracy from {before:.2%} to {accuracy_after['square']:.2%} after the attacks that use "
                "gradients: these may be masked, try an adaptive attack"
            )
    return lines


def _outside(units: Sequence[Unit]) -> tuple[str, ...]:
    count = sum(unit.outside for unit in units)
    return (f"{count} successes were outside the threat model and were not counted",) if count else ()


def _versions() -> dict[str, str]:
    return {name: package_version(name) for name in ("curvact", "pyautoattack", "torch")}


def _config(job: Job, version: str | None, *, hashed: bool) -> dict[str, Any]:
    """All that fixes the verdict. The hashes of model and data are taken only where a folder needs them."""
    if hashed and not isinstance(job.model, nn.Module):
        raise CurvactError(
            f"folder needs a model whose weights can be compared: an nn.Module, not {type(job.model).__name__}"
        )
    return {
        "model": model_hash(job.model) if hashed and isinstance(job.model, nn.Module) else None,
        "network": hash_network(job.model) if hashed and isinstance(job.model, nn.Module) else None,
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


def _probe(
    model: Model, x: Tensor, y: Tensor, device: torch.device, randomized: bool, suspicions: list[str]
) -> Tensor:
    """Logits of the first points, on the CPU; what is suspect about them is added. CurvactError if they are no logits at all."""
    few = x[:32].to(device)
    with torch.no_grad():
        logits = model(few)
        again = model(few)
    if wrong := wrong_shape(logits, len(few)):
        raise CurvactError(wrong)
    if logits.dtype != torch.float32:
        raise CurvactError(
            f"the model's logits are {logits.dtype}: autoattack confirms in float32, use model.float()"
        )
    if not bool(logits.isfinite().all()):
        raise CurvactError(f"{suspect_logits(logits)[0]}: no accuracy is defined on them")
    check_labels(y, logits.shape[1])
    suspicions += suspect_logits(logits)
    changes = float((logits - again).abs().max()) > 1e-4 * float(logits.abs().max())
    if randomized and not changes:
        suspicions.append(
            "version='rand' leaves out FAB-T and Square, and the model's outputs repeat: use version='standard'"
        )
    if changes and not randomized:
        suspicions.append(
            "the model's outputs change from call to call: use version='rand' for a randomized model"
        )
    return logits.cpu()


def _check_settings(
    mode: str,
    seed: int,
    shard_size: int,
    batch_size: int | None,
    workers: int,
    threads: int | None,
    precision: str,
    compiled: bool,
    version: str | None,
) -> None:
    for name, value, names in (("mode", mode, get_args(Mode)), ("precision", precision, get_args(Precision))):
        if value not in names:
            raise CurvactError(
                f"{name}={value!r} of autoattack{nearest(str(value), names)}; known are {', '.join(names)}"
            )
    sizes = {"shard_size": shard_size, "batch_size": batch_size, "workers": workers, "threads": threads}
    for name, size in sizes.items():
        if size is None and name in ("batch_size", "threads"):
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CurvactError(f"{name}={size!r} of autoattack: a whole number >= 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise CurvactError(f"seed={seed!r} of autoattack: a whole number from 0 to 2^63 - 1")
    if mode == "plain" and (precision != "fp32" or compiled):
        raise CurvactError(
            f"precision={precision!r}, compiled={compiled} need mode='fast': plain mode is the reference as it is"
        )
    if version == "rand" and precision != "fp32":
        raise CurvactError(f"precision={precision!r} with version='rand': only fp32")


def _check_data(model: Model, x: Tensor, y: Tensor, threat_model: ThreatModel) -> None:
    if not isinstance(x, Tensor) or x.dim() != 4 or len(x) == 0:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise CurvactError(f"x of autoattack is {shape}: a tensor N×C×H×W of at least one image")
    if x.dtype != torch.float32:
        raise CurvactError(f"x of autoattack is {x.dtype}: float32 in [0, 1]")
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.dtype != torch.int64:
        what = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise CurvactError(f"y of autoattack is {what}: int64 of shape ({len(x)},), one label an image")
    check_images(x)
    if threat_model.epsilon == 0:
        raise CurvactError("epsilon=0 of autoattack: nothing to search, robust accuracy is clean accuracy")
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                raise CurvactError(
                    f"parameter '{name}' is {parameter.dtype}: autoattack confirms in float32, use model.float()"
                )


def _devices(model: Model, devices: Sequence[str | torch.device] | None) -> list[torch.device]:
    if devices is None:
        return [model_device(model)]
    if isinstance(devices, str) or not devices:
        raise CurvactError(
            f"devices={devices!r} of autoattack: a list of at least one device, such as ['cuda:0', 'cuda:1']"
        )
    places = []
    for name in devices:
        try:
            place = torch.device(name)
        except (RuntimeError, TypeError):
            raise CurvactError(f"unknown device {name!r} in devices of autoattack") from None
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise CurvactError(
                f"device {name!r} of autoattack is not there: {torch.cuda.device_count()} CUDA devices"
            )
        places.append(place)
    return places
