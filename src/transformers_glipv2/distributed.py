"""What losses need of the other processes of a training run: means and features of all of them."""

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient."""
    value = value.detach().clone()
    if num_processes() > 1:
        dist.all_reduce(value)
        value /= num_processes()
    return value


def gather(tensor: Tensor) -> Tensor:
    """
    Tensors of all processes, joined along the first dimension in the order of ranks; the gradient of each is the sum
    of what all processes give it.

    Args:
        tensor: of the same shape on every process.
    """
    return tensor if num_processes() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    """
    `gather` between several processes.

    PyTorch's own, `torch.distributed._functional_collectives`, leaves several collectives running at a time; with gloo
    and PyTorch 2.14 that corrupted memory after some hundred steps.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.length = len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(num_processes())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.length :][: ctx.length]
