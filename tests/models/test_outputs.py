"""`select_outputs`: the chosen logits, their gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from curvact.attacks import PGD, ThreatModel, accuracy
from curvact.data import IMAGENETTE_OUTPUTS, class_map
from curvact.errors import CurvactError
from curvact.models import model_hash, select_outputs


def wide() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1000)).eval()


def test_attack_and_accuracy_see_the_selected_outputs_alone() -> None:
    model, x = wide(), torch.rand(16, 1, 2, 2)
    chosen = select_outputs(model, IMAGENETTE_OUTPUTS)
    rows = list(IMAGENETTE_OUTPUTS)
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    with torch.no_grad():
        small[1].weight.copy_(model[1].weight[rows])
        small[1].bias.copy_(model[1].bias[rows])
    y = small(x).argmax(1)
    attack = PGD(3, start="none").on(ThreatModel("linf", 0.05))
    theirs, mine = accuracy(small, x, y, attack), accuracy(chosen, x, y, attack)
    assert mine.clean == 1
    assert torch.allclose(mine.x_adv, theirs.x_adv, atol=1e-6)
    assert not chosen.training


def test_the_hash_of_the_model_depends_on_the_selection() -> None:
    model = wide()
    assert model_hash(select_outputs(model, [0, 1])) != model_hash(select_outputs(model, [1, 0]))


@pytest.mark.parametrize("outputs", [[], [3], [0, 0], [-1, 2], [1.5, 2], [True, 2]])
def test_bad_outputs(outputs: Any) -> None:
    with pytest.raises(CurvactError, match="at least two whole numbers >= 0, each once"):
        select_outputs(wide(), outputs)


def test_an_output_that_the_model_lacks() -> None:
    with pytest.raises(CurvactError, match=r"shape \(2, 1000\): it has no output 1000"):
        select_outputs(wide(), [0, 1000])(torch.rand(2, 1, 2, 2))


def test_class_map_by_name() -> None:
    names = ["tench, Tinca tinca", "crane", "Golf_Ball", "crane"]
    assert class_map(["golf ball", "tinca TINCA"], names) == (2, 0)
    with pytest.raises(CurvactError, match=r"'crane' .*: the outputs 1, 3 have it"):
        class_map(["crane"], names)
    with pytest.raises(CurvactError, match=r"'tensh' .* none have it; did you mean 'tench'"):
        class_map(["tensh"], names)
