"""Every public function of attacks and analysis, given every kind of wrong input: one line, or a
right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvact import analysis, attacks
from curvact.attacks import PGD, ThreatModel
from curvact.data import Dataset
from curvact.data.dataset import content_hash
from curvact.errors import CurvactError
from curvact.lab.record import evaluate


class Given(NamedTuple):
    model: Any
    x: Any
    y: Any
    threat: ThreatModel = ThreatModel("linf", 0.1)


class _Net(nn.Module):
    """Four classes of 4×4 images, smooth. `returned` wraps the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.SiLU(), nn.Linear(3, 4))
        self.returned: Callable[[Tensor], Any] = lambda logits: logits

    def forward(self, x: Tensor) -> Any:
        return self.returned(self.layers(x))


def _given() -> Given:
    model = _Net().eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[0] = 3
    return Given(model, x, y)


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _loss(g: Given) -> analysis.Loss:
    return analysis.Loss(g.model, g.x, g.y)


def _attack(g: Given) -> Any:
    return PGD(2, start="none").on(g.threat)


ATTACKS: dict[str, Callable[[Given], Any]] = {
    "fgsm": lambda g: attacks.fgsm(g.model, g.x, g.y, g.threat),
    "pgd": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, start="none", keep_best=True),
    "PGD": lambda g: PGD(2, start="none", restarts=2)(g.model, g.x, g.y, g.threat),
    "PGD.on": lambda g: _attack(g)(g.model, g.x, g.y),
    "accuracy": lambda g: attacks.accuracy(g.model, g.x, g.y, PGD(2, start="none"), g.threat).x_adv,
    "minimum_radius": lambda g: attacks.minimum_radius(
        g.model, g.x, g.y, high=0.5, halvings=2, attack=PGD(2, start="none")
    ),
    "malt_order": lambda g: attacks.malt_order(g.model, g.x, g.y, g.threat).distances,
    "masking_report": lambda g: (
        attacks.masking_report(g.model, g.x, g.y, g.threat, steps=2, queries=2).measurements
    ),
    "ensemble": lambda g: attacks.ensemble(g.model, g.x, g.y, g.threat, attacks=["apgd-ce"], steps=2).loss,
    "ensemble, fast": lambda g: (
        attacks.ensemble(g.model, g.x, g.y, g.threat, attacks=["apgd-ce"], steps=2, mode="fast").loss
    ),
}
ANALYSES: dict[str, Callable[[Given], Any]] = {
    "gradient": lambda g: _loss(g).gradient(),
    "attacked": lambda g: _loss(g).attacked(_attack(g)).gradient(),
    "exact_diagonal": lambda g: analysis.exact_diagonal(_loss(g)),
    "hutchinson": lambda g: analysis.hutchinson_diagonal(_loss(g), probes=4, generator=_random()).mean,
    "diagonal_norms": lambda g: (
        analysis.diagonal_norms(_loss(g), probes=4, deflation=1, generator=_random()).loss
    ),
    "diagonal_split": lambda g: analysis.diagonal_split(_loss(g), probes=4, generator=_random()),
    "ggn_diagonal": lambda g: analysis.ggn_diagonal(_loss(g)),
    "trace": lambda g: analysis.trace(_loss(g), probes=4, generator=_random()),
    "top_eigenvalues": lambda g: analysis.top_eigenvalues(_loss(g), max_products=20, generator=_random()),
    "average_flatness": lambda g: analysis.average_flatness(_loss(g), _attack(g), draws=2).flatness,
    "worst_case_flatness": lambda g: (
        analysis.worst_case_flatness(_loss(g), g.threat, steps=1, restarts=1).flatness
    ),
    "input_flatness": lambda g: analysis.input_flatness(
        _loss(g), {"linf": g.threat}, lanczos_steps=2, ascent_steps=1, restarts=1
    ).means(),
    "loss_landscape": lambda g: analysis.loss_landscape(_loss(g), _attack(g), directions=1, points=3).clean,
    "smoothness": lambda g: (
        analysis.smoothness_report(
            _loss(g), {"linf": _attack(g)}, norms=[0.01], directions=1, flatness=False
        ).losses
    ),
    "match_radii": lambda g: analysis.match_radii(_loss(g), 0.1, rule="loss", attack=PGD(1), bisections=1).l2,
}
CURVATURES: dict[str, Callable[[Given], Any]] = {
    "effective_curvature": lambda g: analysis.effective_curvature(g.model, g.x).mean,
    "call_sites": lambda g: [site.name for site in analysis.call_sites(g.model, g.x)],
    "empirical_lipschitz": lambda g: analysis.empirical_lipschitz(g.model, g.x, radius=0.1, steps=2),
}


def _returning(what: Callable[[Tensor], Any]) -> Callable[[Given], Given]:
    def change(g: Given) -> Given:
        g.model.returned = what
        return g

    return change


def _x(what: Callable[[Tensor], Any]) -> Callable[[Given], Given]:
    return lambda g: g._replace(x=what(g.x))


def _y(what: Callable[[Tensor], Any]) -> Callable[[Given], Given]:
    return lambda g: g._replace(y=what(g.y))


def _model(what: Callable[[Any], Any]) -> Callable[[Given], Given]:
    return lambda g: g._replace(model=what(g.model))


IMAGES = {
    "normalized": _x(lambda x: 2 * x - 1),
    "bytes as floats": _x(lambda x: 255 * x),
    "NaN": _x(lambda x: x.index_fill(0, torch.tensor([1]), torch.nan)),
    "infinite": _x(lambda x: x.index_fill(0, torch.tensor([1]), torch.inf)),
    "bytes": _x(lambda x: (255 * x).byte()),
    "bool": _x(lambda x: x > 0.5),
    "complex": _x(lambda x: x + 0j),
    "float64": _x(lambda x: x.double()),
    "float16": _x(lambda x: x.half()),
    "numpy": _x(lambda x: x.numpy()),
    "list": _x(lambda x: x.tolist()),
    "None": _x(lambda x: None),
    "no images": _x(lambda x: x[:0]),
    "one image without batch": _x(lambda x: x[0]),
    "one number": _x(lambda x: torch.tensor(0.5)),
    "another size": _x(lambda x: x[..., :3]),
    "meta": _x(lambda x: x.to("meta")),
    "sparse": _x(lambda x: x.to_sparse()),
}
LABELS = {
    "-100": _y(lambda y: y.index_fill(0, torch.tensor([1]), -100)),
    "-1": _y(lambda y: y - 10),
    "10": _y(lambda y: y.index_fill(0, torch.tensor([1]), 10)),
    "float": _y(lambda y: y.float()),
    "complex": _y(lambda y: y + 0j),
    "N×1": _y(lambda y: y[:, None]),
    "one-hot": _y(lambda y: nn.functional.one_hot(y, 4)),
    "too few": _y(lambda y: y[:3]),
    "one number": _y(lambda y: torch.tensor(1)),
    "numpy": _y(lambda y: y.numpy()),
    "list": _y(lambda y: y.tolist()),
    "None": _y(lambda y: None),
    "meta": _y(lambda y: y.to("meta")),
}
MODELS = {
    "float64": _model(lambda m: m.double()),
    "float16": _model(lambda m: m.half()),
    "bfloat16": _model(lambda m: m.bfloat16()),
    "meta": _model(lambda m: m.to("meta")),
    "None": _model(lambda m: None),
    "text": _model(lambda m: "resnet18"),
    "dict": _returning(lambda z: {"logits": z}),
    "tuple": _returning(lambda z: (z, z)),
    "Hugging Face": _returning(lambda z: SimpleNamespace(logits=z)),
    "None returned": _returning(lambda z: None),
    "one logit": _returning(lambda z: z[:, :1]),
    "one logit, flat": _returning(lambda z: z[:, 0]),
    "too few rows": _returning(lambda z: z[1:]),
    "a map": _returning(lambda z: z[..., None, None]),
    "no gradient": _returning(lambda z: z.detach()),
    "NaN logits": _returning(lambda z: z * torch.nan),
    "probabilities": _returning(lambda z: z.softmax(1)),
    "fewer classes": _returning(lambda z: z[:, :1].repeat(1, 2)),
    "needs another image": _returning(lambda z: 1 / 0),
}
FREE_RANGE = {"normalized", "bytes as floats"}
ANY_OUTPUT = set(MODELS) - {"float64", "float16", "bfloat16", "meta", "None", "text", "needs another image"}
RIGHT = {
    # A loss has an answer at any inputs; an attack in it refuses what is no image.
    **dict.fromkeys(ANALYSES, FREE_RANGE),
    # Their numbers are then NaN.
    **{key: {"NaN logits"} for key in ("average_flatness", "worst_case_flatness", "loss_landscape")},
    # Pre-activations do not depend on what the model returns.
    **dict.fromkeys(CURVATURES, FREE_RANGE | ANY_OUTPUT | {"one image without batch"}),
    "call_sites": FREE_RANGE | ANY_OUTPUT | {"one image without batch", "NaN", "infinite", "no images"},
    "empirical_lipschitz": {"one image without batch", "no images", "fewer classes"},
    # No gradient and NaN are what these report or warn of.
    "masking_report": {"no gradient", "NaN logits"},
    "ensemble": {"no gradient"},
    "ensemble, fast": {"no gradient"},
    "accuracy": {"NaN logits"},
    "minimum_radius": {"NaN logits"},
    **{key: {"NaN logits"} for key in ("fgsm", "pgd", "PGD", "PGD.on", "malt_order")},
}
"""Wrong inputs of each function that have a right answer."""
EVERYWHERE = {"probabilities"}
FUNCTIONS = {**ATTACKS, **ANALYSES, **CURVATURES}


@pytest.mark.filterwarnings("ignore::curvact.attacks.SuspectModelWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_input_is_one_line_or_has_a_right_answer(name: str) -> None:
    function, labels = FUNCTIONS[name], {} if name in CURVATURES else LABELS
    function(_given())
    for kind, table in (("images", IMAGES), ("labels", labels), ("model", MODELS)):
        for wrong, change in table.items():
            case = f"{name}, {kind}: {wrong}"
            message = _refusal(function, change(_given()), case)
            if message is None:
                assert wrong in RIGHT.get(name, set()) | EVERYWHERE, f"{case} was taken"
            else:
                assert "\n" not in message, case
                assert len(message) > 20, case
                assert wrong not in EVERYWHERE, case


def _refusal(function: Callable[[Given], Any], given: Given, case: str) -> str | None:
    try:
        function(given)
    except CurvactError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    return None


@pytest.mark.parametrize("name", [*ATTACKS, *ANALYSES])
def test_any_integers_are_labels(name: str) -> None:
    function = FUNCTIONS[name]
    expected = _numbers(function(_given()))
    for dtype in (torch.uint8, torch.int32) if name in ANALYSES else (torch.int8, torch.int16):
        g = _given()
        torch.testing.assert_close(
            _numbers(function(g._replace(y=g.y.to(dtype)))), expected, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inside_no_grad_and_inference_mode(name: str) -> None:
    function = FUNCTIONS[name]
    expected = _numbers(function(_given()))
    for mode in (torch.no_grad, torch.inference_mode):
        g = _given()
        with mode():
            found = function(g._replace(x=g.x.clone(), y=g.y.clone()))
        torch.testing.assert_close(_numbers(found), expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    with torch.inference_mode():
        made = _given()
    if name != "call_sites":
        with pytest.raises(CurvactError, match="inference mode"):
            function(made)


@pytest.mark.parametrize("name", ["accuracy", "minimum_radius", "masking_report", "ensemble"])
def test_probabilities_are_warned_of(name: str) -> None:
    with pytest.warns(attacks.SuspectModelWarning, match="probabilities"):
        ATTACKS[name](MODELS["probabilities"](_given()))


def _numbers(found: Any) -> Tensor:
    """Every number of a result, in order."""
    if isinstance(found, Tensor):
        return found.detach().double().flatten()
    if isinstance(found, (bool, int, float)):
        return torch.tensor([float(found)], dtype=torch.float64)
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (tuple, list)):
        return torch.cat([_numbers(part) for part in found] or [torch.zeros(0, dtype=torch.float64)])
    if is_dataclass(found) and not isinstance(found, type):
        return _numbers([getattr(found, f.name) for f in fields(found)])
    return torch.zeros(0, dtype=torch.float64)


ARGUMENTS: dict[str, Callable[[Given], Any]] = {
    "steps": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps="2"),
    "step": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, step="long"),
    "noise": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, noise=None),
    "start": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, start=None),
    "loss": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, loss=3),
    "loss of one number": lambda g: attacks.pgd(
        g.model, g.x, g.y, g.threat, steps=2, loss=lambda z, y, t: z.sum()
    ),
    "targets": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, targets=g.y + 4),
    "one target": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, targets=3),
    "epsilon": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, epsilon=-torch.ones(6)),
    "one epsilon": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, epsilon=0.1),
    "generator": lambda g: attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, generator=0),
    "threat model": lambda g: attacks.pgd(g.model, g.x, g.y, "linf", steps=2),
    "no threat model": lambda g: attacks.fgsm(g.model, g.x, g.y, None),
    "accuracy in a tuple": lambda g: attacks.accuracy(g.model, g.x, g.y, "pgd-1", ("linf", 0.1)),
    "no attack": lambda g: attacks.accuracy(g.model, g.x, g.y, None, g.threat),
    "a class of attacks": lambda g: attacks.accuracy(g.model, g.x, g.y, PGD, g.threat),
    "batch_size": lambda g: attacks.accuracy(g.model, g.x, g.y, "pgd-1", g.threat, batch_size=True),
    "masking": lambda g: attacks.masking_report(g.model, g.x, g.y, "linf"),
    "autoattack": lambda g: attacks.autoattack(g.model, g.x, g.y, "linf"),
    "high": lambda g: attacks.minimum_radius(g.model, g.x, g.y, high="wide"),
    "Loss.batch_size": lambda g: analysis.Loss(g.model, g.x, g.y, batch_size=True),
    "no inputs": lambda g: analysis.effective_curvature_change(g.model, g.model, None),
    "no Loss": lambda g: analysis.diagonal_norms(g.model, exact=True),
    "probes": lambda g: analysis.diagonal_norms(_loss(g), probes=4.5, generator=_random()),
    "Hessian's generator": lambda g: analysis.trace(_loss(g), generator=3),
    "no parameters": lambda g: analysis.exact_diagonal(analysis.Loss(nn.Flatten(), g.x, g.y)),
    "flatness by name": lambda g: analysis.average_flatness(_loss(g), "pgd-2"),
    "flatness by PGD": lambda g: analysis.average_flatness(_loss(g), PGD(2)),
    "radius": lambda g: analysis.average_flatness(_loss(g), None, radius="0.5"),
    "restarts": lambda g: analysis.worst_case_flatness(_loss(g), None, restarts=True),
    "points": lambda g: analysis.loss_landscape(_loss(g), points="21"),
    "smoothness of a list": lambda g: analysis.smoothness_report(_loss(g), ["pgd"]),
    "smoothness of a number": lambda g: analysis.smoothness_report(_loss(g), {"pgd": 3}),
    **{
        f"attack {text!r}": lambda g, text=text: attacks.named_attack(text)
        for text in ("pgd-²", "pgd-", "pgd-1.5", "pgd(steps=²)", "pgd(steps=True)", "", "PGD 20", "fgsm(1)")
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments_are_one_line(name: str) -> None:
    message = _refusal(ARGUMENTS[name], _given(), name)
    assert message is not None
    assert "\n" not in message


def test_arguments_of_numpy_and_text_are_numbers() -> None:
    g = _given()
    expected = attacks.pgd(g.model, g.x, g.y, g.threat, steps=2, step=0.5, start="none")
    steps, step = np.int64(2), np.float64(0.5)
    assert torch.equal(
        attacks.pgd(g.model, g.x, g.y, g.threat, steps=steps, step=step, start="none"), expected
    )
    found = analysis.empirical_lipschitz(g.model, g.x, radius="51/255", steps=2)
    assert torch.equal(found, analysis.empirical_lipschitz(g.model, g.x, radius=0.2, steps=2))
    assert analysis.match_radii(_loss(g), "51/255").l2 == 0.8


@pytest.mark.parametrize("name", ["gradient", "diagonal_norms", "effective_curvature", "loss_landscape"])
def test_a_compiled_model_is_the_module_behind_it(name: str) -> None:
    g = _given()
    compiled = g._replace(model=torch.compile(g.model, backend="eager"))
    torch.testing.assert_close(_numbers(FUNCTIONS[name](compiled)), _numbers(FUNCTIONS[name](g)))


def test_frozen_parameters_count_in_a_hessian() -> None:
    g = _given()
    expected = analysis.exact_diagonal(_loss(g))
    g.model.requires_grad_(False)
    assert torch.equal(analysis.exact_diagonal(_loss(g)), expected)


@pytest.mark.parametrize("attack", ["pgd-2", "apgd-ce"])
@pytest.mark.parametrize("wrong", ["float16", "bfloat16", "float64", "meta", "dict", "tuple", "one logit"])
def test_an_evaluation_of_another_kind_of_model_is_one_line(wrong: str, attack: str) -> None:
    given = MODELS[wrong](_given())
    images = (255 * given.x).byte()
    names = ("a", "b", "c", "d")
    data = Dataset("made/test", images, given.y, names, (0.5,), (0.5,), content_hash(images, given.y))
    message = _refusal(
        lambda g: evaluate(g.model, data, g.threat, attack=attack, masking="none"), given, wrong
    )
    assert message is not None
    assert "\n" not in message


def test_an_evaluation_under_a_function_of_the_user() -> None:
    given = _given()
    images = (255 * given.x).byte()
    data = Dataset("made/test", images, given.y, ("a", "b", "c", "d"), (0.5,), (0.5,), "0" * 64)

    def darker(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (x - 0.1).clamp_min(0)

    record = evaluate(given.model, data, given.threat, attack=darker, masking="none")
    expected = given.model((data.inputs() - 0.1).clamp_min(0)).argmax(1) == given.y
    assert record.attack == "darker"
    clean = given.model(data.inputs()).argmax(1) == given.y
    assert record.robust_correct == "".join(str(int(v)) for v in expected & clean)
    with pytest.raises(CurvactError, match="left the allowed images"):
        evaluate(given.model, data, given.threat, attack=lambda model, x, y: 1 - x, masking="none")
