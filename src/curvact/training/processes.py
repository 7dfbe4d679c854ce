"""Device, precision and processes of a training, by lightning-fabric.

With one process every function here returns its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from curvact.errors import CurvactError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import ClusterEnvironment


@dataclass(frozen=True)
class Compute:
    """How a training computes. These settings change its numbers by rounding only.

    fabric: a launched `lightning_fabric.Fabric` with device, precision and processes. None: one
        process in float32 on the model's device. The code that launches processes also ends their
        group (torch.distributed.destroy_process_group).
    accumulate: number of parts in which a batch goes through the network, to save memory.
    compiled: run the network by `torch.compile`.

    Raises CurvactError unless accumulate is a whole number >= 1.
    """

    fabric: Fabric | None = None
    accumulate: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise CurvactError(f"accumulate={self.accumulate!r} of Compute: a whole number of parts >= 1")

    def fabric_for(self, model: nn.Module) -> Fabric:
        """The given fabric, or one process on the model's device."""
        if self.fabric is not None:
            return self.fabric
        from lightning_fabric import Fabric

        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        devices = 1 if device.type == "cpu" else [device.index or 0]
        return Fabric(accelerator=device.type, devices=devices, plugins=launcher())


ONE_PROCESS = Compute()


def launcher() -> ClusterEnvironment:
    """Who starts the processes: `torchrun`, else nobody.

    Lightning would also take a SLURM job for several processes, and warns where `srun` is installed.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


def precision(fabric: Fabric) -> str:
    """Such as "32-true" or "bf16-mixed"."""
    return str(fabric.strategy.precision.precision)


def rank_key(fabric: Fabric) -> tuple[int, ...]:
    """The part of a generator's key that names the process; empty for one process."""
    return (fabric.global_rank,) if fabric.world_size > 1 else ()


def process_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over processes."""
    if fabric.world_size == 1:
        return values
    return torch.as_tensor(fabric.all_reduce(values, reduce_op="sum"))


def process_mean(fabric: Fabric, values: Tensor) -> Tensor:
    """The mean over processes."""
    if fabric.world_size == 1:
        return values
    return torch.as_tensor(fabric.all_reduce(values, reduce_op="mean"))


def first_decides(fabric: Fabric, decision: bool) -> bool:
    """The decision of the first process."""
    return bool(fabric.broadcast(decision)) if fabric.world_size > 1 else decision


def gather(fabric: Fabric, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of each process, on the CPU."""
    if fabric.world_size == 1:
        return [list(tensors)]
    found = [torch.as_tensor(fabric.all_gather(t.to(fabric.device))).cpu() for t in tensors]
    return [[t[rank] for t in found] for rank in range(fabric.world_size)]


def copy_weights(fabric: Fabric, model: nn.Module) -> None:
    """Give the model of every process the weights and buffers of the first one."""
    if fabric.world_size > 1:
        for tensor in model.state_dict().values():
            tensor.copy_(fabric.broadcast(tensor))


def average_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Replace floating-point buffers, such as running statistics, by their mean over processes."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(process_mean(fabric, buffer))


def average_gradients(fabric: Fabric, model: nn.Module) -> None:
    """Replace the gradients by their mean over processes, in one reduction."""
    if fabric.world_size > 1:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        reduce_together(gradients, lambda flat: process_mean(fabric, flat))


def reduce_together(tensors: Sequence[Tensor], reduce: Callable[[Tensor], Tensor]) -> None:
    """Write reduce(all entries in one row) back into the tensors."""
    flat = reduce(torch.cat([t.flatten() for t in tensors]))
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()
