"""`curvact analyze`: tables, pictures and JSON of every analysis; bad input is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curvact.files
from curvact.analysis import Loss, diagonal_norms
from curvact.attacks import ThreatModel
from curvact.data import load
from curvact.errors import CurvactError
from curvact.files import with_checksum
from curvact.lab.checkpoints import open_checkpoint
from curvact.lab.record import model_hash
from curvact.lab.run import execute
from curvact.models import build
from curvact.models.checkpoint import save_checkpoint
from curvact.random import generator
from curvact.training import Recipe, fit

ABOUT = {"data": {"name": "digits", "size": None}, "threat_model": {"norm": "linf", "epsilon": 0.1}}
HESSIAN = (
    "--n",
    8,
    "--probes",
    8,
    "--attack",
    "pgd-2",
    "--eigenvalues",
    1,
    "--density-probes",
    1,
    "--deflation",
    2,
)


Run = Callable[..., Any]


@pytest.fixture
def run(curvact: Run) -> Run:
    return partial(curvact, "analyze")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`silu/start` (untrained), `silu/best` (after an epoch) and `relu/best` (untrained)."""
    root = tmp_path_factory.mktemp("runs")
    for name, epochs in (("silu", 1), ("relu", 0)):
        arguments = {"name": "mini_resnet", "activation": name, "channels": 1, "width": 2}
        model = build(**arguments, generator=generator(3, "initialization"))
        (root / name).mkdir()
        save_checkpoint(root / name / "start.safetensors", model, arguments, ABOUT)
        if epochs:
            fit(
                model,
                load("digits"),
                Recipe(objective="standard", epochs=epochs),
                ThreatModel("linf", 0.1),
                seed=0,
            )
        save_checkpoint(root / name / "best.safetensors", model, arguments, ABOUT)
    return root


@pytest.fixture
def silu(trained: Path) -> Path:
    return trained / "silu" / "best.safetensors"


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def whole(folder: Path) -> None:
    """Every picture is one, and every JSON says where its numbers come from."""
    assert not list(folder.glob(".*"))
    for path in folder.iterdir():
        magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!", ".json": b"{"}[path.suffix]
        assert path.read_bytes().startswith(magic), path
        if path.suffix == ".json":
            record = read(path)
            assert record["schema"] == 1
            assert record["seed"] == record["config"]["seed"]
            assert record["seconds"] > 0
            assert record["environment"]["torch"] == torch.__version__
            assert path.name.startswith(record["analysis"])


def test_hessian(run: Run, silu: Path, tmp_path: Path) -> None:
    done = run("hessian", silu, *HESSIAN, "--density-steps", 12, "--seed", 5, "--out", tmp_path)
    assert done.code == 0, done.err
    pictures = [
        f"hessian-silu-best-{part}.{end}" for part in ("density", "norms", "split") for end in ("png", "svg")
    ]
    assert written(tmp_path) == ["hessian-silu-best-density.png", *pictures[1:], "hessian-silu-best.json"]
    whole(tmp_path)
    record = read(tmp_path / "hessian-silu-best.json")
    model = open_checkpoint(silu).model
    images = load("digits").train.first(8)
    assert record["models"][0]["sha256"] == model_hash(model)
    assert record["data"] == {"name": "digits/train", "sha256": images.sha256, "count": 8}
    assert record["threat_model"] == {"norm": "linf", "epsilon": 0.1}
    assert record["config"]["what"] == "norms,split,spectrum"
    assert record["config"]["checkpoints"] == [str(silu)]
    assert record["result"]["excluded"] == 0
    total = sum(p.numel() for p in model.parameters())
    losses = record["result"]["losses"]
    with torch.no_grad():
        clean = float(F.cross_entropy(model(images.inputs()), images.labels))
    assert losses["clean"]["norms"]["loss"] == pytest.approx(clean, rel=1e-5)
    assert losses["adversarial"]["norms"]["loss"] > clean
    for entry in losses.values():
        assert entry["norms"]["parameters"] == total
        assert set(entry["norms"]["layers"]) == {name for name, _ in model.named_parameters()}
        split = entry["split"]
        assert split["holds"]
        assert split["sites"] == ["act", "stages.0.act1", "stages.0.act2", "stages.1.act1", "stages.1.act2"]
        for part in (split["total"], *split["layers"].values()):
            assert part["base_share"]["value"] + part["curvature_share"]["value"] == pytest.approx(
                1, abs=1e-4
            )
        # Ritz values of a Krylov space lie within the spectrum; 1e-3: the tolerance of the
        # eigenvalue itself, float32.
        nodes = np.array(entry["spectrum"]["density"]["nodes"])
        assert nodes.max() <= entry["spectrum"]["largest"][0] * (1 + 1e-3)
        assert nodes.min() >= entry["spectrum"]["smallest"][0] * (1 + 1e-3)
        assert np.sum(entry["spectrum"]["density"]["weights"]) == pytest.approx(1, abs=1e-9)
    for text in (
        "whole network",
        "‖θ²⊙diag H‖",
        "g = diag GGN",
        "spectrum of H",
        "stages.1.shortcut.0.weight",
    ):
        assert text in done.out
    assert "…" not in done.out


def test_hessian_exactly_and_only_some_parts(run: Run, save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(tmp_path / "net.safetensors", architecture={"width": 1})
    out = tmp_path / "out"
    done = run("hessian", path, "--n", 4, "--what", "norms", "--exact", "--attack", "pgd-1", "--out", out)
    assert done.code == 0, done.err
    assert written(out) == ["hessian-net-norms.png", "hessian-net-norms.svg", "hessian-net.json"]
    losses = read(out / "hessian-net.json")["result"]["losses"]
    images = load("digits").train.first(4)
    truth = diagonal_norms(Loss(open_checkpoint(path).model, images.inputs(), images.labels), exact=True)
    assert list(losses["clean"]) == ["norms"]
    for name in ("rms", "gradient_relative", "scale_invariant"):
        found = losses["clean"]["norms"][name]
        assert found["standard_error"] == 0
        assert found["value"] == pytest.approx(getattr(truth, name).value, rel=1e-6)
    assert losses["adversarial"]["norms"]["rms"]["value"] != losses["clean"]["norms"]["rms"]["value"]


def test_parameters_of_activations_are_left_out(run: Run, tmp_path: Path) -> None:
    arguments = {"name": "mini_resnet", "activation": "pssilu(learnable=True)", "channels": 1, "width": 2}
    model = build(**arguments, generator=generator(0, "initialization"))
    save_checkpoint(tmp_path / "net.safetensors", model, arguments, ABOUT)
    own = sum(p.numel() for name, p in model.named_parameters() if ".alpha" in name or ".beta" in name)
    assert own > 0
    path = tmp_path / "net.safetensors"
    assert run("hessian", path, *HESSIAN, "--what", "norms").code == 0
    record = read(tmp_path / "analysis" / "hessian-net.json")["result"]
    assert record["excluded"] == own
    assert (
        record["losses"]["clean"]["norms"]["parameters"] == sum(p.numel() for p in model.parameters()) - own
    )
    assert run("flatness", path, "--n", 8, "--what", "average", "--draws", 2, "--attack", "pgd-1").code == 0
    record = read(tmp_path / "analysis" / "flatness-net.json")["result"]
    normalization = sum(
        p.numel() for name, p in model.named_parameters() if "bn" in name or "shortcut.1" in name
    )
    moved = sum(p.numel() for p in model.parameters()) - own - normalization
    assert record["average"]["parameters"] == moved


def test_flatness_of_two_models(run: Run, trained: Path, silu: Path, tmp_path: Path) -> None:
    small = ("--n", 16, "--attack", "pgd-2", "--draws", 3, "--steps", 2, "--restarts", 2)
    done = run("flatness", silu, trained / "relu" / "best.safetensors", *small, "--out", tmp_path)
    assert done.code == 0, done.err
    stems = ("flatness-relu-best", "flatness-silu-best", "flatness-silu-best+1")
    assert written(tmp_path) == sorted(
        [f"{stem}.{end}" for stem in stems for end in ("png", "svg")]
        + ["flatness-relu-best.json", "flatness-silu-best.json"]
    )
    whole(tmp_path)
    for name in ("silu-best", "relu-best"):
        record = read(tmp_path / f"flatness-{name}.json")
        assert [m["name"] for m in record["models"]] == [name]
        average, worst = record["result"]["average"], record["result"]["worst"]
        assert average["flatness"] == pytest.approx(np.mean(average["losses"]) - average["loss"], rel=1e-6)
        assert average["radius"], worst["radius"] == (0.5, 0.003)
        assert len(average["losses"]) == 3
        assert len(worst["losses"]) == 2
        assert worst["flatness"] >= 0
    assert record["data"]["name"] == "digits/test"
    assert "silu" in done.out
    assert "relu" in done.out


def test_smoothness(run: Run, trained: Path, silu: Path, tmp_path: Path) -> None:
    small = ("--n", 8, "--attack", "pgd-2", "--directions", 2, "--relative-norms", "0.01,0.1")
    other = trained / "relu" / "best.safetensors"
    done = run(
        "smoothness",
        silu,
        other,
        *small,
        "--norm",
        "l2",
        "--epsilon",
        "0.8",
        "--match",
        "corners",
        "--out",
        tmp_path,
    )
    assert done.code == 0, done.err
    whole(tmp_path)
    assert "smoothness-silu-best+1-tradeoff.png" in written(tmp_path)
    result = read(tmp_path / "smoothness-silu-best.json")["result"]
    # 8×8 images: the L2 ball of radius 0.8 goes through the corners of the cube of 0.8/√64.
    assert result["matching"]["linf"] == pytest.approx(0.1)
    assert result["matching"]["l2"] == pytest.approx(0.8)
    assert {(line["attack"], line["relative_norm"]) for line in result["lines"]} == {
        (attack, norm) for attack in ("clean", "linf", "l2") for norm in (0.01, 0.1)
    }
    assert all(row["drift"] == 0 for row in result["rows"] if row["attack"] == "clean")
    assert all(row["drift"] > 0 for row in result["rows"] if row["attack"] != "clean")
    assert "linearity_error linf" in result["flatness"]["measures"]
    assert "top eigenvalue" in done.out


def test_smoothness_along_a_trajectory(run: Run, silu: Path, tmp_path: Path) -> None:
    start = silu.with_name("start.safetensors")
    small = ("--n", 8, "--attack", "pgd-2", "--match", "corners", "--trajectory", "--out", tmp_path)
    assert run("smoothness", start, silu, *small).code == 0
    assert written(tmp_path) == [f"smoothness-start+1.{end}" for end in ("json", "png", "svg")]
    record = read(tmp_path / "smoothness-start+1.json")
    assert [m["name"] for m in record["models"]] == ["start", "silu-best"]
    before, after = (open_checkpoint(path).model.state_dict() for path in (start, silu))
    names = {name for name, _ in open_checkpoint(silu).model.named_parameters()}
    step = math.sqrt(sum(float(((after[n].double() - before[n].double()) ** 2).sum()) for n in names))
    assert [row["attack"] for row in record["result"]["rows"]] == ["clean", "linf", "l2"]
    for row in record["result"]["rows"]:
        assert row["step"] == pytest.approx(step, rel=1e-6)
        assert row["ratio"] == pytest.approx(row["difference"] / step, rel=1e-6)


def test_landscape(run: Run, silu: Path, tmp_path: Path) -> None:
    small = ("--n", 8, "--attack", "pgd-1", "--points", 3)
    assert run("landscape", silu, *small, "--surface", "--out", tmp_path / "two").code == 0
    assert written(tmp_path / "two") == sorted(
        ["landscape-silu-best.json"]
        + [f"landscape-silu-best{space}.{end}" for space in ("", "-surface") for end in ("png", "svg")]
    )
    assert run("landscape", silu, *small, "--dimensions", 1, "--out", tmp_path / "one").code == 0
    whole(tmp_path / "two")
    two = read(tmp_path / "two" / "landscape-silu-best.json")["result"]
    one = read(tmp_path / "one" / "landscape-silu-best.json")["result"]
    images = load("digits").train.first(8)
    with torch.no_grad():
        loss = float(F.cross_entropy(open_checkpoint(silu).model(images.inputs()), images.labels))
    assert two["clean"][1][1] == pytest.approx(loss, rel=1e-5)
    # The same first direction: one dimension is the middle column of two.
    assert [row[0] for row in one["clean"]] == pytest.approx([row[1] for row in two["clean"]], rel=1e-6)
    assert all(
        bad >= good
        for a, b in zip(two["adversarial"], two["clean"], strict=True)
        for bad, good in zip(a, b, strict=True)
    )


def test_shape_of_two_models_is_one_table(run: Run, trained: Path, silu: Path, tmp_path: Path) -> None:
    other = trained / "relu" / "best.safetensors"
    small = ("--n", 20, "--attack", "pgd-2", "--radius-steps", 2, "--lipschitz-steps", 2)
    done = run("shape", silu, other, *small, "--largest-radius", "1/5", "--out", tmp_path)
    assert done.code == 0, done.err
    assert written(tmp_path) == [f"shape-silu-best+1.{end}" for end in ("json", "png", "svg")]
    whole(tmp_path)
    record = read(tmp_path / "shape-silu-best+1.json")
    rows = {row["model"]: row for row in record["result"]["rows"]}
    assert record["result"]["settings"]["largest_radius"] == 0.2
    assert rows["relu-best"]["kink"]
    assert rows["silu-best"]["max_curvature"] == pytest.approx(0.5)
    images = load("digits").test.first(20)
    with torch.no_grad():
        right = open_checkpoint(silu).model(images.inputs()).argmax(1) == images.labels
    assert rows["silu-best"]["clean_accuracy"] == pytest.approx(float(right.double().mean()))
    assert "∞" in done.out


def test_curvature_before_and_after(run: Run, silu: Path, tmp_path: Path) -> None:
    start = silu.with_name("start.safetensors")
    assert run("curvature", silu, "--n", 40, "--out", tmp_path / "now").code == 0
    assert run("curvature", silu, "--n", 40, "--before", start, "--out", tmp_path / "saved").code == 0
    assert run("curvature", silu, "--n", 40, "--initial-seed", 3, "--out", tmp_path / "built").code == 0
    whole(tmp_path / "now")
    now, saved, built = (
        read(tmp_path / f / "curvature-silu-best.json")["result"] for f in ("now", "saved", "built")
    )
    # By hand: the pre-activations of the first call are the outputs of the first batch norm; κ of
    # SiLU is 1/2.
    model = open_checkpoint(silu).model
    seen: list[torch.Tensor] = []
    model.get_submodule("bn").register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        model(load("digits").train.first(40).inputs())
    a = seen[0].double().numpy()
    spread = math.sqrt(np.mean([np.var(a[:, channel]) for channel in range(a.shape[1])]))
    assert now["sites"][0]["effective"] == pytest.approx(spread / 2, rel=1e-5)
    assert saved == built
    assert set(saved["ratio"]) == {site["site"] for site in now["sites"]}
    assert saved["after"]["batch_statistics"]


def test_results_lie_beside_their_checkpoints_and_repeat(run: Run, silu: Path) -> None:
    folder = silu.parent / "analysis"
    first = run("curvature", silu, "--n", 8)
    assert first.code == 0, first.err
    assert str(folder) in first.out
    before = {p.name: p.read_bytes() for p in folder.glob("curvature*") if p.suffix != ".json"}
    result = read(folder / "curvature-silu-best.json")["result"]
    assert run("curvature", silu, "--n", 8).code == 0
    assert before == {p.name: p.read_bytes() for p in folder.glob("curvature*") if p.suffix != ".json"}
    assert read(folder / "curvature-silu-best.json")["result"] == result


def test_a_run_folder_stands_for_its_weights(run: Run, save: Callable[..., Path], tmp_path: Path) -> None:
    for seed, name in enumerate(("best", "last")):
        save(tmp_path / "run" / f"{name}.safetensors", seed=seed)
        assert run("curvature", tmp_path / "run", "--n", 4, "--weights", name).code == 0
        record = read(tmp_path / "run" / "analysis" / f"curvature-run-{name}.json")
        model = open_checkpoint(tmp_path / "run" / f"{name}.safetensors").model
        assert record["models"][0]["sha256"] == model_hash(model)
    refused = run("curvature", tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"no checkpoint file {tmp_path / 'best.safetensors'}" in refused.err
    assert "--weights first; allowed are best, last" in run("curvature", tmp_path, "--weights", "first").err


def test_names_tell_checkpoints_apart(run: Run, trained: Path, tmp_path: Path) -> None:
    paths = [trained / name / "start.safetensors" for name in ("silu", "relu")]
    assert run("curvature", *paths, "--n", 8, "--out", tmp_path).code == 0
    assert [n for n in written(tmp_path) if n.endswith("json")] == [
        "curvature-relu-start.json",
        "curvature-silu-start.json",
    ]


BAD: list[tuple[tuple[object, ...], str]] = [
    (("hessian", "nothing.safetensors"), "no checkpoint file nothing.safetensors"),
    (("hessian", "CK", "--what", "norm"), "names 'norm' in curvact analyze hessian; did you mean 'norms'?"),
    (
        ("hessian", "CK", "--what", ","),
        "--what=[] in curvact analyze hessian: give one or more of norms, split",
    ),
    (("hessian", "CK", "--probes", 3, "--n", 4), "probes=3"),
    (("hessian", "CK", "--n", 4, "--relative-error", -1), "relative_error=-1.0"),
    (("hessian", "CK", "--eigenvalues", 0), "--eigenvalues 0: must be >= 1"),
    (("hessian", "CK", "--split", "tset"), "--split tset; did you mean 'test'?"),
    (("hessian", "CK", "--n", 0), "--n 0: must be >= 1"),
    (("hessian", "CK", "--batch-size", 0), "--batch-size 0: must be >= 1"),
    (("hessian", "CK", "--attack", "pgd-0"), "--attack pgd-0: give at least one step"),
    (("hessian", "CK", "--data", "digit"), "unknown data set 'digit'; did you mean 'digits'?"),
    (("hessian", "CK", "--epsilon", "8/0"), "--epsilon 8/0"),
    (("hessian", "CK", "--epsilon", 0), "epsilon 0 in curvact analyze hessian"),
    (("hessian", "CK", "--norm", "l3"), "norm='l3' of a threat model"),
    (("hessian", "CK", "--device", "gpu"), "--device gpu: allowed are auto, cpu, cuda and cuda:N"),
    (("hessian", "CK", "--device", "cuda:99"), "--device cuda:99: torch sees"),
    (("hessian", "CK", "CK"), "is given twice"),
    (("flatness", "CK", "--draws", 1), "--draws 1: must be >= 2"),
    (("flatness", "CK", "--radius", "nan"), "--radius nan: must be a finite number > 0"),
    (("smoothness", "CK", "--match", "los"), "--match los; did you mean 'loss'?"),
    (("smoothness", "CK", "--relative-norms", "0.1;1"), "--relative-norms 0.1;1: numbers with commas"),
    (("smoothness", "CK", "--relative-norms", "0.1,-1"), "--relative-norms -1: must be a finite number > 0"),
    (("smoothness", "CK", "--trajectory"), "--trajectory with 1 checkpoint"),
    (
        ("smoothness", "CK", "--norm", "l1"),
        "--norm l1 in curvact analyze smoothness: it compares linf and l2",
    ),
    (("landscape", "CK", "--dimensions", 3), "--dimensions 3: allowed are 1 and 2"),
    (("landscape", "CK", "--points", 4), "--points 4: an odd number from 3"),
    (("landscape", "CK", "--surface", "--dimensions", 1), "--surface with --dimensions 1"),
    (("shape", "CK", "--largest-radius", "-1"), "--largest-radius -1: a finite number > 0"),
    (
        ("curvature", "CK", "--before", "CK", "--initial-seed", 0),
        "--before and --initial-seed: give one of them",
    ),
    (("curvature", "CK", "--before", "nothing.safetensors"), "no checkpoint file nothing.safetensors"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda v: None if isinstance(v, str) else " ".join(map(str, v))
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, silu: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    out = tmp_path / "new" / "folder"
    done = run(*(silu if word == "CK" else word for word in arguments), "--out", out)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert written(tmp_path) == []


def test_what_the_checkpoint_does_not_say_has_to_be_given(run: Run, tmp_path: Path, silu: Path) -> None:
    sidecar = read(silu.with_suffix(".json"))
    path = tmp_path / "net.safetensors"
    path.write_bytes(silu.read_bytes())

    def says(**changes: Any) -> None:
        kept = {key: value for key, value in {**sidecar, **changes}.items() if value is not None}
        path.with_suffix(".json").write_text(json.dumps(with_checksum(kept)))

    says(data=None)
    assert "does not say its data set: give --data" in run("shape", path).err
    says(threat_model=None)
    assert "does not say its epsilon: give --epsilon" in run("shape", path).err
    says(data="digits")
    assert 'data="digits": expected such as' in run("shape", path).err
    says(threat_model={"epsilon": "much"})
    assert 'threat_model={"epsilon": "much"}: epsilon=\'much\' of a threat model' in run("shape", path).err
    says(threat_model={"norm": "linf", "epsilon": 0.2})
    assert "differ in their epsilon: give --epsilon" in run("shape", path, silu).err
    says(data={"name": "digits", "size": 10})
    assert "differ in their data set: give --data" in run("shape", path, silu).err
    assert written(tmp_path) == ["net.json", "net.safetensors"]


def test_images_that_do_not_fit(run: Run, tmp_path: Path) -> None:
    arguments = {"name": "mini_resnet", "activation": "silu", "width": 2}
    for name, more in (("colour", {"channels": 3}), ("few", {"channels": 1, "classes": 4})):
        save_checkpoint(
            tmp_path / f"{name}.safetensors", build(**arguments, **more), {**arguments, **more}, ABOUT
        )
    assert (
        "does not take the images of digits/train, 1×8×8"
        in run("curvature", tmp_path / "colour.safetensors").err
    )
    assert "whose labels go up to 9" in run("curvature", tmp_path / "few.safetensors").err
    assert not (tmp_path / "analysis").exists()


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    run: Run, silu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("curvact.analysis.landscape.loss_landscape", lambda *_, **__: pytest.fail("worked"))
    done = run("landscape", silu, "--out", tmp_path / "file" / "deeper")
    assert done.code == 2
    assert f"{tmp_path / 'file'} is no folder" in done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_what_fails_on_the_way_leaves_nothing(
    run: Run, trained: Path, silu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curvact.lab.analyses as analyses

    real, calls = analyses.average_flatness, []

    def second_fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise CurvactError("the loss is not finite")
        return real(*arguments, **options)

    monkeypatch.setattr(analyses, "average_flatness", second_fails)
    small = ("--n", 4, "--what", "average", "--draws", 2, "--attack", "pgd-1", "--out", tmp_path / "out")
    done = run("flatness", silu, trained / "relu" / "best.safetensors", *small)
    assert (done.code, done.out) == (2, "")
    assert done.err == "curvact: the loss is not finite\n"
    assert written(tmp_path) == []


def test_a_full_disk_leaves_whole_files_only(
    run: Run, silu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = curvact.files.atomic_write

    def full(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise CurvactError(f"disk full while writing {path}")
        real(path, content)

    monkeypatch.setattr(curvact.files, "atomic_write", full)
    done = run("curvature", silu, "--n", 4, "--out", tmp_path)
    assert done.code == 2
    assert done.err == f"curvact: disk full while writing {tmp_path / 'curvature-silu-best.json'}\n"
    whole(tmp_path)


def test_trajectories_of_two_runs(run: Run, run_spec: Callable[..., Any], tmp_path: Path) -> None:
    """`logging.keep` leaves the weights of epochs. The checkpoints of one folder are one run.

    Their places are gradient evaluations.
    """
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        training = {"epochs": 2, "learning_rate": rate}
        execute(run_spec(training=training, logging={"keep": 1}), tmp_path / name)
    paths = [
        tmp_path / name / f"epoch-{epoch:04d}.safetensors" for name in ("slow", "fast") for epoch in (1, 2)
    ]
    small = ("--n", 8, "--attack", "pgd-1", "--match", "corners", "--trajectory", "--out", tmp_path / "out")
    done = run("smoothness", *paths, *small)
    assert done.code == 0, done.err
    assert "checkpoints of slow" in done.out
    (file,) = (tmp_path / "out").glob("*.json")
    runs = read(file)["result"]["runs"]
    assert set(runs) == {"slow", "fast"}
    steps = {name: found["rows"][0]["step"] for name, found in runs.items()}
    assert steps["fast"] > steps["slow"]
    spent = read(paths[1].with_suffix(".json"))["gradient_evaluations"]
    assert runs["slow"]["rows"][0]["position"] == spent  # of the second point
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    refused = run("smoothness", *paths[:3], *small)
    assert refused.code == 2
    assert "fast: give at least 2 of each run" in refused.err


def test_numbers_too_large_to_draw_are_written_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 1e6: eigenvalues of 1e32, whose squares float32 does not have."""
    arguments = {"name": "mini_resnet", "activation": "silu", "channels": 1, "width": 1}
    model = build(**arguments, generator=generator(3, "initialization"))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():
                module.weight.mul_(1e6)
    save_checkpoint(tmp_path / "huge.safetensors", model, arguments, ABOUT)
    small = (*HESSIAN, "--density-steps", 12, "--what", "norms,spectrum", "--out", tmp_path / "out")
    done = run("hessian", tmp_path / "huge.safetensors", *small)
    assert done.code == 0, done.err
    assert "• no picture hessian-huge-density: the density of the spectrum is not finite" in done.out
    assert written(tmp_path / "out") == [
        "hessian-huge-norms.png",
        "hessian-huge-norms.svg",
        "hessian-huge.json",
    ]
    whole(tmp_path / "out")
    spectrum = read(tmp_path / "out" / "hessian-huge.json")["result"]["losses"]["clean"]["spectrum"]
    assert abs(spectrum["trace"]["value"]) > 1e20

    def broken(*_: object) -> None:
        raise ValueError("Axis limits cannot\nbe NaN or Inf")

    monkeypatch.setattr("curvact.lab.report.analysis.hessian.norms_figure", broken)
    done = run("hessian", tmp_path / "huge.safetensors", *small, "--what", "norms", "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert "• no picture hessian-huge-norms: Axis limits cannot be NaN or Inf" in done.out
    assert written(tmp_path / "b") == ["hessian-huge.json"]


def test_batches_of_one_before_and_after_are_one_line(run: Run, tmp_path: Path) -> None:
    arguments = {"name": "resnet18", "activation": "silu", "channels": 1, "width": 2, "size": 8}
    save_checkpoint(tmp_path / "net.safetensors", build(**arguments), arguments, ABOUT)
    small = ("--n", 4, "--initial-seed", 0, "--batch-size", 1, "--out", tmp_path / "out")
    done = run("curvature", tmp_path / "net.safetensors", *small)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "a larger batch_size" in done.err
    assert written(tmp_path / "out") == []
