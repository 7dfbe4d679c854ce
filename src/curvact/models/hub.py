"""Trained models as folders with a model card, shared as files or by the Hugging Face Hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from curvact._version import __version__
from curvact.activations import Activation, default_scope, known_curvature, name_of
from curvact.activations.registry import parse_name
from curvact.errors import CurvactError
from curvact.files import as_path, atomic_write
from curvact.models.checkpoint import (
    SIDECAR_KEYS,
    check_rebuilds,
    find_weights,
    read_run_record,
    read_sidecar,
    read_tensors,
    rebuild,
    state_of,
)
from curvact.models.hashing import model_hash
from curvact.names import shortened

WEIGHTS, CONFIG, SIDECAR, CARD = "model.safetensors", "config.json", "model.json", "README.md"
LIBRARY = "curvact"

_PAF = "[paper] arXiv 2110.05626; κ [derived]"
MARKS: dict[str, str] = {
    "rctaf": "[ours], a reconstruction after arXiv 2603.23860; κ [derived]",
    "rcraf": "[paper] arXiv 2507.22446; a clip by gamma is [ours]",
    "sparta": "[ours], a reconstruction after arXiv 2105.08269, whose formula could not be had",
    **dict.fromkeys(("pssilu", "pssilu_fixed", "ssilu", "psilu", "psoftplus", "reblu"), _PAF),
    **dict.fromkeys(("prelu", "prelu_plus", "pelu"), _PAF),
}
"""Provenance of an activation by family, for the card. Other families are of the literature."""


def save_pretrained(
    source: nn.Module | str | Path,
    folder: str | Path,
    *,
    architecture: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    records: Iterable[Any] = (),
    name: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a model as a folder: model.safetensors, config.json (and model.json), README.md.

    source: a checkpoint file, or a run folder (its best weights). Architecture, data and the
        run's own measurement come from the JSON files in that folder. Or a model, with
        `architecture`.
    architecture: `name` and arguments of `curvact.models.build`.
    about: further facts about the model, such as data, threat_model and spec.
    records: evaluations of exactly these weights, as `EvaluationRecord` or path of its JSON file.
    name: title of the card. license: an SPDX name.
    The files of an earlier call are replaced. README.md is the model card; model.json is a copy of
    config.json.
    Raises CurvactError, before anything is written, for a folder with other content, a record of
    other weights, and weights that do not fit the architecture.

    >>> import tempfile
    >>> from curvact.models import build
    >>> arguments = {"name": "mini_resnet", "activation": "psilu(alpha=3)", "channels": 1}
    >>> folder = save_pretrained(build(**arguments), tempfile.mkdtemp(), architecture=arguments)
    >>> from_pretrained(folder).act
    psilu(alpha=3.0)
    """
    target = as_path(folder, "save_pretrained")
    measured: list[dict[str, Any]] = []
    if isinstance(source, nn.Module):
        if architecture is None:
            raise CurvactError(
                "save_pretrained of a model needs architecture=, the name and arguments of curvact.models.build"
            )
        _require_dict("architecture", architecture)
        check_rebuilds(source, architecture)
        tensors, known = state_of(source), {"architecture": dict(architecture)}
    else:
        tensors, known, measured = _read_checkpoint(find_weights(source))
    if about is not None:
        _require_dict("about", about)
        for key in ("architecture", "data"):
            if about.get(key) is not None:
                _require_dict(f"about[{key!r}]", about[key])
    digest = model_hash(tensors)
    measured += [_row(record, digest) for record in records]
    config = _describe(tensors, {**known, **(about or {})}, measured, name, license)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not _is_ours(target))):
        raise CurvactError(f"{target} has content that is not a model of curvact: give another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvactError(f"cannot write {target}: {error.strerror}") from None
    _write(target, tensors, config)
    return target


def from_pretrained(
    source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> nn.Module:
    """The model of a folder, or of a repository `owner/name` on the Hugging Face Hub, in eval mode.

    Weights keep the type in which they were saved. A repository needs `huggingface_hub`.
    revision: branch, tag or commit of the repository. cache_dir: folder for downloads.
    Raises CurvactError for a model that is missing, damaged, not of curvact, or whose weights are
    not those that config.json describes.
    """
    if as_path(source, "from_pretrained").is_dir():
        return _read(Path(source))[0]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CurvactError(f"no folder {source}, and no name of a repository, which is owner/name")
    try:
        kind = hub_class()
        model: nn.Module = kind.from_pretrained(str(source), revision=revision, cache_dir=cache_dir).model
    except Exception as error:  # huggingface_hub and its network libraries raise many kinds
        why = " ".join(str(error).split())
        raise CurvactError(f"no folder {source}, and the Hugging Face Hub did not give it: {why}") from None
    return model


def read_description(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's config.json: architecture, activation, measurements, origin."""
    file = Path(folder) / CONFIG
    try:
        content = json.loads(file.read_text())
        kinds = {"architecture": dict, "activation": dict, "measured": list}
        if content["library"] != LIBRARY or not all(
            isinstance(content[k], kind) for k, kind in kinds.items()
        ):
            raise TypeError
    except OSError:
        raise CurvactError(f"{folder} holds no model: {CONFIG} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CurvactError(f"{file} does not describe a model of curvact") from None
    return dict(content)


@cache
def hub_class() -> Any:
    """The class `HubModel`: a module with huggingface_hub's mixin. Its attribute `model` is ours.

    It has from_pretrained, save_pretrained and push_to_hub.
    `hub_class().from_pretrained(FOLDER).push_to_hub("owner/name")` publishes a folder of
    `save_pretrained`. Raises CurvactError if huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import (  # type: ignore[import-not-found, unused-ignore]
            ModelHubMixin,
            snapshot_download,
        )
    except ImportError:
        raise CurvactError("this needs huggingface_hub: pip install 'curvact[hub]'") from None

    class HubModel(nn.Module, ModelHubMixin, library_name=LIBRARY):  # type: ignore[call-arg, misc, unused-ignore]
        def __init__(self, model: nn.Module, description: dict[str, Any]) -> None:
            super().__init__()
            self.model = model
            self.description = description

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)  # type: ignore[no-any-return]

        def _save_pretrained(self, save_directory: Path) -> None:
            tensors = state_of(self.model)
            if model_hash(tensors) != self.description["weights_sha256"]:
                raise CurvactError(
                    "these weights changed after they were described: use curvact's save_pretrained"
                )
            _write(save_directory, tensors, self.description)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **given: Any) -> HubModel:
            folder = Path(model_id)
            if not folder.is_dir():
                keys = ("revision", "cache_dir", "force_download", "local_files_only", "token")
                options = {key: given[key] for key in keys if key in given}
                folder = Path(snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG], **options))
            return cls(*_read(folder))

    return HubModel


# ---- the card ----


_CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
tags:
- adversarial-robustness
- image-classification
{license}---

# {name}

{architecture} with `{activation}`{trained}.

Inputs are images in [0, 1], N×channels×H×W: normalization is a layer of the model.

```python
from curvact.models import from_pretrained

model = from_pretrained("FOLDER or owner/name")
```

## Activation

- before training: `{before}`
- now: `{activation}`
- κ = sup|σ″|: {curvature}
- extra parameters: {parameters}, scope: {scope}
- provenance: {mark}

## Measured

{measured}
{sections}
sha256 of the weights: `{sha256}`
"""


def model_card(config: Mapping[str, Any]) -> str:
    """The model card of a description (`read_description`): Markdown with the Hub's header."""
    activation, architecture, data = config["activation"], config["architecture"], config.get("data")
    data = data.get("name") if isinstance(data, Mapping) else data
    sections = ""
    for title, key in (("Architecture", "architecture"), ("Run", "spec"), ("Origin", "origin")):
        if config.get(key):
            text = json.dumps(config[key], indent=2, sort_keys=True, ensure_ascii=False)
            sections += f"\n## {title}\n\n```json\n{text.replace('```', 'ʼʼʼ')}\n```\n"
    return _CARD.format(
        library=LIBRARY,
        license=f"license: {json.dumps(config['license'])}\n" if config.get("license") else "",
        name=_text(config["name"]),
        architecture=_text(architecture["name"]),
        activation=_text(activation["name"]),
        trained=f", trained on {_text(data)}" if data else "",
        before=_text(architecture.get("activation", "relu")),
        curvature=_curvature(activation),
        parameters=activation["parameters"],
        scope=_text(activation["scope"]),
        mark=_text(activation["mark"]),
        measured="\n".join(_measured_table(config["measured"])),
        sections=sections,
        sha256=config["weights_sha256"],
    )


def _measured_table(measured: list[dict[str, Any]]) -> list[str]:
    if not measured:
        return ["Nothing was measured: no robustness is claimed."]
    lines = ["| attack | threat model | images | clean | robust |", "|---|---|---|---:|---:|"]
    for row in measured:
        threat = f"{row['norm']}, ε = {row['epsilon']:.6g}"
        images = f"{row['count']} of {row['data']}" if row.get("count") else str(row["data"])
        error = f" ± {row['standard_error']:.2%}" if row.get("standard_error") is not None else ""
        cells = [row["attack"], threat, images, f"{row['clean']:.2%}", f"{row['robust']:.2%}{error}"]
        lines.append(f"| {' | '.join(_text(cell) for cell in cells)} |")
    if any(row.get("standard_error") is not None for row in measured):
        lines += ["", "± is one binomial standard error of the robust accuracy."]
    if not any(row.get("ensemble") for row in measured):
        lines += ["", "None is a complete AutoAttack: robust accuracies are upper bounds."]
    findings = [_text(finding) for row in measured for finding in row.get("findings", [])]
    return [*lines, *(["", "Findings of the checks:", ""] if findings else []), *(f"- {f}" for f in findings)]


def _curvature(activation: Mapping[str, Any]) -> str:
    values = [float(value) for value in activation["curvature"]]
    if not values and str(activation["name"]).startswith("sparta"):
        return "none, since its gate depends on neighbouring pixels"
    if not values:
        return "not known"
    low, high = min(values), max(values)
    shown = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    return shown.replace("inf", "∞")


def _text(value: object) -> str:
    """The value as one line that is safe in a table, a code span and a header."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "ʼ").replace("<", "&lt;")


# ---- descriptions ----


def _describe(
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Any],
    measured: list[dict[str, Any]],
    name: str | None,
    license: str | None,
) -> dict[str, Any]:
    """The content of config.json."""
    model = rebuild(known["architecture"], tensors, "the model", keep_types=True)
    activation = _activation(model, known["architecture"])
    config = {
        "schema": 1,
        "library": LIBRARY,
        "version": __version__,
        "name": name or f"{known['architecture'].get('name')}, {activation['name']}",
        "license": license,
        **{key: value for key, value in known.items() if value is not None},
        "activation": activation,
        "measured": measured,
        "weights_sha256": model_hash(tensors),
    }
    for key, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise CurvactError(
                f"{key} in the description of the model cannot be written as JSON: {error}"
            ) from None
    return dict(json.loads(json.dumps(config)))


def _require_dict(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise CurvactError(f"{name}={shortened(value)} in save_pretrained: it must be a dict")


def _activation(model: nn.Module, architecture: Mapping[str, Any]) -> dict[str, Any]:
    found = [module for module in model.modules() if isinstance(module, Activation)]
    curvature: list[float | str] = []
    for module in found:
        try:
            kappa = known_curvature(module)
        except CurvactError:
            kappa = None
        if kappa is not None:
            curvature.append("inf" if math.isinf(kappa) else kappa)  # JSON has no infinity
    names = list(dict.fromkeys(re.sub(r"(, )?channels=\d+", "", name_of(module)) for module in found))
    shown = names[0] if names else "none"
    try:
        family = parse_name(shown)[0]
    except CurvactError:
        family = shown
    return {
        "name": shown if len(names) < 2 else f"{shown} and {len(names) - 1} with other values",
        "curvature": curvature,
        "parameters": sum(p.numel() for p in dict.fromkeys(p for m in found for p in m.parameters())),
        "scope": architecture.get("scope") or default_scope(architecture.get("activation", "relu")),
        "mark": MARKS.get(family, "of the literature"),
    }


def _row(record: Any, digest: str) -> dict[str, Any]:
    """A row of the card's table, from an evaluation record or its file."""
    where = "the record"
    if isinstance(record, (str, Path)):
        where = f"the record {record}"
        try:
            record = json.loads(Path(record).read_text())
        except OSError as error:
            raise CurvactError(f"cannot read {where}: {error.strerror}") from None
        except ValueError:
            raise CurvactError(f"{where} is no evaluation record: it is not JSON") from None
    elif hasattr(record, "model_dump"):
        record = record.model_dump(mode="json")
    try:
        robust, count = float(record["robust_accuracy"]), int(record["data"]["count"])
        row = {
            "attack": str(record["attack"]),
            "ensemble": bool(record["ensemble"]),
            "norm": str(record["threat_model"]["norm"]),
            "epsilon": float(record["threat_model"]["epsilon"]),
            "data": str(record["data"]["name"]),
            "data_sha256": str(record["data"]["sha256"]),
            "count": count,
            "clean": float(record["clean_accuracy"]),
            "robust": robust,
            "standard_error": _standard_error(robust, count),
            "findings": [str(finding) for finding in record["findings"]],
        }
        flags = str(record["robust_correct"])
        of = str(record["model"]["sha256"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise CurvactError(f"{where} is no evaluation record: see `curvact evaluate`") from None
    if of != digest:
        raise CurvactError(
            f"{where} is of other weights (sha256 {of[:12]}…, not {digest[:12]}…): evaluate these weights"
        )
    if len(flags) != count or abs(flags.count("1") / count - robust) > 1e-9:
        raise CurvactError(f"{where}: robust_accuracy={robust} of {count} images does not fit its flags")
    return row


def _standard_error(accuracy: float, count: int) -> float:
    """Binomial standard error."""
    return float((accuracy * (1 - accuracy) / count) ** 0.5)


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """Weights, description and measurements of a checkpoint."""
    sidecar = read_sidecar(path)
    known = {key: sidecar[key] for key in ("architecture", *SIDECAR_KEYS) if key in sidecar}
    record = read_run_record(path)
    if record is None:
        return read_tensors(path), known, []
    spec = record.spec
    try:
        row = {
            "attack": record.attack,
            "ensemble": False,
            "norm": str(spec["threat_model"]["norm"]),
            "epsilon": float(spec["threat_model"]["epsilon"]),
            "data": f"{spec['data']['name']}, test",
            "count": record.images,
            "clean": record.clean,
            "robust": record.robust,
            "standard_error": _standard_error(record.robust, record.images),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return read_tensors(path), known, []
    if isinstance(spec.get("activation_from"), dict):  # its path is of this machine only
        learned = {key: value for key, value in spec["activation_from"].items() if key != "path"}
        spec = {**spec, "activation_from": learned}
    origin = {"environment": record.environment, "data_sha256": record.data_sha256}
    return read_tensors(path), {**known, "spec": spec, "origin": origin}, [row]


# ---- files ----


def _write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    card = model_card(config)
    atomic_write(folder / WEIGHTS, save_tensors(dict(tensors), metadata={"format": "pt"}))
    for name, content in ((SIDECAR, text), (CARD, card), (CONFIG, text)):
        atomic_write(folder / name, content)


def _read(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    config = read_description(folder)
    if not (folder / WEIGHTS).is_file():
        raise CurvactError(f"{folder} holds no weights: {WEIGHTS} is missing")
    tensors = read_tensors(folder / WEIGHTS)
    if model_hash(tensors) != config.get("weights_sha256"):
        raise CurvactError(f"{folder / WEIGHTS} is not the file of weights that {folder / CONFIG} describes")
    return rebuild(config["architecture"], tensors, str(folder), keep_types=True), config


def _is_ours(folder: Path) -> bool:
    try:
        read_description(folder)
    except CurvactError:
        return False
    return True
