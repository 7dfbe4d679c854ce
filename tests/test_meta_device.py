"""No tensor is made on the wrong device, and nothing waits for a device where it need not.

Model and data lie on torch's meta device. Tensors of two devices do not mix there, and whoever looks
at a value fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvact.activations import activation, activation_names
from curvact.analysis import Loss
from curvact.analysis.hessian.ggn import _together, output_hessian
from curvact.attacks import ThreatModel, fgsm, malt_order, pgd
from curvact.attacks.autoattack.apgd import GPU_STRIDE, apgd, targets_of
from curvact.attacks.autoattack.ensemble import Step
from curvact.attacks.autoattack.fab import _boundary, onto_plane
from curvact.attacks.autoattack.square import _propose_l2, _propose_linf
from curvact.attacks.losses import LOSSES
from curvact.attacks.threat import Norm
from curvact.data import Augmentation, Dataset, epoch_batches
from curvact.errors import CurvactError
from curvact.models import MiniResNet, build
from curvact.models.folding import FollowingTwin
from curvact.random import generator
from curvact.training import Recipe
from curvact.training.methods import entropy_sgd
from curvact.training.methods.batch_norm import recalibrate
from curvact.training.objectives import OBJECTIVES
from curvact.training.processes import Compute
from curvact.training.step import Trainer

META = torch.device("meta")
NO_VALUE = (RuntimeError, NotImplementedError)
"""What torch raises where somebody looks at a value of a meta tensor."""


def _model() -> nn.Module:
    return MiniResNet("rctaf(curvature=6)", channels=1, width=2, blocks=1).to(META)


def _small(name: str) -> nn.Module:
    layers = nn.Linear(64, 3), nn.BatchNorm1d(3), activation(name), nn.Linear(3, 4)
    return nn.Sequential(nn.Flatten(), *layers).to(META)


def _batch(side: int = 8, count: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.empty(count, 1, side, side, device=META)
    return x, torch.empty(count, dtype=torch.int64, device=META)


class _AnyDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """The CPU's refuses other devices."""


class _Fabric(Fabric):
    def _validate_setup_optimizers(self, optimizers: Any) -> None:
        """Fabric's refuses the meta device."""


def _fabric() -> Fabric:
    return _Fabric(strategy=SingleDeviceStrategy(META, accelerator=_AnyDevice()))


def test_whoever_looks_at_a_value_fails() -> None:
    """Or these tests could not."""
    for look in (Tensor.item, bool, int, Tensor.nonzero, Tensor.tolist, lambda t: t[t > 0]):
        with pytest.raises(NO_VALUE):
            look(torch.empty(1, device=META))
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(2, device=META) + torch.empty(2)


@pytest.mark.parametrize(("norm", "loss"), [*(("linf", loss) for loss in LOSSES), ("l2", "ce"), ("l1", "ce")])
def test_attacks(norm: Norm, loss: str) -> None:
    (x, y), threat, model = _batch(), ThreatModel(norm, 0.1), _model()
    epsilon = torch.empty(len(x), device=META)
    seen: list[Tensor] = []
    for options in (
        {"start": "gaussian", "keep_best": True, "epsilon": epsilon},
        {"start": x, "targets": y, "project": False, "on_step": lambda step, x_adv, loss: seen.append(loss)},
        {"generator": None if norm == "l1" else torch.Generator(), "noise": 2.0},  # torch has no meta rule
    ):
        assert pgd(model, x, y, threat, steps=2, loss=loss, check=False, **options).is_meta  # type: ignore[arg-type]
    assert fgsm(model, x, y, threat, loss=loss, check=False).is_meta
    assert [part.device for part in seen] == [META] * 2


def test_attacks_that_drop_images_wait() -> None:
    """By design: early_stop once a step, restarts once each. What leaves the batch has to be counted."""
    (x, y), threat, model = _batch(), ThreatModel("linf", 0.1), _model()
    for options in ({"early_stop": True}, {"restarts": 2}):
        with pytest.raises(NO_VALUE):
            pgd(model, x, y, threat, steps=2, check=False, **options)  # type: ignore[arg-type]


METHODS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "averaging": "ema", "clip_norm": 1.0, "beta_clip": 1.0, "beta_penalty": 0.1},
    {"optimizer": "entropy-sgd(inner_steps=1)", "weight_decay_on": "weights"},
    {"optimizer": "entropy-sgd(inner_steps=1, variant=authors)", "averaging": "swa"},
    {"perturbation": "awp"},
    {"averaging": "me-a"},
    {"averaging": "me-a(outer=ema)", "perturbation": "sam"},
    {"perturbation": "sam", "label_smoothing": 0.1},
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("methods", METHODS, ids=str)
def test_a_training_step(monkeypatch: pytest.MonkeyPatch, objective: str, methods: dict[str, Any]) -> None:
    """On 8 pixels the attack is on the network, on 16 on its twin without batch norm."""
    # The twin is compared with the network once, when it is made. A meta generator does not exist.
    monkeypatch.setattr(FollowingTwin, "_agrees", lambda self, example, truth: True)
    monkeypatch.setattr(entropy_sgd, "make_generator", lambda *key, device: generator(*key))
    parts = 2 if not methods else 1
    side = 16 if not methods else 8
    (x, y), model = _batch(side), _model() if side == 16 else _small("psilu")
    attack = {"one": "fgsm", "steps": "pgd-1", "none": "pgd-1"}[OBJECTIVES[objective].attack]
    recipe = Recipe(objective=objective, attack=attack, **methods)
    helper = (_model() if side == 16 else _small("relu")) if OBJECTIVES[objective].needs_helper else None
    trainer = Trainer(
        model, recipe, ThreatModel("linf", 0.1), Compute(accumulate=parts), _fabric(),
        random=torch.Generator(), example=x[:2], helper=helper,
    )  # fmt: skip
    outcome = trainer.step(
        x, y, whole=6, rate=0.1, perturbed="perturbation" in methods, random=torch.Generator(),
        pulled="me-a" in methods.get("averaging", ""),
    )  # fmt: skip
    assert outcome.loss.is_meta
    assert outcome.right.is_meta
    assert (trainer.twin is not None) is (side == 16)
    assert all(p.is_meta for p in model.parameters())
    if "me-a" in methods.get("averaging", ""):
        assert trainer.envelope is not None
        assert trainer.envelope.penalty().is_meta


def test_a_recalibration_of_batch_norm() -> None:
    model = _model()
    recalibrate(model, (_batch()[0] for _ in range(2)))
    assert all(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("name", activation_names())
def test_activations(name: str) -> None:
    module = activation("sparta(channels=3)" if name == "sparta" else name).to(META)
    x = torch.empty(4, 3, 5, 5, device=META, requires_grad=True)
    out = module(x)
    first = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
    if first.requires_grad:
        assert torch.autograd.grad(first.sum(), x, allow_unused=True, materialize_grads=True)[0].is_meta
    assert out.is_meta
    if name != "sparta":  # its gate is no function of one number
        assert module.slope(x.detach()).is_meta
        assert module.curvature(x.detach()).is_meta


@pytest.mark.parametrize(
    "name", ["mlp", "resnet18", "preact_resnet18", "small_cnn", "vgg16_bn", "vit", "wide_resnet"]
)
def test_networks(name: str) -> None:
    settings = {"vit": {"width": 6}, "wide_resnet": {"widen_factor": 1, "depth": 10}}.get(name, {})
    model = build(name, channels=3, classes=4, size=32, activation="silu", **settings).to(META)
    x = torch.empty(2, 3, 32, 32, device=META, requires_grad=True)
    out = model(x)
    assert out.shape == (2, 4)
    assert torch.autograd.grad(out.sum(), x)[0].is_meta


@pytest.fixture
def meta_loss() -> Loss:
    """A loss whose model and data went to the meta device. `Loss` itself wants values: it looks at the
    labels once.
    """
    model = MiniResNet("silu", channels=1, width=2, blocks=1)
    loss = Loss(model, torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    model.to(META)
    loss._source = lambda: iter([_batch()])
    return loss


def test_products_with_the_hessian(meta_loss: Loss) -> None:
    """H v, the part H − GGN, and with both GGN v; a block; and the gradient."""
    with meta_loss.running("test"):
        vector = torch.empty(meta_loss.size, device=META)
        for residual in (False, True):
            for weight, graph in meta_loss.graphs(residual=residual):
                assert graph.product(vector).shape == (meta_loss.size,)
                assert graph.block(0, torch.empty_like(meta_loss.params[0])).is_meta
                assert (graph.gradient * weight).is_meta
        meta_loss.forget()


def test_squares_of_the_generalized_gauss_newton_matrix(meta_loss: Loss) -> None:
    x, _ = _batch()
    with meta_loss.running("test"):
        roots, signs = torch.empty(6, 10, 3, device=META), torch.empty(6, 3, device=META)
        squares, outputs = _together(meta_loss, x, roots, signs)
    assert squares.shape == (meta_loss.size,)
    assert outputs.is_meta


class _Waits(TorchDispatchMode):
    """Counts looks at values."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = function.name() == "aten::index.Tensor" and any(i.dtype == torch.bool for i in args[1])
        self.count += mask or "_local_scalar_dense" in function.name() or "nonzero" in function.name()
        return function(*args, **(kwargs or {}))


def test_the_hessian_of_the_outputs_waits_once() -> None:
    """For its check that no example depends on another; not once for each bit of their number."""
    for count in (2, 40):
        y = torch.arange(count) % 4
        with _Waits() as waits:
            output_hessian(F.cross_entropy, torch.rand(count, 4), y)
        assert waits.count == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_the_batches_of_an_epoch(lazy: bool) -> None:
    """Order and augmentation are drawn on the CPU, so that every device gets the same ones. Images and
    labels are taken on the device of the data.
    """
    images = torch.empty(20, 3, 8, 8, device=META, dtype=torch.float32 if lazy else torch.uint8)
    data = Dataset(
        "d/train",
        images,
        torch.empty(20, dtype=torch.int64, device=META),
        ("a", "b"),
        (0.5,) * 3,
        (0.2,) * 3,
        "",
    )
    for x, y in epoch_batches(data, 8, seed=0, epoch=1, augmentation=Augmentation(2, True, 3)):
        assert x.device == y.device == META
        assert x.dtype == torch.float32


def _step(attack: str, targets: int) -> Step:
    return Step(attack, 25, targets=targets)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("attack", "targets"), [("apgd-ce", 0), ("apgd-dlr", 0), ("apgd-t", 2)])
def test_apgd_waits_every_tenth_step(norm: Norm, attack: str, targets: int) -> None:
    """By design: there it asks which points are broken, and takes others into the batch."""
    (x, y), steps = _batch(), 0

    def model(x: Tensor) -> Tensor:
        nonlocal steps
        steps += x.requires_grad
        return x.flatten(1)[:, :5] * 2

    with pytest.raises(NO_VALUE):
        apgd(
            _step(attack, targets), model, lambda i, x: i, x, y, torch.arange(6), ThreatModel(norm, 0.1),
            seed=0, batch_size=4,
        )  # fmt: skip
    assert steps == GPU_STRIDE


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_parts_of_fab_and_square(norm: Norm) -> None:
    """A step of FAB and a proposal of Square in l2 need no value. FAB waits once a step, for the points
    that are through; Square once a query, for those that a square changes.
    """
    (x, y), epsilon = _batch(), 0.1
    assert targets_of(_model(), x, 4, 3).shape == (6, 3)
    order = malt_order(_model(), x, y, ThreatModel(norm, epsilon), batch_size=4, check=False)
    assert all(part.is_meta and part.shape == (6, 9) for part in order)
    gap, normal = _boundary(_model(), x, y, y)
    assert onto_plane(x, normal, gap, norm).is_meta
    random = torch.Generator()
    if norm == "l2":
        assert _propose_l2(x.clone(), x, epsilon, 0, random)[2].is_meta
    else:
        with pytest.raises(NO_VALUE):
            _propose_linf(x.clone(), x, epsilon, 0, random)


def test_the_door_refuses_what_has_no_values() -> None:
    with pytest.raises(CurvactError, match="meta device"):
        pgd(_model(), *_batch(), ThreatModel("linf", 0.1), steps=1)
