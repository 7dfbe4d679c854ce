"""The zoo: every network loads without a network connection and is what its record says."""

from __future__ import annotations

import importlib
import runpy
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curvact.activations import activation
from curvact.attacks import ThreatModel, accuracy
from curvact.data import load
from curvact.errors import CurvactError
from curvact.files import hash_of_file
from curvact.lab.spec import read_spec
from curvact.models import ZOO, from_zoo, model_hash, zoo_weights
from curvact.models.checkpoint import read_sidecar

module = importlib.import_module("curvact.models.zoo")
ROOT = Path(__file__).parents[2]
names = pytest.mark.parametrize("name", list(ZOO))
digits = pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.data == "digits"])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@names
@pytest.mark.usefixtures("no_network")
def test_a_network_its_record_and_the_table_agree(name: str) -> None:
    entry, model, weights = ZOO[name], from_zoo(name), zoo_weights(name)
    sidecar = read_sidecar(weights)
    assert not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert sidecar["weights_sha256"] == model_hash(model.state_dict())
    files = sorted(weights.parent.iterdir())
    assert {file.name: hash_of_file(file) for file in files} == entry.sha256
    assert sum(file.stat().st_size for file in files) == entry.size
    assert activation(entry.activation).max_curvature.value == pytest.approx(entry.curvature)
    pgd, whole = sidecar["measured"]
    assert (pgd["clean"], pgd["robust"], pgd["count"]) == (entry.clean, entry.pgd, entry.images)
    assert (whole["clean"], whole["robust"], whole["count"]) == (entry.clean, entry.robust, entry.images)
    assert (whole["norm"], whole["epsilon"], whole["attack"]) == (entry.norm, entry.epsilon, entry.attack)
    assert 0.2 < entry.robust <= entry.pgd < entry.clean
    spec = read_spec(ROOT / "zoo" / f"{name.split('-')[0]}.yaml", [f"activation={entry.activation}"])
    assert spec.id == sidecar["run"], "the spec is not that of the run"
    assert len(sidecar["origin"]["environment"]["commit"]) >= 7
    assert sidecar["cost"]["gradient_evaluations"] > 0


@digits
def test_digits_are_classified_and_attacked_as_recorded(name: str) -> None:
    entry, test = ZOO[name], load("digits").test
    assert len(test) == entry.images, "the test images are those that training has not seen"
    threat = ThreatModel(entry.norm, entry.epsilon)  # type: ignore[arg-type]
    found = accuracy(
        from_zoo(name), test.inputs(), test.labels, "pgd(steps=20, step=0.2)", threat_model=threat
    )
    assert found.clean == entry.clean
    assert found.robust == pytest.approx(entry.pgd, abs=0.02)  # another random start
    assert found.robust >= entry.robust - 0.01


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.data == "fashion-mnist"])
def test_clothes_are_classified_as_recorded(name: str, real_data_root: Path) -> None:
    if not (real_data_root / "fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not here")
    test = load("fashion-mnist", root=real_data_root).test.first(ZOO[name].images)
    with torch.no_grad():
        right = from_zoo(name)(test.inputs()).argmax(1) == test.labels
    assert right.double().mean().item() == pytest.approx(ZOO[name].clean, abs=0.0021)  # two images of 1,000


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "digits-resnet-relu"
    for wrong, message in (
        (
            "digits-resnet-rlu",
            f"the zoo has no network 'digits-resnet-rlu'; did you mean '{name}'.*it has {name}, ",
        ),
        (6, "the zoo has no network 6; it has"),
        (["a"], "the zoo has no network"),
    ):
        with pytest.raises(CurvactError, match=message):
            from_zoo(wrong)  # type: ignore[arg-type]
    with pytest.raises(CurvactError, match="device of from_zoo tpu: allowed are"):
        from_zoo(name, device="tpu")
    content = {file: (zoo_weights(name).parent / file).read_bytes() for file in ZOO[name].sha256}
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(CurvactError, match=f"{name}.safetensors is missing; install curvact again"):
        from_zoo(name)
    for damaged in content:
        (tmp_path / name).mkdir(exist_ok=True)
        for file, data in content.items():
            flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            (tmp_path / name / file).write_bytes(flipped if file == damaged else data)
        with pytest.raises(CurvactError, match=f"{damaged} is damaged: it has another sha256"):
            from_zoo(name)


def test_an_asset_is_downloaded_once_and_checked(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "digits-resnet-relu"
    folder, inside = zoo_weights(name).parent, from_zoo(name).state_dict()
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], packaged=False))
    monkeypatch.setenv("CURVACT_CACHE", str(tmp_path))
    monkeypatch.delenv("CURVACT_ZOO", raising=False)
    with pytest.raises(CurvactError, match="does not come with curvact: set CURVACT_ZOO"):
        from_zoo(name)
    monkeypatch.setenv("CURVACT_ZOO", "ftp://x")
    with pytest.raises(CurvactError, match="CURVACT_ZOO 'ftp://x': an address that begins with http"):
        from_zoo(name)
    monkeypatch.setenv("CURVACT_ZOO", f"http://{'a' * 80}.invalid")  # no such name is possible
    with pytest.raises(CurvactError, match=r"cannot be reached \("):
        from_zoo(name)
    monkeypatch.setenv("CURVACT_ZOO", f"{server.url.replace('//', '//me:secret@')}/v1/")
    with pytest.raises(CurvactError, match=rf"cannot download {name}.* answers 404") as raised:
        from_zoo(name)
    assert "secret" not in str(raised.value)
    server.files = {f"v1/{file.name}": file.read_bytes() for file in folder.iterdir()}
    server.cut = {f"v1/{name}.json"}
    with pytest.raises(CurvactError, match=rf"cannot download {name}\.json of the zoo"):
        from_zoo(name)
    server.cut = set()
    for key, tensor in from_zoo(name).state_dict().items():
        assert torch.equal(tensor, inside[key])
    asked = len(server.asked)
    monkeypatch.delenv("CURVACT_ZOO")
    from_zoo(name)
    assert len(server.asked) == asked
    cached = tmp_path / "zoo" / name / f"{name}.safetensors"
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(CurvactError, match="set CURVACT_ZOO"):
        from_zoo(name)
    monkeypatch.setenv("CURVACT_ZOO", f"{server.url}/v1")
    from_zoo(name)
    assert len(server.asked) == asked + 1


def test_the_package_has_these_files_only_and_stays_small() -> None:
    files = [path for path in module.FOLDER.rglob("*") if path.is_file()]
    assert len(files) == 2 * len(ZOO) + 1
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_the_page_is_what_the_table_says() -> None:
    page = runpy.run_path(str(ROOT / "zoo" / "collect.py"))["page"](ZOO)
    assert page == (ROOT / "docs" / "zoo.md").read_text(), "run `python zoo/collect.py`"
