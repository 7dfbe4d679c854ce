"""Models as folders: the same outputs after loading, a card with their numbers only, clear errors."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from curvact.attacks import ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.record import evaluate, write_record
from curvact.models import build, extract_activation, hub, model_hash
from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.hub import from_pretrained, model_card, read_description, save_pretrained
from curvact.random import generator

ARGUMENTS: dict[str, Any] = {
    "name": "mini_resnet",
    "activation": "pssilu(learnable=True)",
    "width": 2,
    "channels": 1,
    "scope": "network",
}
FILES = {"model.safetensors", "model.json", "config.json", "README.md"}


@pytest.fixture
def model() -> nn.Module:
    made = build(**ARGUMENTS, generator=generator(0, "test"))
    with torch.no_grad():
        made.act.alpha.fill_(3.0)
        made.act.beta.fill_(0.25)
        made.bn.running_mean.fill_(0.5)
    return made.eval()


@pytest.fixture
def record(model: nn.Module) -> Any:
    images = load("digits").test.first(30)
    return evaluate(model, images, ThreatModel("linf", 0.1), attack="pgd-3", masking="none")


def test_a_folder_and_back(model: nn.Module, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "a" / "b", architecture=ARGUMENTS)
    assert {file.name for file in folder.iterdir()} == FILES
    again = from_pretrained(folder)
    x = torch.rand(3, 1, 8, 8, generator=generator(0, "images"))
    assert torch.equal(again(x), model(x))
    assert not again.training
    assert torch.equal(load_checkpoint(folder / "model.safetensors")(x), model(x))
    assert read_description(folder)["weights_sha256"] == model_hash(model)
    save_pretrained(again, folder, architecture=ARGUMENTS, name="the second")
    assert read_description(folder)["name"] == "the second"


def test_the_card_says_what_is_known(model: nn.Module, record: Any, tmp_path: Path) -> None:
    file = tmp_path / "of.evaluation.json"
    write_record(record, file)
    about = {"data": {"name": "digits"}, "spec": {"seed": 7}}
    folder = save_pretrained(
        model, tmp_path / "m", architecture=ARGUMENTS, about=about, records=[file, record], license="mit"
    )
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "curvact"
    assert yaml.safe_load(header)["license"] == "mit"
    assert "trained on digits" in body
    assert "pssilu(alpha=3.0, beta=0.25, learnable=True)" in body
    assert "κ = sup|σ″|: 2\n" in body  # 3/(2(1 − 0.25))
    assert "extra parameters: 2" in body
    assert "[paper] arXiv 2110.05626; κ [derived]" in body
    accuracies = f"{record.clean_accuracy:.2%} | {record.robust_accuracy:.2%} ± "
    row = f"| {record.attack} | linf, ε = 0.1 | 30 of {record.data.name} | {accuracies}"
    assert body.count(row) == 2
    assert "upper bounds" in body
    assert '"seed": 7' in body


def test_without_measurements_nothing_is_claimed(model: nn.Module, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS)
    assert "no robustness is claimed" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("activation", "curvature", "mark"),
    [
        ("sparta", "none, since its gate", "[ours], a reconstruction after arXiv 2105.08269"),
        ("sparta(variant=full, norm=True)", "none, since its gate", "[ours], a reconstruction"),
        ("rctaf(curvature=6)", "6\n", "[ours], a reconstruction after arXiv 2603.23860"),
        ("prelu", "∞\n", "[paper] arXiv 2110.05626"),
        ("silu", "0.5\n", "of the literature"),
    ],
)
def test_marks_curvature_and_scope(activation: str, curvature: str, mark: str, tmp_path: Path) -> None:
    """The network comes back. A scope that was not given is the activation's own."""
    arguments = {**ARGUMENTS, "activation": activation, "scope": None}
    model = build(**arguments, generator=generator(0, "test")).eval()
    folder = save_pretrained(model, tmp_path / "m", architecture=arguments)
    text = (folder / "README.md").read_text()
    x = torch.rand(2, 1, 8, 8, generator=generator(0, "images"))
    assert torch.equal(from_pretrained(folder)(x), model(x))
    shared = activation in ("sparta", "prelu")
    assert f"scope: {'network' if shared else 'layer'}\n" in text
    assert f"κ = sup|σ″|: {curvature}" in text
    assert f"provenance: {mark}" in text
    json.loads((folder / "config.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def run_record(folder: Path, spec: dict[str, Any], **changes: Any) -> None:
    """record.json and environment.json of a run whose weights are in the folder."""
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.safetensors")}
    metrics = {"best_clean_accuracy": 0.875, "best_robust_accuracy": 0.5}
    metrics |= {"clean_accuracy": 0.75, "robust_accuracy": 0.25}
    record = {"spec": spec, "metrics": metrics, "files": hashes, "test_images": 40, "data_sha256": {}}
    (folder / "record.json").write_text(json.dumps({**record, **changes}))
    (folder / "environment.json").write_text(json.dumps({"commit": "0123abc"}))


def test_a_run_brings_its_own_description_and_measurement(model: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    about = {"run": "abc", "data": {"name": "digits"}, "threat_model": {"norm": "linf", "epsilon": 0.2}}
    save_checkpoint(run / "last.safetensors", build(**ARGUMENTS), ARGUMENTS, about)
    save_checkpoint(run / "best.safetensors", model, ARGUMENTS, about)
    spec = {
        **about,
        "evaluation": {"attack": "pgd-20"},
        "activation_from": {"path": "/home/me/act.safetensors", "frozen": True, "sha256": "12"},
    }
    run_record(run, spec)
    text = (save_pretrained(run, tmp_path / "m") / "README.md").read_text()
    assert "| pgd-20 | linf, ε = 0.2 | 40 of digits, test | 87.50% | 50.00% ± 7.91% |" in text
    assert "standard error" in text
    assert "0123abc" in text
    assert '"sha256": "12"' in text
    assert "/home/me" not in text
    text = (save_pretrained(run / "last.safetensors", tmp_path / "last") / "README.md").read_text()
    assert "| 75.00% | 25.00% ± 6.85% |" in text
    save_checkpoint(run / "best.safetensors", build(**ARGUMENTS), ARGUMENTS, about)  # other weights
    folder = save_pretrained(run, tmp_path / "n")
    assert "no robustness is claimed" in (folder / "README.md").read_text()
    other = load_checkpoint(run / "best.safetensors").state_dict()
    assert all(torch.equal(v, other[k]) for k, v in from_pretrained(folder).state_dict().items())


def test_the_accuracy_of_the_best_weights_where_they_are_the_last(model: nn.Module, tmp_path: Path) -> None:
    for name in ("best", "last"):
        save_checkpoint(tmp_path / f"{name}.safetensors", model, ARGUMENTS, {})
    spec = {"evaluation": {"attack": "pgd-20"}}
    run_record(tmp_path, spec, metrics={"clean_accuracy": 0.75, "robust_accuracy": 0.25})
    provenance = extract_activation(tmp_path).provenance
    assert (provenance["robust_accuracy"], provenance["attack"]) == (0.25, "pgd-20")


def test_records_of_other_weights_or_edited_ones_are_refused(
    model: nn.Module, record: Any, tmp_path: Path
) -> None:
    def refused(records: list[Any], message: str, of: nn.Module = model) -> None:
        with pytest.raises(CurvactError, match=message) as error:
            save_pretrained(of, tmp_path / "m", architecture=ARGUMENTS, records=records)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "m").exists()

    refused([record], "is of other weights", build(**ARGUMENTS))
    refused([{**record.model_dump(mode="json"), "robust_accuracy": 0.987}], "does not fit its flags")
    refused([{"robust_accuracy": 1.0}], "is no evaluation record")
    refused([tmp_path / "nowhere.json"], "cannot read the record")
    (tmp_path / "x.json").write_text("{")
    refused([tmp_path / "x.json"], "it is not JSON")


def test_what_cannot_be_saved_writes_nothing(model: nn.Module, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my own")
    with pytest.raises(CurvactError, match="has content that is not a model"):
        save_pretrained(model, mine, architecture=ARGUMENTS)
    assert (mine / "README.md").read_text() == "my own"
    with pytest.raises(CurvactError, match="needs architecture="):
        save_pretrained(model, tmp_path / "m")
    with pytest.raises(CurvactError, match="not those of its architecture"):
        save_pretrained(model, tmp_path / "m", architecture={**ARGUMENTS, "width": 3})
    with pytest.raises(CurvactError, match="no architecture is named None"):
        save_pretrained(model, tmp_path / "m", architecture={})
    with pytest.raises(CurvactError, match=r"no checkpoint file .*best\.safetensors"):
        save_pretrained(tmp_path, tmp_path / "m")
    with pytest.raises(CurvactError, match="cannot be written as JSON"):
        save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS, about={"x": object()})
    assert not (tmp_path / "m").exists()


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no model"),
        (lambda f: (f / "config.json").write_text("{"), "does not describe a model"),
        (lambda f: (f / "config.json").write_text("[1]"), "does not describe a model"),
        (lambda f: _edit(f, library="transformers"), "does not describe a model"),
        (lambda f: _edit(f, activation=3), "does not describe a model"),
        (lambda f: _edit(f, architecture={"name": ["mini_resnet"]}), "lacks its name"),
        (lambda f: _edit(f, architecture={"name": "resnet19"}), "unknown model 'resnet19'"),
        (
            lambda f: _edit(f, architecture={**ARGUMENTS, "mean": ["a"]}),
            "finite numbers, one for each channel",
        ),
        (lambda f: _edit(f, architecture={**ARGUMENTS, "width": 4}), "does not fit its architecture"),
        (lambda f: _edit(f, weights_sha256="0" * 64), "is not the file of weights that"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04K*."), "truncated or damaged"),
    ],
)
def test_damaged_and_foreign_folders(damage: Any, message: str, model: nn.Module, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS)
    damage(folder)
    with pytest.raises(CurvactError, match=message) as error:
        from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_text_of_strangers_stays_text() -> None:
    config = {
        "name": "a\n# b <script>`x`",
        "architecture": {"name": "x | y"},
        "activation": {
            "name": "silu",
            "curvature": [0.5, 1.0],
            "parameters": 0,
            "mark": "",
            "scope": "layer",
        },
        "measured": [],
        "spec": {"about": "```\n# no"},
        "weights_sha256": "0",
    }
    lines = model_card(config).splitlines()
    assert "# a # b &lt;script>ʼxʼ" in lines
    assert sum(line.startswith("# ") for line in lines) == 1
    assert sum(line.startswith("```") for line in lines) == 6
    assert "κ = sup|σ″|: 0.5 to 1" in model_card(config)


def test_without_huggingface_hub_folders_work_and_repositories_say_what_is_missing(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hub_class.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    from_pretrained(save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS))
    with pytest.raises(CurvactError, match=r"needs huggingface_hub: pip install 'curvact\[hub\]'"):
        from_pretrained("owner/name")
    with pytest.raises(CurvactError, match="which is owner/name"):
        from_pretrained("nowhere")


def test_the_mixin_of_huggingface_hub(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own from_pretrained, save_pretrained and push_to_hub, with everything but the network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub.hub_class.cache_clear()
    folder = save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS)
    loaded = hub.hub_class().from_pretrained(str(folder))
    assert isinstance(loaded, huggingface_hub.ModelHubMixin)
    x = torch.rand(2, 1, 8, 8, generator=generator(0, "images"))
    assert torch.equal(loaded(x), model(x))
    loaded.save_pretrained(tmp_path / "n")
    assert {f.name for f in (tmp_path / "n").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "n" / name).read_bytes() == (folder / name).read_bytes()
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, token: Any = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> str:
            pushed.update({repo_id: {f.name for f in Path(folder_path).iterdir()}})
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    loaded.push_to_hub("owner/name")
    assert pushed == {"owner/name": FILES}
    with torch.no_grad():
        loaded.model.act.alpha.add_(1)
    with pytest.raises(CurvactError, match="changed after they were described"):
        loaded.save_pretrained(tmp_path / "o")


def test_a_repository_comes_from_the_cache(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that was made before, offline; one that was not is one line."""
    pytest.importorskip("huggingface_hub")
    hub.hub_class.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit, repo = "0" * 40, tmp_path / "cache" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    save_pretrained(model, repo / "snapshots" / commit, architecture=ARGUMENTS)
    x = torch.rand(2, 1, 8, 8, generator=generator(0, "images"))
    assert torch.equal(from_pretrained("owner/name", cache_dir=tmp_path / "cache")(x), model(x))
    with pytest.raises(
        CurvactError, match="no folder owner/other, and the Hugging Face Hub did not give it"
    ) as error:
        from_pretrained("owner/other", cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_the_type_that_was_saved_comes_back(kind: torch.dtype, model: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        model.act.alpha.add_(1e-3)
    model = model.to(kind)
    if kind == torch.float64:
        with torch.no_grad():
            model.act.alpha.add_(1e-12)  # which float32 does not have
    folder = save_pretrained(model, tmp_path / "m", architecture=ARGUMENTS)
    again = from_pretrained(folder)
    assert model_hash(again) == model_hash(model) == read_description(folder)["weights_sha256"]
    assert all(p.dtype == kind and p.requires_grad for p in again.parameters())
    x = torch.rand(2, 1, 8, 8, generator=generator(0, "images")).to(kind)
    assert torch.equal(again(x), model(x))


def test_what_is_said_of_a_model_is_checked_before_anything_is_written(
    model: nn.Module, tmp_path: Path
) -> None:
    for arguments, message in (
        ({"about": {"data": "digits"}}, r"about\['data'\]='digits' in save_pretrained: it must be a dict"),
        ({"about": {"x": float("nan")}}, "^x in the description of the model cannot be written as JSON"),
        ({"about": {"spec": {"y": [float("inf")]}}}, "^spec in the description .* cannot be written"),
        ({"about": ["x"]}, r"about=\['x'\] in save_pretrained: it must be a dict"),
        ({"architecture": ["x"]}, r"architecture=\['x'\] in save_pretrained: it must be a dict"),
        ({"about": {"architecture": "x"}}, "it must be a dict"),
    ):
        with pytest.raises(CurvactError, match=message) as error:
            save_pretrained(model, tmp_path / "m", **{"architecture": ARGUMENTS, **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not (tmp_path / "m").exists()


def test_a_checkpoint_that_only_names_its_data(model: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net.safetensors", model, ARGUMENTS, {"data": "digits"})
    folder = save_pretrained(tmp_path / "net.safetensors", tmp_path / "m")
    assert "trained on digits" in (folder / "README.md").read_text()
