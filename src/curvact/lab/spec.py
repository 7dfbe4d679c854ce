"""One run as one typed, frozen value: what to train, on what, how, and what to measure afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from curvact.activations import activation
from curvact.activations.registry import parse_name
from curvact.attacks import PGD, ThreatModel, as_radius, radius_text
from curvact.data import DATASETS, Splits, load, names_a_place
from curvact.data.loading import SIZE
from curvact.devices import check_device_name
from curvact.errors import CurvactError, nearest
from curvact.files import hash_of_file
from curvact.lab.imports import Import, changing_runs, check_loaded, hashes, load_imports, read_with_code
from curvact.lab.layout import SPEC_FILE
from curvact.lab.settings import Strict, argument_problem, check_settings, choice, override_key
from curvact.models import MODELS, arguments_of
from curvact.models.checkpoint import find_weights, read_sidecar
from curvact.models.registry import takes_any_argument
from curvact.names import parse_call
from curvact.training import Recipe, objective

SCHEMA = 4
"""Part of every run's id. It rises when the meaning of a spec changes."""


def _parse_attack(value: Any) -> Any:
    return PGD.parse(value) if isinstance(value, str) else value


def _plain_recipe(value: Any) -> Any:
    """The settings of a recipe with its attacks parsed, so that pydantic can check the rest."""
    if not isinstance(value, dict):
        return value
    return {
        key: _parse_attack(item) if key in ("attack", "validation") else item for key, item in value.items()
    }


Attack = Annotated[PGD, BeforeValidator(_parse_attack), PlainSerializer(str)]
"""A PGD, written as text: `pgd-20` or `pgd(steps=20, step=0.25)`."""

Training = Annotated[Recipe, BeforeValidator(_plain_recipe), PlainSerializer(lambda recipe: recipe.as_dict())]


class DataSpec(Strict):
    """The images of a run.

    name: anything that `curvact.data.load` knows: a data set, or a path.
    size: images are resized to this side. train, validation, test: the most images of the split of
    that name.
    extra: a file of synthetic images. extra_fraction: their share of every training batch.
    """

    name: str = "digits"
    size: int | None = Field(None, ge=1, le=SIZE)
    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)
    extra: str | None = None
    extra_fraction: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, content: Any) -> Any:
        return {"name": content} if isinstance(content, str) else content

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if Path(name).suffix in (".npz", ".npy", ".parquet") and not names_a_place(name):
            raise ValueError(f"a path has a slash, such as ./{name}; data sets are {', '.join(DATASETS)}")
        return name if names_a_place(name) else choice(name, list(DATASETS))

    def in_its_place(self) -> DataSpec:
        """With an absolute path, which means the same from any working directory."""
        if not names_a_place(self.name) or self.name.startswith("hf:"):
            return self
        return self.model_copy(update={"name": str(Path(self.name).expanduser().absolute())})

    def load(self) -> Splits:
        """The images, scaled and cut as the spec says."""
        return load(self.name, size=self.size, train=self.train, validation=self.validation, test=self.test)


class ModelSpec(Strict):
    """The network, and the arguments of that network, such as width.

    name: one of `curvact.models.MODELS`. Text may have the arguments too: "mlp(width=16)".
        `my.py:Net` names a class or function of a file, `timm:NAME` and `hf:NAME` one of a library.
    scope: where one activation module is shared. None: what suits the activation.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "mini_resnet"
    scope: Literal["network", "stage", "layer", "channel"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_its_arguments(cls, content: Any) -> Any:
        if isinstance(content, str):
            content = {"name": content}
        if not isinstance(content, dict):
            return content
        if isinstance(content.get("name"), str) and content["name"].endswith(")"):
            form = "name(argument=value), such as my.py:Net(width=8)"
            name, settings = parse_call(content["name"], "network", form)
            for key in settings:
                if key in content and content[key] != settings[key]:
                    raise ValueError(
                        f"{content['name']} sets {key} already: leave out {key}={content[key]!r}"
                    )
            content = {**content, **settings, "name": name}
        name = content.get("name", "mini_resnet")
        if not isinstance(name, str) or name not in MODELS:
            return content
        defaults = arguments_of(name)
        for key, value in content.items():
            if key in ("name", "scope"):
                continue
            if key not in defaults and not takes_any_argument(name):
                allowed = ", ".join(["scope", *defaults])
                raise ValueError(
                    f"{name} has no argument '{key}'{nearest(str(key), defaults)}; allowed are {allowed}"
                    f" (model={name} alone has its own arguments)"
                )
            problem = argument_problem(key, value, defaults.get(key))
            if problem:
                raise ValueError(problem)
        return {"name": name, "scope": None, **defaults, **content}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name.endswith(".py"):
            raise ValueError(
                f"model.name={name!r}: add the name of its class or function, such as {name}:Net"
            )
        return name if name in MODELS else choice(name, list(MODELS))


class ActivationFrom(Strict):
    """A learned activation that the network starts with.

    path: its file, or a run's folder. run: the id of a run beside this one. Exactly one of the two
    is given.
    frozen: whether the activation keeps its values. sha256: of the activation; filled in when the
    run begins.
    """

    path: str | None = None
    run: str | None = Field(None, pattern="^[0-9a-f]{12}$")
    frozen: bool = True
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _one_place(self) -> ActivationFrom:
        if (self.path is None) == (self.run is None):
            raise ValueError("activation_from: give path or run, one of the two")
        return self


@cache
def _hash(file: Path, changed: int, size: int) -> str:
    """The sha256 of a file, computed once for all runs of a sweep."""
    return hash_of_file(file)


class _WeightsFrom(Strict):
    """A file of weights, and its hash."""

    path: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="before")
    @classmethod
    def _with_its_hash(cls, content: Any) -> Any:
        if isinstance(content, str):
            content = {"path": content}
        if not isinstance(content, (dict, cls)):
            raise ValueError("must be a path: that of a run's folder, or of a file of weights")
        if not isinstance(content, dict) or not isinstance(content.get("path"), str):
            return content
        if content.get("sha256") is not None:
            return content
        try:
            return {**content, "sha256": cls.hash_of(find_weights(content["path"]))}
        except OSError as error:
            raise CurvactError(f"cannot read {content['path']}: {error.strerror}") from None

    @classmethod
    def hash_of(cls, file: Path) -> str:
        """The sha256 that tells such weights apart."""
        about = file.stat()
        return _hash(file, about.st_mtime_ns, about.st_size)


class InitFrom(_WeightsFrom):
    """Weights that the network starts with, instead of random ones.

    path: a run's folder, a checkpoint, or a file of weights (.safetensors, .pt, .pth).
    sha256: of the file; filled in when the spec is read.
    leave_out: weights whose names begin so keep their random values, such as [fc] where there are
    other classes.
    """

    leave_out: tuple[str, ...] = ()


class HelperFrom(_WeightsFrom):
    """The trained network that the objective asks, such as "hat". It does not change.

    path: a run's folder, or a checkpoint. sha256: of its weights, its architecture and its code;
    filled in when the spec is read.
    """

    @classmethod
    def hash_of(cls, file: Path) -> str:
        weights = super().hash_of(file)
        if not file.with_suffix(".json").is_file():
            return weights
        sidecar = read_sidecar(file)
        parts = [weights, sidecar["architecture"], sorted(hashes(sidecar.get("imports")))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_WEIGHTS: Mapping[str, type[_WeightsFrom]] = {"init_from": InitFrom, "helper": HelperFrom}


def with_hashes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose files of weights have their hashes beside their paths. So a sweep knows its runs where a
    file is no longer there, and refuses a file that has changed.

    Raises CurvactError for a file that cannot be read.
    """

    def told(key: str, value: Any) -> Any:
        if key not in _WEIGHTS or not isinstance(value, (str, dict)):
            return value
        content = {"path": value} if isinstance(value, str) else value
        if "path" not in content or content.get("sha256") is not None:
            return value
        kind = _WEIGHTS[key]
        return {**content, "sha256": kind.model_validate({"path": content["path"]}).sha256}

    return {key: told(key, value) for key, value in settings.items()}


class EvaluationSpec(Strict):
    """How the trained network is attacked.

    attack: the PGD on the images of the split.
    train_images: so many images of the training split are attacked too, from its first one on.
    split: "test", or "validation", which leaves the test images alone: the metrics of that split are
    named `validation_robust_accuracy` and so on.
    images: at most so many images of the split. None: all of them.
    weights: "last" measures the last weights; "both" the weights of the best validation epoch too.
    autoattack_images: parts of AutoAttack attack so many images of the split. The metric
        subset_robust_accuracy is theirs, and subset_pgd_accuracy is that of the PGD on the same images.
    autoattack_parts: which parts.
    autoattack_mode: "plain" is the reference image by image. "fast" is faster on images from 16
    pixels on.
    activations: κ and effective curvature before and after training, and the parameters of the
    activations.
    """

    attack: Attack = PGD(20)
    split: Literal["test", "validation"] = "test"
    images: int | None = Field(None, ge=1)
    train_images: int = Field(512, ge=1)
    weights: Literal["last", "both"] = "both"
    autoattack_images: int = Field(0, ge=0)
    autoattack_parts: tuple[
        Literal["apgd-ce", "apgd-dlr", "apgd-t", "apgd-malt", "fab", "fab-t", "square"], ...
    ] = ("apgd-ce", "apgd-t")
    autoattack_mode: Literal["plain", "fast"] = "fast"
    activations: bool = False

    def metric(self, name: str) -> str:
        """The name in a record of what is measured on the attacked split.

        >>> EvaluationSpec(split="validation").metric("robust_accuracy")
        'validation_robust_accuracy'
        """
        return name if self.split == "test" else f"{self.split}_{name}"


class HessianSpec(Strict):
    """The Hessian diagonal of the trained network.

    probes, deflation: of the estimator. images: of the training split, in one fixed batch.
    """

    probes: int = Field(16, ge=4)
    deflation: int = Field(8, ge=0)
    images: int = Field(128, ge=1)


class AnalysesSpec(Strict):
    """Analyses of the trained network, see `curvact.lab.analyses`. A list alone names the kinds.

    kinds: what is analysed.
    images: how many are used. attack: the PGD of the adversarial loss.
    probes: of the Hessian's split. directions: of smoothness. draws: of flatness.
    """

    kinds: tuple[Literal["hessian", "flatness", "smoothness", "curvature"], ...] = Field(min_length=1)
    images: int = Field(128, ge=1)
    attack: Attack = PGD(10)
    probes: int = Field(32, ge=4)
    directions: int = Field(3, ge=1)
    draws: int = Field(10, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _from_kinds(cls, content: Any) -> Any:
        return {"kinds": content} if isinstance(content, (list, tuple)) else content


class HardwareSpec(Strict):
    """Where and how a run computes. Several processes come from `torchrun`.

    accelerator: auto, cpu, cuda or cuda:N. "auto" takes the first CUDA device that torch sees,
    else the CPU.
    precision: of training and of its attack. Weights stay in float32.
    accumulate: a batch passes the network in so many parts.
    compile: whether torch.compile compiles the network for training.
    channels_last: memory format. None: channels last for images from 16 pixels.
    threads: of each process on a CPU. None: torch's choice, and one in the workers of a sweep.
    deterministic: only algorithms that repeat bit for bit, which are slower on a GPU.
    gpus: how much of a GPU one run takes, such as 0.25, where an engine of a cluster places the runs.
    None: one where the accelerator is cuda, else none. It does not change a run's id.
    """

    accelerator: Annotated[str, AfterValidator(check_device_name)] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = Field(1, ge=1)
    compile: bool = False
    channels_last: bool | None = None
    threads: int | None = Field(None, ge=1)
    deterministic: bool = False
    gpus: float | None = Field(None, ge=0, le=8)

    @property
    def share(self) -> float:
        """How much of a GPU one run takes: `gpus`, or what it means where it is None."""
        if self.accelerator.startswith("cpu"):
            return 0.0
        if self.gpus is not None:
            return self.gpus
        return 1.0 if self.accelerator.startswith("cuda") else 0.0


class LoggingSpec(Strict):
    """What is written beside metrics.jsonl. It does not change a run's id.

    keep: the weights of every so many epochs stay, as epoch-0001.safetensors and so on.
    tensorboard: whether epochs are written for TensorBoard (needs `pip install curvact[tensorboard]`).
    wandb: a project of Weights & Biases (needs `pip install curvact[wandb]`).
    """

    keep: int | None = Field(None, ge=1)
    tensorboard: bool = False
    wandb: str | None = None


class RunSpec(Strict):
    """One run: train a network, attack it, measure its loss.

    name: the folder is named so, unless another is given. about: a remark.
    data: the images. model: the network.
    activation: a name such as "rctaf(curvature=6)". It is kept in the form that `str(activation)`
    gives. A spec may also have the keys `curvature` and `centered`: they choose the member of the
    family that `activation` names, so "rctaf(beta=1)" with curvature 6 is "rctaf(alpha=16.0,
    beta=1)".
    imports: files of Python that register what the spec names, such as `[my.py]`. They have to be
    run first: `read_spec` does, see `curvact.lab.imports`.
    activation_from: a learned activation that the network starts with.
    init_from: weights to start with, such as those of another run.
    helper: a trained network that the objective asks: "hat" needs one, the others take none.
    threat_model: norm and radius of the attacks. training: how to train.
    evaluation: how the trained network is attacked. hessian: the Hessian diagonal of its loss.
    analyses: other analyses of it. hardware: where a run computes. logging: what else is written.
    seed: of everything random.
    """

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    about: str = ""
    imports: tuple[Import, ...] = ()
    data: DataSpec = DataSpec()
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    activation: str = "relu"
    activation_from: ActivationFrom | None = None
    init_from: InitFrom | None = None
    helper: HelperFrom | None = None
    threat_model: ThreatModel = ThreatModel("linf", 0.2)
    training: Training = Recipe()
    evaluation: EvaluationSpec = EvaluationSpec()
    hessian: HessianSpec | None = None
    analyses: AnalysesSpec | None = None
    hardware: HardwareSpec = HardwareSpec()
    logging: LoggingSpec = LoggingSpec()
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="before")
    @classmethod
    def _choose_the_member(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = dict(content)
        check_loaded(content.get("imports") or ())
        family = content.get("activation", "relu")
        curvature, centered = content.pop("curvature", None), content.pop("centered", False)
        if curvature is not None and not isinstance(curvature, (int, float)):
            raise ValueError(f"curvature={curvature!r}: must be a number > 0")
        if not isinstance(centered, bool):
            raise ValueError(f"centered={centered!r}: must be true or false")
        if isinstance(family, str):
            content["activation"] = canonical_activation(family, curvature, centered)
        return content

    @model_validator(mode="after")
    def _imports_its_network(self) -> RunSpec:
        file, colon, _ = self.model.name.partition(":")
        if colon and file.endswith(".py") and file not in {item.file for item in self.imports}:
            raise ValueError(f"model.name={self.model.name!r}: imports lacks {file}")
        return self

    @model_validator(mode="after")
    def _has_the_helper_it_needs(self) -> RunSpec:
        name = self.training.objective
        needed = objective(name).entry.needs_helper
        if needed and self.helper is None:
            raise ValueError(f"training.objective={name!r} needs a helper: the folder of a trained run")
        if not needed and self.helper is not None:
            raise ValueError(
                f"helper: training.objective={name!r} asks no second network; leave it out, or say helper: null"
            )
        return self

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits: the hash of everything that determines the run's numbers.

        Equal specs have equal ids on any machine. The name, `about`, `logging`, the accelerator,
        `gpus` and the paths of weights and of a learned activation do not count.
        """
        content = self.model_dump(mode="json", exclude={"name", "about", "logging", "imports"})
        code = changing_runs(self.imports, self.model.name)
        if code:
            content["imports"] = sorted(str(item.sha256) for item in code)
        del content["hardware"]["accelerator"], content["hardware"]["gpus"]
        if not self.hardware.deterministic:  # the default before there was a choice
            del content["hardware"]["deterministic"]
        if self.evaluation.autoattack_mode == "fast":  # the default before there was a choice
            del content["evaluation"]["autoattack_mode"]
        if self.training.weight_decay_on == "all":  # the default before there was a choice
            del content["training"]["weight_decay_on"]
        if self.evaluation.split == "test":
            del content["evaluation"]["split"]
        for key in ("activation_from", "analyses", "init_from", "helper"):
            if content[key] is None:
                del content[key]
        for key in ("init_from", "helper"):
            if key in content:
                del content[key]["path"]
        if self.activation_from is not None:
            # The learned activation decides these two.
            del content["activation"], content["model"]["scope"]
            source = content["activation_from"]
            del source["path"]
            if source["run"] is not None:
                del source["sha256"]
        text = json.dumps({"schema": SCHEMA, **content}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def on(self, device: str) -> RunSpec:
        """The same run on the device of that name. Its id does not change."""
        return self.model_copy(update={"hardware": self.hardware.model_copy(update={"accelerator": device})})

    def to_yaml(self) -> str:
        """The spec as YAML, every default written out. A radius such as 8/255 is written so."""
        content = self.model_dump(mode="json")
        text = radius_text(self.threat_model.epsilon)
        if "/" in text and as_radius(text, "epsilon") == self.threat_model.epsilon:
            content["threat_model"]["epsilon"] = text
        return yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True)


@cache
def canonical_activation(family: str, curvature: float | None = None, centered: bool = False) -> str:
    """The name of a family's member with that κ, in the form that `str(activation)` gives.

    Raises CurvactError for an unknown family, or for a κ that it cannot have.

    >>> canonical_activation("rctaf(beta=1)", 6)
    'rctaf(alpha=16.0, beta=1)'
    >>> canonical_activation("silu")
    'swish(beta=1.0)'
    """
    name, parameters = parse_name(family)
    if curvature is not None:
        if "curvature" in parameters:
            raise CurvactError(
                f"activation={family!r} sets its curvature already: leave out curvature={curvature!r}"
            )
        parameters["curvature"] = curvature
    if centered:
        parameters["centered"] = True
    inside = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    text = f"{name}({inside})" if inside else name
    try:
        canonical = str(activation(text))
        return canonical if _names_itself(canonical) else text
    except OverflowError:
        raise CurvactError(
            f"a parameter of the activation {family!r} or its curvature is too large"
        ) from None


def _names_itself(text: str) -> bool:
    """Whether the text of an activation names it: that of a stranger's may be anything."""
    try:
        return str(activation(text)) == text
    except CurvactError:
        return False


def recipes() -> dict[str, str]:
    """The recipes that come with curvact: name → one line on each.

    >>> "paf" in recipes()
    True
    """
    folder = resources.files("curvact.lab") / "recipes"
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {f.removesuffix(".yaml"): yaml.safe_load((folder / f).read_text())["about"] for f in files}


def read_spec(source: str | Path, overrides: list[str] | None = None) -> RunSpec:
    """A run's spec from a YAML file, a run's folder, or the name of a recipe.

    overrides: settings to change, each `key.key=value` with the value in YAML. The files in
    `imports` are run; those of a folder only if they are trusted, see `curvact.lab.imports`.
    Raises CurvactError in one line that names the file, the key, the value and what is allowed.

    >>> read_spec("paf", ["training.epochs=1"]).training.epochs
    1
    """
    path = Path(source)
    if path.is_dir() or path.is_file() or path.suffix in (".yaml", ".yml"):
        return read_with_code(RunSpec, path, overrides, name=SPEC_FILE, what="run", writer="curvact train")
    known = recipes()
    if str(source) not in known:
        if "=" in str(source):
            raise CurvactError(
                f"{source} is a setting, and what to train comes first: a YAML file, a run's folder or a recipe, such as "
                f"`curvact train digits {source}`; recipes are {', '.join(known)}"
            )
        raise CurvactError(
            f"no file or folder {source}, and no recipe of that name{nearest(str(source), known)}; "
            f"recipes are {', '.join(known)}"
        )
    content = yaml.safe_load((resources.files("curvact.lab") / "recipes" / f"{source}.yaml").read_text())
    for override in overrides or []:
        override_key(content, override)
    return check_settings(RunSpec, load_imports(content, Path(), ask=False), f"recipe {source}")
