"""`logits_of`: images in [0, 1] go in and one tensor of logits comes out."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.attacks import PGD, ThreatModel, accuracy, check_model, pgd
from curvact.data import load
from curvact.errors import CurvactError
from curvact.lab.record import evaluate
from curvact.models.foreign import logits_of


class Pair(NamedTuple):
    logits: Tensor
    hidden: None


class Theirs(nn.Module):
    """A linear classifier of 3×6×6 images with dropout, that packs its logits."""

    def __init__(self, pack: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(108, 5)
        self.linear.weight = nn.Parameter(torch.randn(5, 108, generator=g) / 10)
        self.linear.bias = nn.Parameter(torch.randn(5, generator=g))
        self.dropout = nn.Dropout(0.5)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.dropout(self.linear(x.flatten(1))))


IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
PACKED = {
    "tensor": lambda z: z,
    "tuple": lambda z: (z, None),
    "list": lambda z: [z],
    "namespace": lambda z: SimpleNamespace(loss=None, logits=z),
    "named tuple": lambda z: Pair(z, None),
    "dict": lambda z: {"loss": None, "logits": z},
    "ordered dict": lambda z: OrderedDict(logits=z, hidden_states=(z,)),
}


@pytest.mark.parametrize("kind", PACKED)
def test_logits_of_every_kind_of_output(kind: str) -> None:
    theirs = Theirs(PACKED[kind]).train()
    model = logits_of(theirs, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.5])
    assert not any(module.training for module in model.modules())
    assert check_model(model, IMAGES) == []
    # By hand, in float64.
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.5], dtype=torch.float64).view(3, 1, 1)
    z = ((IMAGES.double() - mean) / std).flatten(
        1
    ) @ theirs.linear.weight.double().T + theirs.linear.bias.double()
    torch.testing.assert_close(model(IMAGES).double(), z, rtol=0, atol=1e-5)


def test_without_constants_nothing_is_normalized() -> None:
    theirs = Theirs().eval()
    assert torch.equal(logits_of(theirs)(IMAGES), theirs(IMAGES))
    assert logits_of(theirs).model is theirs


def test_constants_that_the_model_carries_are_used_and_can_be_overruled() -> None:
    theirs = Theirs()
    theirs.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 6, 6)}  # type: ignore[assignment]
    theirs.eval()
    assert torch.allclose(logits_of(theirs)(IMAGES), theirs((IMAGES - 0.5) / 0.25))
    assert torch.equal(logits_of(theirs, mean=[0] * 3, std=[1] * 3)(IMAGES), theirs(IMAGES))


def test_images_of_another_size_are_resized_inside_and_attacked_outside() -> None:
    theirs = Theirs().eval()
    large = torch.rand(4, 3, 17, 12, generator=torch.Generator().manual_seed(2))
    model = logits_of(theirs, size=6)
    expected = F.interpolate(large, (6, 6), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(model(large), theirs(expected))
    assert torch.equal(model(IMAGES), theirs(IMAGES))
    y = model(large).argmax(1)
    threat = ThreatModel("linf", 0.3)
    result = accuracy(model, large, y, PGD(5).on(threat))
    assert result.x_adv.shape == large.shape
    assert result.robust < result.clean == 1.0
    assert logits_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 2)), size=(4, 5))(large).shape == (4, 2)


def test_grey_images_become_three_channels() -> None:
    grey = IMAGES[:, :1]
    model = logits_of(Theirs(), mean=[0.5] * 3, std=[0.5] * 3)
    assert torch.equal(model(grey), model(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision(dtype: torch.dtype) -> None:
    full = logits_of(Theirs(), mean=[0.5] * 3, std=[0.5] * 3)(IMAGES)
    logits = logits_of(Theirs(PACKED["dict"]).to(dtype), mean=[0.5] * 3, std=[0.5] * 3)(IMAGES)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # bfloat16 keeps 8 bits of sums of about 100 terms.
    torch.testing.assert_close(logits.float(), full, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_copies_and_weights() -> None:
    model = logits_of(Theirs(), mean=[0.5] * 3, std=[0.5] * 3, size=6)
    again = copy.deepcopy(model)
    assert torch.equal(again(IMAGES), model(IMAGES))
    again.load_state_dict(model.state_dict())
    assert set(model.state_dict()) == {
        "normalize.mean",
        "normalize.std",
        "model.linear.weight",
        "model.linear.bias",
    }
    assert "size=6×6" in repr(model)
    plain = logits_of(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), mean=[0.5] * 3, std=[0.5] * 3)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(IMAGES), plain(IMAGES))


def test_an_evaluation_on_record() -> None:
    test = load("digits").test.first(10)
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    record = evaluate(
        logits_of(theirs, mean=[0.5], std=[0.5]), test, ThreatModel("linf", 0.1), attack="pgd-2"
    )
    assert record.data.count == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda x: x}, "logits_of got function: it takes a torch.nn.Module"),
        ({"mean": [0.5] * 3}, r"mean=\[0.5, 0.5, 0.5\], std=None: give both or neither"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std > 0"),
        ({"size": 0}, "size=0: give a whole number >= 1"),
        ({"size": (4, 4, 3)}, r"size=\(4, 4, 3\): give a whole number"),
        ({"size": (4, 0.5)}, r"size=\(4, 0.5\)"),
        (
            {"model": Theirs(lambda z: {"scores": z, "boxes": z})},
            "Theirs returns dict with keys scores, boxes",
        ),
        (
            {"model": Theirs(lambda z: SimpleNamespace(scores=z))},
            "Theirs returns SimpleNamespace with no logits",
        ),
        (
            {"model": Theirs(lambda z: SimpleNamespace(logits=None))},
            "SimpleNamespace with logits that are no tensor",
        ),
        ({"model": Theirs(lambda z: ())}, "Theirs returns tuple with no logits"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvactError, match=message) as caught:
        logits_of(**{"model": Theirs(), **change})(IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_hugging_face_model(kind: str) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = {
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=10
        ),
        "vit": lambda: transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_labels=10,
        ),
    }[kind]()
    theirs = transformers.AutoModelForImageClassification.from_config(config)
    model = logits_of(theirs, mean=[0.5] * 3, std=[0.5] * 3, size=16)
    x = torch.rand(4, 3, 8, 8)
    expected = theirs((F.interpolate(x, (16, 16), mode="bilinear", antialias=True) - 0.5) / 0.5).logits
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert check_model(model, x) == []
    y = model(x).argmax(1)
    x_adv = pgd(model, x, y, ThreatModel("linf", 0.1), steps=3, step=0.5)
    assert float(F.cross_entropy(model(x_adv), y)) > float(F.cross_entropy(model(x), y))


@pytest.mark.filterwarnings("ignore")
def test_a_timm_model() -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    theirs = timm.create_model("resnet18", num_classes=10)
    model = logits_of(theirs, size=32)
    x = torch.rand(2, 3, 8, 8)
    config = theirs.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = theirs((F.interpolate(x, (32, 32), mode="bilinear", antialias=True) - mean) / std)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert check_model(model, x) == []


PAGE = Path(__file__).parents[2] / "docs" / "foreign.md"
BLOCKS = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
EXTRA = [block for block in BLOCKS if not block.startswith("import curvact")]
"""The examples that need another library. Those marked `python` run in tests/test_docs.py."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", EXTRA, ids=["transformers", "timm"])
def test_examples_that_need_an_extra(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    library = re.match(r"(?:from|import) (\w+)", block)
    assert library is not None
    pytest.importorskip(library[1], exc_type=ImportError)
    exec(compile(block, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out
