"""Options that several commands share, and the checks of their values.

A command takes a group of options as one frozen value:

    @app.command("hessian")
    @with_options(split="train", n=128)
    def hessian(attacked: Attacked, probes: int = 32) -> None: ...
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from curvact.errors import CurvactError, nearest

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from curvact.attacks import PGD
    from curvact.lab.checkpoints import Network
    from curvact.lab.placement import Placement

SPLITS = ("train", "validation", "test")
WEIGHTS = ("best", "last")

Checkpoints = Annotated[
    list[Path],
    typer.Argument(help="Run folders, checkpoints, networks of the zoo, or weights in RobustBench's naming."),
]
OneCheckpoint = Annotated[
    Path, typer.Argument(help="A run folder, a checkpoint, zoo:NAME, or weights in RobustBench's naming.")
]
RunOut = Annotated[
    Path | None,
    typer.Option("--out", help="The folder or URL (s3://bucket/name) to write; by default runs/NAME."),
]
Device = Annotated[
    str,
    typer.Option(help="The device: auto (the first CUDA device, else the CPU), cpu, cuda or cuda:N."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what was begun in the folder.")]


@dataclass(frozen=True)
class Place:
    """Where the runs of a sweep or a search are executed."""

    workers: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time; by default one a core, one a GPU where GPUs are used, or all that a cluster "
            "has room for."
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(help="The devices of the workers in turn, such as cuda:0,cuda:1; auto: all of CUDA."),
    ] = "auto"
    engine: Annotated[
        str,
        typer.Option(
            help="What executes the runs: local (worker processes), inline (this process, for a debugger), "
            "ray (a Ray cluster), slurm (a SLURM cluster), or a YAML file with the key engine and that engine's "
            "settings.",
        ),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster of --engine ray: HOST:PORT, or auto for the one on this machine; by default one is "
            "started for the runs.",
        ),
    ] = None

    @property
    def placement(self) -> Placement:
        """The same, checked."""
        from curvact.lab.placement import Placement

        return Placement(self.engine, self.workers, self.device, self.address)


@dataclass(frozen=True)
class Subject:
    """The weights and images that a command looks at, and where it computes. Values are checked.

    data: None for the data set that the checkpoints name.
    """

    weights: Annotated[str, typer.Option(help="The weights of a run folder: best or last.")] = "best"
    data: Annotated[str | None, typer.Option(help="The data set; by default that of the training.")] = None
    split: Annotated[str, typer.Option(help="The split: train, validation or test.")] = "test"
    n: Annotated[int, typer.Option("--n", help="Use the first N images of the split.")] = 128
    seed: Annotated[int, typer.Option(help="The seed of all random numbers.")] = 0
    batch_size: Annotated[int, typer.Option(help="The number of images in a batch.")] = 128
    device: Device = "auto"
    model: Annotated[
        str | None,
        typer.Option(help='The network of weights without a description, such as "my.py:Net(width=8)".'),
    ] = None
    mean: Annotated[str | None, typer.Option(help="Of --model, one number a channel: 0.5,0.5,0.5.")] = None
    std: Annotated[str | None, typer.Option(help="Of --model, one number a channel.")] = None
    activation: Annotated[str | None, typer.Option(help="The activation of --model; by default its own.")] = (
        None
    )

    def __post_init__(self) -> None:
        one_of("--weights", self.weights, WEIGHTS)
        one_of("--split", self.split, SPLITS)
        at_least("--n", self.n, 1)
        at_least("--batch-size", self.batch_size, 1)

    @property
    def network(self) -> Network | None:
        """`model` with its normalization and its activation."""
        from curvact.lab.checkpoints import Network

        if self.model is None:
            for option in ("mean", "std", "activation"):
                if getattr(self, option) is not None:
                    raise CurvactError(f"--{option} {getattr(self, option)}: it belongs to --model")
            return None
        mean, std = (
            None if text is None else tuple(numbers(option, text))
            for option, text in (("--mean", self.mean), ("--std", self.std))
        )
        return Network(self.model, mean, std, self.activation)

    @property
    def torch_device(self) -> torch.device:
        """The device, which must be there."""
        from curvact.devices import device_named

        return device_named(self.device, "--device")


@dataclass(frozen=True)
class Attacked(Subject):
    """A subject and the attack on it. norm, epsilon: None for those of the training."""

    norm: Annotated[
        str | None, typer.Option(help="The norm: linf, l2 or l1; by default that of the training.")
    ] = None
    epsilon: Annotated[
        str | None,
        typer.Option(help="The radius in input units, such as 8/255; by default that of the training."),
    ] = None
    attack: Annotated[str, typer.Option(help='The attack, such as pgd-20 or "pgd(steps=20, step=0.25)".')] = (
        "pgd-20"
    )

    @property
    def radius(self) -> float | None:
        """`epsilon` as a number."""
        return None if self.epsilon is None else radius("--epsilon", self.epsilon)

    @property
    def pgd(self) -> PGD:
        """`attack` as a PGD with at least one step."""
        from curvact.attacks import PGD

        pgd = PGD.parse(self.attack)
        if pgd.steps < 1:
            raise CurvactError(f"--attack {self.attack}: give at least one step")
        return pgd


def with_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function that takes groups of options as dataclasses into a command.

    Each field of such a dataclass becomes an option of the command.
    defaults: values that replace the defaults of the dataclass.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        groups: dict[str, Any] = {}
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if not is_dataclass(parameter.annotation):
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            kind = groups[parameter.name] = parameter.annotation
            hints = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                default = defaults.get(field.name, field.default)
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=inspect.Parameter.empty if default is MISSING else default,
                        annotation=hints[field.name],
                    )
                )

        def run(**given: Any) -> None:
            values = {
                name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
                for name, kind in groups.items()
            }
            command(**values, **given)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


Imports = Annotated[
    list[Path] | None,
    typer.Option("--import", help="Run this file of Python first: it registers what you name."),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the code in the folders that are read. It can do anything.")
]


def with_code(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options --import and --trust-code, which are acted on before it runs."""
    known = inspect.signature(command, eval_str=True)
    options = {"imports": (Imports, None), "trust_code": (TrustCode, False)}
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]

    def run(*args: Any, imports: list[Path] | None = None, trust_code: bool = False, **given: Any) -> None:
        from curvact.lab.imports import given_code, load_plugins

        load_plugins()
        with given_code(imports or [], trust=trust_code):
            command(*args, **given)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    parameters = [*known.parameters.values(), *extra]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def config_of(context: typer.Context) -> dict[str, Any]:
    """Every option of a command, as plain values; those about your own code only where used."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    code = ("imports", "trust_code", "model", "mean", "std", "activation")
    return {name: plain(value) for name, value in context.params.items() if value or name not in code}


# ---- values ----


def listed(text: str) -> list[str]:
    """The words between commas, each once.

    >>> listed("norms, split")
    ['norms', 'split']
    """
    return list(dict.fromkeys(word for word in (part.strip() for part in text.split(",")) if word))


def numbers(option: str, text: str) -> list[float]:
    """The finite numbers between commas.

    >>> numbers("--relative-norms", "0.1, 1")
    [0.1, 1.0]
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise CurvactError(f"{option} {text}: numbers with commas between them")
    return values


def radius(option: str, text: str, *, above_zero: bool = False) -> float:
    """A radius such as 0.03 or 8/255.

    >>> radius("--epsilon", "8/255") == 8 / 255
    True
    """
    from curvact.attacks import as_radius

    return as_radius(text, f"{option} {text}", above_zero=above_zero)


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raises CurvactError for a value that is not allowed."""
    if value not in allowed:
        raise CurvactError(f"{option} {value}{nearest(value, allowed)}; allowed are {', '.join(allowed)}")


def at_least(option: str, value: int, least: int) -> None:
    """Raises CurvactError for a smaller value."""
    if value < least:
        raise CurvactError(f"{option} {value}: must be >= {least}")


def positive(option: str, value: float) -> None:
    """Raises CurvactError for a value that is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise CurvactError(f"{option} {value:g}: must be a finite number > 0")


def agreed(what: str, known: Mapping[Path, Any], given: Any, option: str) -> Any:
    """The value of an option, else the one that all checkpoints name.

    known: by checkpoint, what it names; None where it names nothing.
    """
    if given is not None:
        return given
    for path, value in known.items():
        if value is None:
            raise CurvactError(f"{path} does not say its {what}: give {option}")
    (first, value), *others = known.items()
    for path, other in others:
        if other != value:
            raise CurvactError(f"{first} and {path} differ in their {what}: give {option}")
    return value


def plain_console() -> Console:
    """A console that prints text as it is: file names may hold brackets and colons."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)
