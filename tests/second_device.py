"""A device that exists only here: torch's backend for Python code, whose tensors are the CPU's in disguise.

Tensors of it and of the CPU do not mix, as with CUDA: what would be made on the wrong device fails. Values
can be read, so whole attacks, trainings, analyses and runs go through. It is a program of its own, because
it changes torch for the rest of the process; test_second_device.py starts it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NAME = "far"
MAY_MIX = ("aten::copy_", "aten::_to_copy")
"""Operations that take tensors of two devices."""
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")
"""Operations whose indices may be on the CPU."""


def install() -> tuple[torch.device, Any]:
    """The device, and a mode in which tensors can be made on it."""
    from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
    from torch.utils._pytree import tree_leaves, tree_map
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    there = torch.device(NAME, 0)

    def is_there(device: Any) -> bool:
        return device is not None and torch.device(device).type == NAME

    class Far(Tensor):
        raw: Tensor
        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

        @staticmethod
        def __new__(cls: Any, raw: Tensor) -> Any:
            layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "layout": raw.layout}
            return Tensor._make_wrapper_subclass(cls, raw.size(), dtype=raw.dtype, device=there, **layout)

        def __init__(self, raw: Tensor) -> None:
            self.raw = raw

        @classmethod
        def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(function, args, kwargs or {})

        # What torch's C++ code does around the dispatcher:
        def tolist(self) -> Any:
            return self.detach().cpu().tolist()

        def new_tensor(self, data: Any, **settings: Any) -> Tensor:
            return make(data, dtype=settings.get("dtype", self.dtype)).to(there)

        def __getitem__(self, index: Any) -> Tensor:
            parts = index if isinstance(index, tuple) else (index,)
            parts = tuple(make(part).to(there) if isinstance(part, list) else part for part in parts)
            return Tensor.__getitem__(self, parts if isinstance(index, tuple) else parts[0])

    def run(function: Any, args: Any, kwargs: Any) -> Any:
        name, device = function._schema.name, kwargs.get("device")
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        far = any(isinstance(a, Far) for a in tensors)
        if far and name not in MAY_MIX:
            if name in INDEXING:
                tensors = [args[0], *args[2:3]]
            if any(not isinstance(a, Far) and a.dim() > 0 for a in tensors):
                raise RuntimeError(f"{name} got tensors of two devices")
        plain, named = tree_map(lambda a: a.raw if isinstance(a, Far) else a, (args, kwargs))
        if device is not None:
            named = {**named, "device": "cpu"}
        out = function(*plain, **named)
        if name == "aten::copy_":
            return args[0]
        if name == "aten::_to_copy" and device is not None:
            out = out.clone() if out is plain[0] else out
            return Far(out) if is_there(device) else out
        if not (far or is_there(device)):
            return out
        out = tree_map(lambda a: Far(a) if isinstance(a, Tensor) and not isinstance(a, Far) else a, out)
        return (
            return_and_correct_aliasing(function, args, kwargs, out) if function._schema.is_mutable else out
        )

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(function, args, kwargs or {})

    class Generator(torch.Generator):
        device = there

    make, view, autocast = torch.tensor, torch.as_tensor, torch.autocast

    def generator(device: Any = "cpu") -> torch.Generator:
        return Generator() if is_there(device) else torch.Generator()

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        made = make(data, **settings)
        return made.to(there) if is_there(device) else made

    def as_tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        made = data if isinstance(data, Far) else view(data, **settings)
        return made.to(there) if is_there(device) else made

    class Torch(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    import curvact.analysis.hessian.straight as straight
    import curvact.random as random

    ours = Torch("torch")
    ours.Generator = generator  # type: ignore[attr-defined]
    random.torch = straight.torch = ours  # type: ignore[attr-defined]
    torch.tensor, torch.as_tensor = tensor, as_tensor
    torch.autocast = lambda kind, *a, **k: (
        contextlib.nullcontext() if kind == NAME else autocast(kind, *a, **k)
    )  # type: ignore[misc,assignment]
    return there, Mode()


def checks(there: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names, and what is run."""
    from lightning_fabric import Fabric
    from lightning_fabric.accelerators import CPUAccelerator
    from lightning_fabric.strategies import SingleDeviceStrategy

    from curvact import activation, analysis, attacks
    from curvact.analysis import Loss
    from curvact.attacks import PGD, ThreatModel
    from curvact.data import load
    from curvact.lab import run as lab_run
    from curvact.lab.record import evaluate
    from curvact.lab.spec import read_spec
    from curvact.models import MiniResNet
    from curvact.random import generator
    from curvact.training import Recipe, fit
    from curvact.training.processes import Compute

    class AnyDevice(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            """The CPU's refuses other devices."""

    def network(name: str = "silu") -> nn.Module:
        random = generator(0, "initialization")
        return MiniResNet(name, channels=1, width=2, blocks=1, generator=random).eval().to(there)

    def fabric() -> Fabric:
        return Fabric(strategy=SingleDeviceStrategy(there, accelerator=AnyDevice()))

    data, model = load("digits").first(train=40, validation=20, test=20), network()
    test = data.test.first(8).to(there)
    x, y, linf = test.inputs(), test.labels, ThreatModel("linf", 0.1)
    threats = {"linf": linf, "l2": ThreatModel("l2", 0.5), "l1": ThreatModel("l1", 3.0)}
    for norm, threat in threats.items():
        for options in ({}, {"restarts": 2}, {"early_stop": True}, {"targets": (y + 1) % 10}):
            random = generator(0, "pgd", device=there)
            yield (
                f"pgd {norm} {list(options)}",
                lambda threat=threat, options=options, random=random: attacks.pgd(
                    model, x, y, threat, steps=2, generator=random, **options
                ),
            )
        for mode in ("plain", "fast"):
            yield (
                f"autoattack {norm} {mode}",
                lambda threat=threat, mode=mode: attacks.ensemble(
                    model,
                    x,
                    y,
                    threat,
                    attacks=["apgd-ce", "fab-t", "square"],
                    steps=12,
                    queries=12,
                    mode=mode,
                ),
            )
        yield (
            f"radius {norm}",
            lambda norm=norm: attacks.minimum_radius(model, x, y, norm=norm, high=1, halvings=2),
        )
    yield "evaluate", lambda: evaluate(model, test, linf, attack="pgd-2")
    yield "corruptions", lambda: attacks.corruption_accuracy(model, test, severities=[1])

    def probes() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    attack = PGD(2).on(linf, lambda device: generator(0, "attack", device=device))
    loss = Loss(model, x, y)
    layers = nn.Linear(64, 3), activation("rctaf(curvature=6)"), nn.Linear(3, 10)
    small = Loss(nn.Sequential(nn.Flatten(), *layers).to(there), x, y)
    yield "diagonal", lambda: analysis.diagonal_norms(small, probes=4, generator=probes())
    yield "diagonal, GGN", lambda: analysis.diagonal_norms(loss, probes=4, generator=probes(), method="ggn")
    yield "trace", lambda: analysis.trace(small, probes=4, generator=probes())
    yield "eigenvalues", lambda: analysis.top_eigenvalues(small, generator=probes())
    yield "density", lambda: analysis.spectral_density(small, generator=probes())
    yield "split", lambda: analysis.diagonal_split(small, probes=4, generator=probes())
    yield "flatness", lambda: analysis.average_flatness(loss, attack)
    yield "worst flatness", lambda: analysis.worst_case_flatness(loss, linf, steps=2, restarts=2)
    yield "landscape", lambda: analysis.loss_landscape(loss, attack)
    yield "input flatness", lambda: analysis.input_flatness(loss, {"linf": linf}, ascent_steps=2)
    yield (
        "smoothness",
        lambda: analysis.smoothness_report(loss, {"pgd": attack}, norms=(0.1,), generator=probes()),
    )
    yield "curvature", lambda: analysis.effective_curvature(network("rctaf(curvature=6)"), x)
    yield "lipschitz", lambda: analysis.empirical_lipschitz(model, x, radius=0.1, steps=2)
    for recipe in (
        {"objective": "trades", "perturbation": "awp", "averaging": "ema"},
        {"optimizer": "entropy-sgd(inner_steps=2)", "crop": 1, "flip": True, "cutout": 2},
    ):
        settings = Recipe(epochs=1, batch_size=20, attack="pgd-1", **recipe)  # type: ignore[arg-type]
        yield (
            f"fit {recipe}",
            lambda settings=settings: fit(network("psilu"), data, settings, linf, compute=Compute(fabric())),
        )
    spec = read_spec(
        "digits",
        [
            "training.epochs=1", "data.train=60", "data.validation=20", "data.test=20", "activation=psilu",
            "evaluation.attack=pgd-2", "evaluation.activations=true", "evaluation.autoattack_images=8",
            "hessian={probes: 4, images: 8, deflation: 1}",
            "analyses={kinds: [hessian, flatness, smoothness], images: 8, probes: 4, attack: pgd-2}",
        ],
    )  # fmt: skip
    lab_run.launched = lambda hardware: contextlib.nullcontext(fabric())  # type: ignore[assignment,misc]
    yield "run", lambda: lab_run.execute(spec, Path(tempfile.mkdtemp()) / "run")


def main() -> int:
    torch.set_num_threads(1)
    there, mode = install()
    failed = 0
    with mode:
        try:
            torch.zeros(2, device=there) + torch.zeros(2)
        except RuntimeError:
            pass
        else:
            print("tensors of two devices mix")
            return 1
        for name, check in checks(there):
            if sys.argv[1:] and not name.startswith(tuple(sys.argv[1:])):
                continue
            try:
                check()
            except Exception as error:
                failed += 1
                own = [f for f in traceback.extract_tb(error.__traceback__) if "/curvact/" in f.filename]
                places = ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in own[-3:])
                print(f"{name}: {type(error).__name__}: {str(error)[:200]} ({places})", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
