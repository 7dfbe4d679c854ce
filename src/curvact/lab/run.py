"""One run: train, attack, measure, record. A run's folder explains itself, and a killed run goes
on.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from curvact.activations import activation, known_curvature
from curvact.attacks import SuspectModelWarning
from curvact.data import ExtraImages, Splits, batches_per_epoch, open_extra
from curvact.devices import deterministic, device_named
from curvact.errors import CurvactError, first_line, for_want_of_memory
from curvact.files import atomic_write
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.environment import environment
from curvact.lab.imports import copy_code
from curvact.lab.layout import (
    ACTIVATION_FILE,
    LOCK_FILE,
    RECORD_FILE,
    SPEC_FILE,
    STATE_FILE,
)
from curvact.lab.loggers import BY_ITSELF, Shown, check_loggers, log_epoch, open_loggers
from curvact.lab.measure import accuracies, evaluated_images, measure, of_activations
from curvact.lab.remote import Pushes, Store
from curvact.lab.settings import check_settings
from curvact.lab.spec import DataSpec, HardwareSpec, HelperFrom, InitFrom, RunSpec
from curvact.lab.store import (
    OUT_OF_MEMORY,
    Record,
    check_goes_on,
    check_run_folder,
    check_writable,
    finished,
    hash_of,
    locked,
    read_history,
    read_record,
    write_environment,
    write_history,
    write_record,
)
from curvact.models import build
from curvact.models.checkpoint import check_rebuilds, find_weights, load_checkpoint, misfits, save_checkpoint
from curvact.models.foreign import Foreign
from curvact.models.interchange import read_state_dict
from curvact.models.learned import (
    LearnedActivation,
    extract_activation,
    insert_activation,
    read_learned,
    write_learned,
)
from curvact.random import generator
from curvact.training import Compute, Diverged, Epoch, Step, Watch, extension_problem, fit
from curvact.training.batches import check_fit
from curvact.training.processes import launcher
from curvact.training.state import remove_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHANNELS_LAST_FROM = 16
"""Side of the images from which weights lie channels last.

On 32×32 images a narrow ResNet-18 is then 1.5 times as fast.
"""

OnEvent = Callable[[Step | Epoch], None]


def execute(
    spec: RunSpec,
    folder: Path,
    *,
    on_event: OnEvent = lambda event: None,
    store: Store | None = None,
    shown: Shown = BY_ITSELF,
    patience: float = 0,
) -> Record:
    """Train, attack and analyse what the spec says, in the run's folder, and return its record.

    A finished run is returned as it is. An unfinished run goes on from its state, to the same bits.
    A finished run whose spec differs in `training.epochs` alone is extended, where its schedule
    allows it. A run whose loss diverges has a record too, with status "failed" and its cause. So has
    one that memory is too short for; it goes on from its state when it is executed again.

    on_event: called with every `Step` and `Epoch` of training.
    store: whose local folder `folder` is. It is pulled first, pushed after each epoch in a thread beside
    training, and has the record at the end.
    shown: how TensorBoard and Weights & Biases name the run.
    patience: seconds to wait for a folder that another process holds.

    The folder holds spec.yaml, environment.json, metrics.jsonl (one line an epoch),
    best.safetensors and last.safetensors with their JSON, and record.json. It holds
    state.safetensors while the run is unfinished, and afterwards where the run can be extended.

    Raises CurvactError for bad input, before anything is written, and for a folder that holds
    another run. Under `torchrun`, only the first process writes and has a record with metrics.
    """
    with launched(spec.hardware) as fabric:
        if store is None:
            return _execute(spec, folder, fabric, on_event, shown, patience=patience)
        first = fabric.is_global_zero
        with locked(folder, wanted=first, patience=patience):
            if fabric.local_rank == 0:
                _pull(spec, store)
            fabric.barrier()
            if not first:
                return _execute(spec, folder, fabric, on_event, shown, held=True)
            return _pushed(
                store, on_event, lambda tell: _execute(spec, folder, fabric, tell, shown, held=True)
            )


def _pull(spec: RunSpec, store: Store) -> None:
    """What a run goes on from, and the weights of the run that learned its activation."""
    store.pull(held=True)
    wanted = spec.activation_from
    if wanted is not None and wanted.run is not None:
        store.beside(wanted.run).pull(lambda name: name != STATE_FILE)


def _pushed(store: Store, on_event: OnEvent, work: Callable[[OnEvent], Record]) -> Record:
    """Do the work, with a push after each epoch and at its end. An interrupt begins no further one."""
    pushes = Pushes(store)

    def tell(event: Step | Epoch) -> None:
        if isinstance(event, Epoch):
            pushes.soon()
        on_event(event)

    try:
        record = work(tell)
    except Exception:
        with suppress(CurvactError):
            pushes.close()
        raise
    except BaseException:
        pushes.abandon()
        raise
    pushes.close()
    return record


def _execute(
    spec: RunSpec,
    folder: Path,
    fabric: Fabric,
    on_event: OnEvent,
    shown: Shown,
    *,
    held: bool = False,
    patience: float = 0,
) -> Record:
    """held: the caller has locked the folder."""
    check_loggers(spec)
    if fabric.is_global_zero:
        check_writable(folder)
    spec, learned, problem = settle(spec, folder)
    start = prepare(spec, learned)
    first = fabric.is_global_zero
    if first and folder.is_dir() and not (folder / LOCK_FILE).exists():
        check_run_folder(folder, spec)  # so that no lock is left in a folder of something else
    with locked(folder, wanted=first and not held, patience=patience):
        if first:
            before = check_run_folder(folder, spec)
            if before is None or before.run != spec.id or not before.is_final:
                if before is not None and before.run != spec.id:
                    _check_extension(before, spec, start, folder)
                if (folder / STATE_FILE).exists():
                    check_goes_on(folder, fabric.device)
                _begin(spec, folder, learned, fabric.device)
        fabric.barrier()
        if (folder / RECORD_FILE).is_file():
            return read_record(folder)
        run = _Run(spec, folder, fabric, start, on_event, shown)
        record = None
        try:
            record = run.failed(problem) if problem else run.train_and_measure()
        except (MemoryError, RuntimeError) as error:
            if fabric.world_size > 1 or not for_want_of_memory(error):
                raise
            record = run.failed(f"{OUT_OF_MEMORY}: {' '.join(first_line(error).split())}")
        finally:  # the next run of this process has loggers of its own
            run.end_loggers("success" if record is not None and record.status == "done" else "failed")
        if first:
            write_record(folder, record)
            if record.status == "done" and not _can_be_extended(spec, start):
                remove_state(folder / STATE_FILE)
        return record


def _begin(spec: RunSpec, folder: Path, learned: LearnedActivation | None, device: torch.device) -> None:
    """What a run's folder holds before training. The spec comes before an older record goes."""
    if learned is not None:
        write_learned(folder / ACTIVATION_FILE, learned)
    write_environment(folder, spec, environment(device))
    copy_code(spec.imports, folder)
    atomic_write(folder / SPEC_FILE, spec.to_yaml())
    (folder / RECORD_FILE).unlink(missing_ok=True)


class _Run:
    """One execution of a run: the pieces that training, measuring and recording share."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        fabric: Fabric,
        start: Prepared,
        on_event: OnEvent,
        shown: Shown,
    ) -> None:
        self.spec, self.folder, self.fabric, self.start, self.on_event = spec, folder, fabric, start, on_event
        self.first = fabric.is_global_zero
        self.began = time.perf_counter()
        self.history = {line["epoch"]: line for line in read_history(folder)}
        self.loggers = open_loggers(spec, folder, shown) if self.first else []

    def train_and_measure(self) -> Record:
        spec, data = self.spec, self.start.data
        model = self.fabric.to_device(self.start.model)
        data = data if data.train.images.device == self.fabric.device else data.to(self.fabric.device)
        numbers: dict[str, float] = {}
        epochs: list[Epoch] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SuspectModelWarning)
                if spec.evaluation.activations:
                    numbers |= of_activations(model, data, spec, "start")
                epochs = self._fit(model, data)
                if not self.first:
                    return self._record([], {})
                self._write_history(epochs)
                numbers = measure(model, data, spec) | numbers
                if spec.evaluation.activations:
                    numbers |= of_activations(model, data, spec, "end")
                if spec.evaluation.weights == "both":
                    numbers |= self._best(data, epochs, numbers)
        except (Diverged, SuspectModelWarning) as error:
            return self.failed(str(error), epochs)
        numbers["seconds_per_epoch"] = round(sum(e.seconds for e in epochs) / len(epochs), 4)
        return self._record(epochs, numbers)

    def end_loggers(self, status: str) -> None:
        """Send what is left. status: "success" or "failed"."""
        for logger in self.loggers:
            logger.finalize(status)

    def _fit(self, model: nn.Module, data: Splits) -> list[Epoch]:
        spec = self.spec
        compute = Compute(self.fabric, spec.hardware.accumulate, spec.hardware.compile)
        return fit(
            model,
            data,
            spec.training,
            spec.threat_model,
            seed=spec.seed,
            extra=self.start.extra,
            helper=self.start.helper,
            compute=compute,
            state=self.folder / STATE_FILE,
            watch=Watch(on_epoch=self._remember, on_step=self.on_event, on_evaluated=self._keep),
        )

    def _remember(self, epoch: Epoch) -> None:
        self.history[epoch.epoch] = epoch.as_dict()
        if self.first:
            known = [line for number, line in sorted(self.history.items()) if number <= epoch.epoch]
            write_history(self.folder, known)
            for logger in self.loggers:
                log_epoch(logger, epoch)
        self.on_event(epoch)  # last: what it raises ends a run whose files are whole

    def _write_history(self, epochs: list[Epoch]) -> None:
        """All epochs, from the state: a run killed between its state and its metrics loses no line."""
        write_history(self.folder, (epoch.as_dict() for epoch in epochs))

    def _keep(self, model: nn.Module, epoch: Epoch, best: bool) -> None:
        """Write the weights that were evaluated."""
        names = ["last", *(["best"] if best else [])]
        keep = self.spec.logging.keep
        if keep is not None and epoch.epoch % keep == 0:
            names.append(f"epoch-{epoch.epoch:04d}")
        about = {
            "run": self.spec.id,
            "data": self.spec.data.in_its_place().model_dump(mode="json"),
            "threat_model": asdict(self.spec.threat_model),
            "epoch": epoch.epoch,
            "gradient_evaluations": epoch.gradient_evaluations,
        }
        if self.spec.imports:
            about["imports"] = [{"path": i.file, "sha256": i.sha256} for i in self.spec.imports]
        if self.spec.activation_from is not None:
            about["activation_from"] = self.spec.activation_from.model_dump(
                mode="json", exclude={"path"}, exclude_none=True
            )
        for name in names:
            save_checkpoint(self.folder / f"{name}.safetensors", model, self.start.architecture, about)

    def _best(self, data: Splits, epochs: list[Epoch], numbers: dict[str, float]) -> dict[str, float]:
        """The accuracies of the best validation epoch's weights. An epoch with a note is not kept."""
        kept = [epoch for epoch in epochs if not epoch.note]
        best = max(kept, key=lambda e: e.validation_robust_accuracy).epoch
        name = self.spec.evaluation.metric
        found = {key: numbers[key] for key in map(name, ("clean_accuracy", "robust_accuracy"))}
        if best != kept[-1].epoch:
            model = load_checkpoint(self.folder / "best.safetensors").to(self.fabric.device)
            width = int(self.start.architecture["size"])
            found = accuracies(_in_memory_format(model, self.spec, width), data, self.spec)
        return {**{f"best_{key}": value for key, value in found.items()}, "best_epoch": best}

    def failed(self, cause: str, epochs: list[Epoch] | None = None) -> Record:
        """The record of a run that ended early. A diverged run has no metrics."""
        record = self._record(epochs or [], {})
        done = self.history[max(self.history)]["gradient_evaluations"] if self.history else 0
        return record.model_copy(update={"status": "failed", "cause": cause, "gradient_evaluations": done})

    def _record(self, epochs: list[Epoch], numbers: dict[str, float]) -> Record:
        data, extra = self.start.data, self.start.extra
        hashes = {"train": data.train.sha256, "validation": data.validation.sha256, "test": data.test.sha256}
        if extra is not None:
            hashes["extra"] = extra.sha256
        return Record(
            run=self.spec.id,
            spec=self.spec,
            status="done",
            note=epochs[-1].note if epochs else "",
            metrics=numbers,
            epochs=len(epochs),
            gradient_evaluations=epochs[-1].gradient_evaluations if epochs else 0,
            max_curvature=known_curvature(activation(self.spec.activation)),
            test_images=len(evaluated_images(data, self.spec)) if self.spec.evaluation.split == "test" else 0,
            data_sha256=hashes,
            files=hash_of(self.folder) if self.first else {},
            seconds=round(time.perf_counter() - self.began, 3),
        )


@dataclass(frozen=True)
class Prepared:
    """What a run starts from. architecture: the arguments of `curvact.models.build`."""

    data: Splits
    extra: ExtraImages | None
    architecture: dict[str, Any]
    model: nn.Module
    helper: nn.Module | None = None


def prepare(spec: RunSpec, learned: LearnedActivation | None = None) -> Prepared:
    """Data, synthetic images and the untrained network of a run.

    learned: the activation that `spec.activation_from` means, see `settle`.
    Raises CurvactError for data that are missing or damaged, for a network or an augmentation that
    does not suit the images, and for a network whose name does not build it again.
    """
    data, extra = images_of(spec.data)
    train = data.train
    channels, height, width = train.images.shape[1:]
    architecture = architecture_of(spec, (channels, width), len(train.classes), train.mean, train.std)
    model = build(**architecture, generator=generator(spec.seed, "initialization"))
    if spec.init_from is not None:
        start_from(model, spec.init_from)
    if learned is not None and spec.activation_from is not None:
        inputs = data.train.inputs(slice(0, 1))
        insert_activation(model, learned, freeze=spec.activation_from.frozen, inputs=inputs)
    model = _in_memory_format(model, spec, width)
    if spec.training.crop > min(height, width):
        raise CurvactError(
            f"training.crop={spec.training.crop} is larger than the images, {min(height, width)} pixels"
        )
    helper = None if spec.helper is None else load_helper(spec.helper, spec.data.name)
    check_fit(model, data, extra, helper)
    check_rebuilds(model, architecture)  # else its weights could not be kept after the first epoch
    return Prepared(data, extra, architecture, model, helper)


def architecture_of(
    spec: RunSpec, shape: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The arguments of `curvact.models.build` for a run. shape: channels and width of its images."""
    channels, width = shape
    return {
        **spec.model.model_dump(mode="json"),
        "activation": spec.activation,
        "channels": channels,
        "classes": classes,
        "size": width,
        "mean": mean,
        "std": std,
    }


def images_of(wanted: DataSpec) -> tuple[Splits, ExtraImages | None]:
    """The images of a run, and its synthetic ones. CurvactError where they are missing or damaged."""
    data = wanted.load()
    if wanted.extra is None:
        return data, None
    channels, height, width = data.train.images.shape[1:]
    extra = open_extra(
        wanted.extra,
        classes=len(data.train.classes),
        shape=(channels, height, width),
        fraction=wanted.extra_fraction,
    )
    return data, extra


def start_from(model: nn.Module, start: InitFrom) -> None:
    """Put the start weights into the model, all of them, or all but those that are left out.

    A file of the network inside a `Foreign` fits too. Raises CurvactError for another file than the
    spec means, and for weights that do not fit.
    """
    path = _unchanged(start, "init_from")
    given = read_state_dict(path)
    if isinstance(model, Foreign) and not any(name in given for name in model.state_dict()):
        model = model.model
    for prefix in start.leave_out:
        if not any(name.startswith(prefix) for name in (*given, *model.state_dict())):
            raise CurvactError(
                f"init_from.leave_out: no weight begins with {prefix!r} in {path} or in the network"
            )
    own = model.state_dict()
    left = {name for name in (*own, *given) if any(name.startswith(prefix) for prefix in start.leave_out)}
    wrong = misfits(
        {name: value for name, value in given.items() if name not in left},
        {name: value for name, value in own.items() if name not in left},
    )
    if wrong:
        raise CurvactError(
            f"init_from: the weights {path} do not fit: {'; '.join(wrong)}; init_from.leave_out leaves names out"
        )
    model.load_state_dict({**own, **{name: value for name, value in given.items() if name not in left}})


def load_helper(wanted: HelperFrom, data: str) -> nn.Module:
    """The helper of a run, in eval mode. CurvactError for another file than the spec means.

    data: the name of the run's data. Warns where the helper is known to be trained on other data.
    """
    path = _unchanged(wanted, "helper")
    try:
        opened = open_checkpoint(path)
        theirs = opened.data
    except CurvactError as error:
        raise CurvactError(f"helper {path}: {error}") from None
    if theirs is not None and theirs.name != data:
        warnings.warn(
            f"helper {path}: it was trained on {theirs.name}, and this run is on {data}", stacklevel=2
        )
    return opened.model


def _unchanged(wanted: InitFrom | HelperFrom, key: str) -> Path:
    """The file; CurvactError for one that is not that whose hash the spec holds."""
    path = find_weights(wanted.path)
    try:
        found = wanted.hash_of(path)
    except OSError as error:
        raise CurvactError(f"{key}: cannot read {path}: {error.strerror}") from None
    if found != wanted.sha256:
        raise CurvactError(
            f"{key}: {path} has changed: its sha256 is {found[:12]}…, the spec has {str(wanted.sha256)[:12]}…"
        )
    return path


def _in_memory_format(model: nn.Module, spec: RunSpec, width: int) -> nn.Module:
    last = spec.hardware.channels_last
    if width >= CHANNELS_LAST_FROM if last is None else last:
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return model


def _check_extension(before: Record, spec: RunSpec, start: Prepared, folder: Path) -> None:
    """CurvactError where a finished run cannot go on to the epochs of the spec: it says why."""
    problem = _extension_problem(before.spec, spec, start)
    if not problem and before.status == "failed":
        problem = f"it failed: {before.cause}"
    if not problem and not (folder / STATE_FILE).is_file():
        problem = f"{folder / STATE_FILE} is missing"
    if problem:
        raise CurvactError(
            f"{folder} holds a run of {before.spec.training.epochs} epochs that cannot go on to "
            f"{spec.training.epochs}: {problem}; give another --out to train anew"
        )


def _extension_problem(before: RunSpec, after: RunSpec, start: Prepared) -> str:
    steps = batches_per_epoch(start.data.train, before.training.batch_size, start.extra)
    return extension_problem(before.training, after.training, steps * before.training.epochs, steps)


def _can_be_extended(spec: RunSpec, start: Prepared) -> bool:
    longer = spec.model_copy(update={"training": replace(spec.training, epochs=spec.training.epochs + 1)})
    return not _extension_problem(spec, longer, start)


def settle(spec: RunSpec, folder: Path) -> tuple[RunSpec, LearnedActivation | None, str]:
    """The spec with the name, scope and sha256 of its learned activation, and that activation.

    A spec that has the sha256 already is served from the copy in the run's folder, if there is one.
    The third value says why there is no activation: the run that should have learned it failed.
    Raises CurvactError for a source that is missing, damaged, or not the activation that the spec
    means.
    """
    wanted = spec.activation_from
    if wanted is None:
        return spec, None, ""
    kept = folder / ACTIVATION_FILE
    if wanted.sha256 is not None and kept.is_file():
        learned = read_learned(kept)
    elif wanted.run is not None:
        source = folder.parent / wanted.run
        record = finished(source, wanted.run)
        if record is None:
            raise CurvactError(f"{source}, the run that learns the activation, has not finished")
        if record.status == "failed":
            return spec, None, f"the run that learns its activation, {wanted.run}, failed: {record.cause}"
        learned = extract_activation(source / "last.safetensors")
    else:
        path = Path(str(wanted.path))
        learned = extract_activation(path / "best.safetensors") if path.is_dir() else read_learned(path)
    if wanted.sha256 not in (None, learned.sha256):
        raise CurvactError(
            f"{wanted.path or wanted.run} holds another activation than the spec means: its sha256 is "
            f"{learned.sha256[:12]}…, not {str(wanted.sha256)[:12]}…"
        )
    content = spec.model_dump(mode="json")
    content["activation"], content["model"]["scope"] = learned.name, learned.scope
    content["activation_from"]["sha256"] = learned.sha256
    return check_settings(RunSpec, content, "the learned activation"), learned, ""


def device_of(hardware: HardwareSpec) -> torch.device:
    """Where a run computes. CurvactError for hardware that this machine lacks."""
    device = device_named(hardware.accelerator, "hardware.accelerator")
    if hardware.precision == "16-mixed" and device.type != "cuda":
        raise CurvactError(
            "hardware.precision='16-mixed' needs a GPU; allowed here are 32-true and bf16-mixed"
        )
    return device


def _processes(variable: str, default: int) -> int:
    """The number of processes that torchrun says in a variable of the environment."""
    text = os.environ.get(variable, str(default))
    if not (text.isdecimal() and int(text)):
        raise CurvactError(
            f"{variable}={text!r} in the environment: a whole number >= 1, as torchrun sets it"
        )
    return int(text)


@contextmanager
def launched(hardware: HardwareSpec) -> Iterator[Fabric]:
    """Device, precision and processes. Under `torchrun`: one process of several.

    The process group is taken down at the end. Left to the interpreter's exit, gloo's threads
    sometimes abort the process.
    """
    from lightning_fabric import Fabric

    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    device = device_of(hardware)
    size = _processes("WORLD_SIZE", 1)
    local = _processes("LOCAL_WORLD_SIZE", size)
    if size > 1 and hardware.accelerator not in ("auto", "cpu", "cuda"):
        raise CurvactError(
            f"hardware.accelerator={hardware.accelerator}: torchrun gives each process a device of its own; "
            "allowed there are auto, cpu and cuda"
        )
    fabric = Fabric(
        accelerator=device.type,
        devices=[device.index] if size == 1 and device.type == "cuda" else local,
        num_nodes=max(1, size // local),
        strategy="ddp" if size > 1 else "auto",
        precision=hardware.precision,
        plugins=launcher(),
    )
    fabric.launch()
    try:
        with deterministic(hardware.deterministic):
            yield fabric
    finally:
        if size > 1:
            distributed.destroy_process_group()
