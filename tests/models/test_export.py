"""Networks with our activations leave torch: fx, TorchScript, torch.export, ONNX and quantization."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curvact.activations import activation, swap_activations
from curvact.models import build

ACTIVATIONS = [
    "rctaf(curvature=6, beta=1)",
    "squareplus(curvature=2, centered=True)",
    "swish(learnable=True)",
    "gelu",
    "pssilu(learnable=True)",
    "prelu",
    "tanh",
    "celu",
    "sparta(variant=agnostic)",
    "relu",
]


def network(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), activation(name), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Softmax(1)
    ).eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def agrees(exported: object, model: nn.Module, *, atol: float = 1e-6) -> None:
    """At another number of images than the one that was traced."""
    assert callable(exported)
    with torch.no_grad():
        torch.testing.assert_close(exported(images(5)), model(images(5)), rtol=0, atol=atol)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fx_sees_one_module(name: str) -> None:
    model = network(name)
    graph = torch.fx.symbolic_trace(model)
    agrees(graph, model, atol=0)
    assert graph.get_submodule("1") is model[1]
    graph.train()
    x = images().requires_grad_()
    graph(x).square().sum().backward()
    assert all(p.grad is not None for p in graph.parameters())


@pytest.mark.parametrize("name", ["mini_resnet", "small_cnn", "vit", "resnet18"])
def test_fx_traces_our_networks(name: str) -> None:
    sizes = {"resnet18": {"width": 2}, "vit": {"width": 6, "depth": 1}}.get(name, {"width": 2})
    model = build(name, activation="rctaf(curvature=6)", channels=1, size=8, **sizes).eval()
    agrees(torch.fx.symbolic_trace(model), model, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mini_resnet", "vit"])
def test_our_networks_are_traced_and_exported(name: str) -> None:
    sizes = {"vit": {"width": 6, "depth": 1}}.get(name, {"width": 2})
    model = build(name, activation="rctaf(curvature=6)", channels=1, size=8, **sizes).eval()
    agrees(torch.jit.trace(model, images(2)), model)
    count = torch.export.Dim("count", min=1, max=100)
    agrees(torch.export.export(model, (images(),), dynamic_shapes=({0: count},)).module(), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_torchscript_is_saved_and_loaded(name: str, way: str) -> None:
    model = network(name)
    if way == "trace":
        made = torch.jit.trace(model, images(2))
    else:
        made = torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(made, file)
    file.seek(0)
    again = torch.jit.load(file)
    agrees(again, model)
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["rctaf(curvature=6, beta=1)", "pssilu(learnable=True)"])
def test_torch_export(name: str) -> None:
    model = network(name)
    count = torch.export.Dim("count", min=1, max=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        program = torch.export.export(model, (images(),), dynamic_shapes=({0: count},))
    agrees(program.module(), model)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(tmp_path: Path, dynamo: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    model, file = network("rctaf(curvature=6, beta=1)"), tmp_path / "a.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("count", min=1, max=100)},)
            torch.onnx.export(model, (images(),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "count"}}
            torch.onnx.export(model, (images(),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = runtime.InferenceSession(str(file))
    key = session.get_inputs()[0].name
    agrees(lambda x: torch.from_numpy(session.run(None, {key: x.numpy()})[0]), model, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantization_after_a_swap() -> None:
    """Convolution and linear layer in 8 bits; the activation stays in float32 between them."""
    quantize = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    swap_activations(model, "relu", "rctaf(curvature=6)")
    engines = torch.backends.quantized.supported_engines
    engine = next((e for e in ("x86", "fbgemm", "qnnpack") if e in engines), None)
    if engine is None:
        pytest.skip("no engine for quantized operations here")
    prepared = quantize.prepare_fx(model, get_default_qconfig_mapping(engine), (images(),))
    prepared(images(64))
    quantized = quantize.convert_fx(prepared)
    assert any("quantized" in type(m).__module__ for m in quantized.modules())
    agrees(quantized, model, atol=0.05)
