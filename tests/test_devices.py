"""Devices by name, and torch's deterministic algorithms."""

from __future__ import annotations

import os

import pytest
import torch

from curvact.devices import WORKSPACE, check_device_name, deterministic, device_named, device_names
from curvact.errors import CurvactError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), ("cpu:1", "cpu")],
)
def test_a_name_and_its_device(two_gpus: None, name: str, device: str) -> None:
    assert device_named(name) == torch.device(device)


def test_all_devices(two_gpus: None) -> None:
    assert device_names("auto") == ("cuda:0", "cuda:1")
    assert device_names("cuda:1, cuda:0") == ("cuda:1", "cuda:0")


def test_auto_without_a_gpu_is_the_cpu(no_gpu: None) -> None:
    assert device_named("auto") == torch.device("cpu")
    assert device_names("auto") == ("cpu",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device gpu: allowed are auto, cpu, cuda and cuda:N"),
        ("", "--device : allowed are"),
        ("cuda:-1", "--device cuda:-1: allowed are"),
        ("cuda:²", "--device cuda:²: allowed are"),
        ("cuda:0\n", "--device cuda:0\n: allowed are"),
        ("cuda", "--device cuda: torch sees 0 CUDA devices here"),
        ("cuda:1", "--device cuda:1: torch sees 0 CUDA devices here"),
        ("mps", "--device mps: it lacks float64, which curvact needs; allowed are"),
    ],
)
def test_a_device_that_is_not_there(no_gpu: None, name: str, message: str) -> None:
    with pytest.raises(CurvactError) as error:
        device_named(name, "--device")
    assert message in str(error.value)


@pytest.mark.parametrize("names", ["cpu:0,", "cpu,auto", "cpu:0,cpu:0", "cpu,cuda:9"])
def test_names_that_cannot_be_together(no_gpu: None, names: str) -> None:
    with pytest.raises(CurvactError):
        device_names(names)


def test_a_name_needs_no_device(no_gpu: None) -> None:
    assert check_device_name("cuda:7") == "cuda:7"


def _chosen() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get(WORKSPACE),
    )


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_what_was_chosen_comes_back(monkeypatch: pytest.MonkeyPatch, workspace: str | None) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    if workspace is not None:
        monkeypatch.setenv(WORKSPACE, workspace)
    before = _chosen()
    with deterministic(False):
        assert _chosen() == before
    with deterministic():
        assert _chosen() == (True, False, True, False, workspace or ":4096:8")
    assert _chosen() == before


def test_an_operation_that_does_not_repeat_is_one_line() -> None:
    with (
        pytest.raises(CurvactError, match=r"^hardware\.deterministic=true: put_ has no deterministic"),
        deterministic(),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="shapes cannot"), deterministic():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
