"""swap_activations on small models that hide their activations in the usual ways."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvact.activations.inplace import InPlace
from curvact.activations.swap import SwapReport, SwapWarning, swap_activations
from curvact.errors import CurvactError


class Scaled(nn.Module):
    """The new activation: tanh(a·x), a learnable; easy to write down elsewhere, and no usual
    activation by its type.
    """

    def __init__(self, a: float = 0.5) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a * x)


def expected(x: Tensor) -> Tensor:
    return torch.tanh(0.5 * x)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """A residual block with one ReLU that its forward calls twice."""

    def __init__(self, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)
        self.relu = relu or nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn(self.conv1(x)))
        return self.relu(x + self.conv2(out))


def resnet(relu: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        Block(relu), nn.Sequential(Block(relu), nn.GELU()), nn.Flatten(), nn.Linear(32, 3)
    ).double()


def test_nested_sequential_and_report():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.SiLU()), nn.Sigmoid())
    x = data(5, 2)
    model.double()
    truth = torch.sigmoid(expected(model[1][1](expected(model[0](x)))))
    report = swap_activations(model, to=Scaled)
    assert report.model is model
    assert len(report) == 2
    assert [(r.path, r.old, r.new) for r in report.replaced] == [
        ("1.0", "ReLU()", "Scaled()"),
        ("1.2", "SiLU()", "Scaled()"),
    ]
    assert str(report) == "replaced 2 activations\n  1.0: ReLU() -> Scaled()\n  1.2: SiLU() -> Scaled()"
    assert report.functional == ()
    torch.testing.assert_close(model(x), truth, rtol=0, atol=0)  # the same operations


@pytest.mark.parametrize(("shared", "modules"), [("keep", 2), ("separate", 3), ("one", 1)])
def test_sharing(shared, modules):
    model = resnet(nn.ReLU())
    report = swap_activations(model, to=Scaled, shared=shared)
    assert [r.path for r in report.replaced] == ["0.relu", "1.0.relu", "1.1"]
    places = [model[0].relu, model[1][0].relu, model[1][1]]
    assert all(isinstance(m, Scaled) for m in places)
    assert len({id(m) for m in places}) == modules
    assert (places[0] is places[1]) == (shared != "separate")


def test_a_module_to_copy_and_a_module_to_share():
    given = Scaled(0.25)
    model = resnet()
    swap_activations(model, to=given)
    assert model[0].relu is not given
    assert model[0].relu.a.item() == 0.25
    model = resnet()
    swap_activations(model, to=given, shared="one")
    assert model[0].relu is given
    assert model[1][1] is given


def test_resnet_values_state_and_gradient():
    model = resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    x = data(4, 2, 4, 4)

    def block(b, x):
        return expected(x + b.conv2(expected(b.bn(b.conv1(x)))))

    truth = model[3](model[2](expected(block(model[1][0], block(model[0], x)))))
    report = swap_activations(model, (nn.ReLU, "GELU"), Scaled)
    assert len(report) == 3
    torch.testing.assert_close(model(x), truth, rtol=0, atol=0)
    after = model.state_dict()
    assert set(after) - set(before) == {"0.relu.a", "1.0.relu.a", "1.1.a"}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model(x).square().sum().backward()
    assert all(m.a.grad is not None and m.a.grad != 0 for m in model.modules() if isinstance(m, Scaled))


def test_new_modules_follow_mode_dtype_and_device():
    model = resnet().half().eval()
    model[1].train()
    swap_activations(model, to=Scaled)
    assert model[0].relu.a.dtype is torch.float16
    assert not model[0].relu.training
    assert model[1][1].training
    on_meta = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU())
    swap_activations(on_meta, to=Scaled)
    assert on_meta[1].a.device.type == "meta"


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        ("ReLU", ["0.relu", "1.0.relu"]),
        (nn.GELU, ["1.1"]),
        (("GELU", nn.ReLU), ["0.relu", "1.0.relu", "1.1"]),
        (lambda m: isinstance(m, nn.ReLU) and m.inplace, ["0.relu", "1.0.relu"]),
        (lambda m: m.approximate == "none" if isinstance(m, nn.GELU) else False, ["1.1"]),
    ],
)
def test_selectors(selector, paths):
    assert [r.path for r in swap_activations(resnet(), selector, Scaled).replaced] == paths


def test_one_module_object_as_selector():
    model = resnet()
    report = swap_activations(model, model[1][0].relu, Scaled)
    assert [r.path for r in report.replaced] == ["1.0.relu"]


def test_default_selects_whatever_knows_slope_and_curvature():
    class Known(nn.Module):
        def forward(self, x):
            return x.relu()

        def slope(self, x):
            return (x > 0).to(x)

        def curvature(self, x):
            return 0 * x

    report = swap_activations(nn.Sequential(Known(), nn.Sigmoid()), to=Scaled)
    assert [r.path for r in report.replaced] == ["0"]


def test_from_and_to_of_the_same_kind_does_not_look_inside_the_new():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ReLU()

        def forward(self, x):
            return self.inner(x) + F.relu(x)

    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    report = swap_activations(model, "ReLU", Wrapped)  # no warning either, although Wrapped calls F.relu
    assert len(report) == 2
    assert isinstance(model[0].inner, nn.ReLU)


def test_the_model_itself_is_an_activation():
    model = nn.ReLU().eval()
    report = swap_activations(model, to=Scaled)
    assert isinstance(report.model, Scaled)
    assert not report.model.training
    assert str(report).startswith("replaced 1 activation\n  (the model itself): ReLU() -> Scaled()\n")
    assert report.new_model


def test_nothing_found_says_so_with_the_types_seen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    with pytest.warns(
        UserWarning, match="found nothing to replace; modules seen: Linear, Sequential, Sigmoid"
    ):
        report = swap_activations(model, to=Scaled)
    assert len(report) == 0
    assert str(report) == "found no activation to replace"


def test_a_copy_leaves_the_model():
    model = resnet()
    report = swap_activations(model, to=Scaled, inplace=False)
    assert isinstance(model[0].relu, nn.ReLU)
    assert isinstance(report.model[0].relu, Scaled)


def test_lost_hooks_are_reported():
    model = resnet()
    model[0].relu.register_forward_hook(lambda *_: None)
    model[0].relu.register_forward_pre_hook(lambda *_: None)
    report = swap_activations(model, to=Scaled)
    assert [r.hooks for r in report.replaced] == [2, 0, 0]
    assert "2 hooks of the old module lost" in str(report)


# ---- functional calls ----


def helper(x: Tensor) -> Tensor:
    return F.gelu(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x), inplace=True)
        x = self.b(x).relu()
        x = torch.relu(input=x)
        x = helper(self.act(x))
        return torch.sigmoid(self.c(x)) + x.clamp(0, 1)


def functional_truth(m: Functional, x: Tensor) -> Tensor:
    x = expected(expected(m.b(expected(m.a(x)))))
    x = expected(expected(x))
    return torch.sigmoid(m.c(x)) + x.clamp(0, 1)


class Untraceable(Functional):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.tail(super().forward(x))

    def tail(self, x: Tensor) -> Tensor:
        return x.tanh_()


def test_functional_calls_are_named():
    model = nn.Sequential(nn.Linear(3, 3), Functional())
    with pytest.warns(UserWarning, match=r"1: relu; 1: gelu.*functional='rewrite'"):
        report = swap_activations(model, to=Scaled)
    assert report.functional == ("1: relu", "1: gelu")
    assert [r.path for r in report.replaced] == ["1.act"]
    assert "not replaced, functional calls in forward:\n  1: relu\n  1: gelu" in str(report)


def test_functional_calls_of_a_model_that_cannot_be_traced_are_named():
    model = nn.Sequential(nn.Linear(3, 3), Untraceable())
    with pytest.warns(UserWarning, match="functional calls"):
        report = swap_activations(model, to=Scaled)
    assert set(report.functional) == {"1: relu", "1: gelu", "1: tanh"}


def test_only_the_functional_calls_that_are_meant():
    says = r"found nothing to replace.*left functional calls as they are: \(the model itself\): gelu\. "
    with pytest.warns(UserWarning, match=says):
        report = swap_activations(Functional(), ("GELU", "SELU"), Scaled)
    assert len(report) == 0
    with pytest.warns(UserWarning, match="sigmoid"):
        swap_activations(Functional(), "Sigmoid", Scaled)


def test_ignore_does_not_look():
    report = swap_activations(Functional(), to=Scaled, functional="ignore")
    assert report.functional == ()
    assert len(report) == 1


@pytest.mark.parametrize("shared", ["keep", "separate", "one"])
def test_rewrite(shared):
    model = nn.Sequential(nn.Linear(3, 3), Functional()).double().eval()
    x = data(7, 3)
    truth = functional_truth(model[1], model[0](x))
    report = swap_activations(model, to=Scaled, functional="rewrite", shared=shared)
    torch.testing.assert_close(report.model(x), truth, rtol=0, atol=0)
    assert not report.model.training
    assert report.functional == ()
    new = {id(m) for m in report.model.modules() if isinstance(m, Scaled)}
    assert len(new) == (1 if shared == "one" else 5)
    if shared != "one":
        assert [r.path for r in report.replaced] == ["1.act", "1.relu", "1.relu_1", "1.relu_2", "1.gelu"]
        assert len(report) == 5
    assert report.model.get_parameter("1.a.weight") is model[1].a.weight
    report.model(x).sum().backward()
    assert all(p.grad is not None for p in report.model.parameters())


@pytest.mark.parametrize(
    ("options", "new"), [({"functional": "rewrite"}, True), ({"inplace": False}, True), ({}, False)]
)
def test_the_report_says_that_the_given_model_is_not_the_new_one(options, new):
    """Who goes on with the given model would train the old activations without a word."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    report = swap_activations(model, "relu", Scaled, **options)
    assert report.new_model is new
    assert (report.model is model) is not new
    assert ("go on with it, not with the given model" in str(report)) is new


def test_rewrite_of_a_block_used_twice_keeps_one_module_a_line():
    block = Functional().double()
    model = nn.Sequential(block, block)
    x = data(7, 3)
    truth = functional_truth(block, functional_truth(block, x))
    for shared, count in (("keep", 5), ("separate", 9)):
        copied = swap_activations(model, to=Scaled, functional="rewrite", shared=shared, inplace=False).model
        torch.testing.assert_close(copied(x), truth, rtol=0, atol=0)
        assert sum(isinstance(m, Scaled) for m in copied.modules()) == count


def test_rewrite_that_cannot_trace_changes_nothing():
    model = nn.Sequential(nn.ReLU(), Untraceable())
    with pytest.raises(CurvactError, match=r"torch\.fx cannot trace Sequential.*control flow") as caught:
        swap_activations(model, to=Scaled, functional="rewrite")
    assert "\n" not in str(caught.value)
    assert isinstance(model[0], nn.ReLU)
    assert isinstance(model[1].act, nn.ReLU)


def test_looking_leaves_no_trace_in_the_model():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = self.act(x)
            return self.last

    model = Remembers()
    swap_activations(model, to=Scaled)
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert isinstance(model.act, Scaled)


def test_rewrite_refuses_a_tensor_that_forward_makes():
    class Makes(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return torch.relu(self.act(x) + torch.randn(3))

    model = Makes()
    with pytest.raises(
        CurvactError, match=r"of Makes: its forward makes a tensor.* register_buffer"
    ) as caught:
        swap_activations(model, to=Scaled, functional="rewrite")
    assert "\n" not in str(caught.value)
    assert isinstance(model.act, nn.ReLU)


def test_rewrite_warns_of_a_fixed_training_flag():
    class Dropped(nn.Module):
        def forward(self, x):
            return F.dropout(F.relu(x), 0.5, training=self.training)

    with pytest.warns(UserWarning, match="fixes training=True in dropout"):
        swap_activations(Dropped(), to=Scaled, functional="rewrite")


# ---- functions kept as attributes ----


class Kept(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.act = function

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@pytest.mark.parametrize(
    "function", [F.relu, torch.relu, F.gelu, torch.tanh, functools.partial(F.leaky_relu, negative_slope=0.3)]
)
@pytest.mark.parametrize("functional", ["warn", "rewrite"])
def test_a_function_kept_as_an_attribute(function, functional):
    model = Kept(function)
    report = swap_activations(model, to=Scaled, functional=functional)
    assert [r.path for r in report.replaced] == ["act"]
    assert report.replaced[0].old.startswith("the function ")
    x = data(9).float()
    assert torch.equal(report.model(x), expected(x))


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.GELU()])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder_layer(activation, stacked):
    """In inference mode the fused path would go on computing ReLU or GELU."""
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation=copy.deepcopy(activation), batch_first=True
    )
    model = nn.TransformerEncoder(layer, 2) if stacked else layer
    model.double().eval()
    report = swap_activations(model, to=Scaled)
    assert len(report) == (2 if stacked else 1)
    assert not getattr(model, "use_nested_tensor", False)  # many activations fail on nested tensors
    x = data(3, 5, 8)
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[0, 3:] = True
    layers = model.layers if stacked else [model]
    y = x
    for layer in layers:
        attended = layer.self_attn(y, y, y, key_padding_mask=masked, need_weights=False)[0]
        y = layer.norm1(y + attended)
        y = layer.norm2(y + layer.linear2(expected(layer.linear1(y))))
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            out = model(x, src_key_padding_mask=masked)
        # Another order of summation in the attention: a few roundings of numbers of size 1.
        torch.testing.assert_close(out[~masked], y[~masked], rtol=0, atol=1e-12)


def test_transformer_decoder_layer():
    model = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    assert [r.path for r in swap_activations(model, to=Scaled).replaced] == ["activation"]


# ---- names and errors ----


def test_by_name():
    model = resnet()
    report = swap_activations(model, "ReLU", "rctaf(curvature=6, beta=1)")
    assert [r.new for r in report.replaced] == ["rctaf(alpha=16.0, beta=1)"] * 2
    assert model[0].relu is not model[1][0].relu
    again = swap_activations(model, to=nn.ReLU)  # our own activations are selected by default
    assert len(again) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"to": None}, "to=None"),
        ({"to": "rtcaf"}, "unknown activation 'rtcaf'; did you mean 'rctaf'"),
        ({"to": lambda: F.relu}, "made a function: it must make an nn.Module"),
        ({"to": Scaled, "from_": "ReLuu"}, "from_='ReLuu'.*did you mean 'ReLU'"),
        ({"to": Scaled, "from_": ["relu", "gleu"]}, "from_='gleu'.*did you mean '[Gg](EL|el)[Uu]'"),
        ({"to": Scaled, "from_": int}, "no class of torch.nn modules"),
        ({"to": Scaled, "from_": 3}, "from_=3"),
        (
            {"to": Scaled, "from_": nn.ReLU()},
            "this object is not in the model; give its class, ReLU, or a name",
        ),
        ({"to": Scaled, "shared": "all"}, "shared='all'.*keep, separate, one"),
        ({"to": Scaled, "functional": "fix"}, "functional='fix'.*warn, rewrite, ignore"),
    ],
)
def test_bad_arguments(arguments, says):
    model = resnet()
    with pytest.raises(CurvactError, match=says):
        swap_activations(model, **arguments)
    assert isinstance(model[0].relu, nn.ReLU)


def test_only_modules_and_no_script():
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(CurvactError, match="the model is TorchScript"):
        swap_activations(Scripted(), to=Scaled)
    with pytest.raises(CurvactError, match=r"takes an nn\.Module"):
        swap_activations(F.relu, to=Scaled)


def test_report_is_a_value():
    model = nn.Linear(1, 1)
    assert SwapReport(model, ()) == SwapReport(model, ())


def test_a_name_finds_our_class_too() -> None:
    from curvact.activations import ReLU, Swish

    model = nn.Sequential(nn.ReLU(), ReLU(), nn.Tanh())
    assert len(swap_activations(model, "ReLU", "swish(curvature=6)")) == 2
    assert [type(m) for m in model] == [Swish, Swish, nn.Tanh]


# ---- activations in place ----


class Statements(nn.Module):
    """Activations in place whose results are not used, or whose inputs are used again."""

    def __init__(self, kind: str, act: nn.Module | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.inner = nn.Linear(3, 3)
        self.act = act or nn.ReLU(inplace=True)
        self.kept = torch.relu_

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.kind == "function":
            F.relu(x, inplace=True)
        elif self.kind == "positional":
            F.relu(x, True)
        elif self.kind == "method":
            x.relu_()
        elif self.kind == "torch":
            torch.relu_(x)
        elif self.kind == "module":
            self.act(x)
        elif self.kind == "attribute":
            self.kept(x)
        elif self.kind == "view":
            self.act(x.view(-1))
        elif self.kind == "old name":
            y = x[1:]
            x = self.act(x)
            return torch.cat([x, y])
        elif self.kind == "again":
            y = self.act(x)
            return x * 2 + y
        return x


KINDS = ["function", "positional", "method", "torch", "module", "attribute", "view", "old name", "again"]


class Hidden(Statements):
    """The same, where torch.fx cannot look."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [False, True])
def test_an_activation_in_place_still_changes_its_input(kind, hidden):
    """Against the same class whose ReLU is in place itself: nn.ReLU out of place for nn.ReLU."""
    torch.manual_seed(0)
    model = nn.Sequential((Hidden if hidden else Statements)(kind), nn.Linear(3, 2)).double()
    x = data(6, 3)
    want = copy.deepcopy(model)
    want(x).square().sum().backward()
    functional = (
        "warn" if hidden and kind not in ("module", "attribute", "view", "old name", "again") else "rewrite"
    )
    if functional == "warn":
        with pytest.warns(SwapWarning, match="left functional calls"):
            swap_activations(model, "relu", nn.ReLU)
        return
    new = swap_activations(model, "relu", nn.ReLU, functional="ignore" if hidden else functional).model
    torch.testing.assert_close(new(x), want(x), rtol=0, atol=0)
    new(x).square().sum().backward()
    for ours, theirs in zip(new.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-14)
    smooth = swap_activations(copy.deepcopy(model), "relu", "rctaf(curvature=6)", functional="ignore").model
    smooth(x).sum().backward()  # what it keeps for the backward pass is not written over


def test_an_activation_in_place_that_nobody_sees_is_replaced_as_it_is():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True), Block(), nn.Flatten())
    swap_activations(model, to=Scaled)
    assert isinstance(model[1], Scaled)
    assert isinstance(model[2].relu, Scaled)
    gates = nn.Sequential(Hidden("none"), nn.Linear(3, 3), nn.ReLU(inplace=True))
    swap_activations(gates, "ReLU", Scaled, functional="ignore")
    assert isinstance(gates[2], Scaled)
    assert isinstance(gates[0].act, InPlace)  # not seen by torch.fx, and used as a statement


@pytest.mark.parametrize("names", ["relu", ["ReLU", "gelu"], ("relu", nn.GELU), "RELU", ["rctaf", "ReLU"]])
def test_names_in_any_case_and_lists(names):
    model = nn.Sequential(nn.ReLU(), nn.GELU(), nn.Tanh())
    count = 1 if names in ("relu", "RELU", ["rctaf", "ReLU"]) else 2
    assert len(swap_activations(model, names, Scaled)) == count


def test_a_class_of_the_model_by_name():
    class TheirGELU(nn.Module):
        def forward(self, x):
            return F.gelu(x)

    model = nn.Sequential(TheirGELU(), nn.Linear(2, 2))
    assert len(swap_activations(model, "TheirGELU", Scaled)) == 1


def test_a_model_whose_save_pretrained_forgets_the_swap_warns():
    class TheirModel(nn.Sequential):
        config = None

        def save_pretrained(self, folder):
            raise NotImplementedError

    with pytest.warns(SwapWarning, match="save_pretrained of this TheirModel .* call swap_activations again"):
        swap_activations(TheirModel(nn.GELU()), "GELU", Scaled)
