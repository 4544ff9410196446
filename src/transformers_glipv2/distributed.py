"""What losses need of the other processes of a training run: means, maxima and features of all of them."""

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


def max_over_processes(value: int, device: torch.device) -> int:
    """The largest of a number over all processes."""
    if num_processes() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


class _Gather(torch.autograd.Function):
    """All processes see all tensors, so the gradient of one is the sum of what all of them give it."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(num_processes())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[dist.get_rank()]


def gather(tensor: Tensor) -> Tensor:
    """
    Tensors of all processes, joined along the first dimension in the order of ranks; gradients flow back to each.

    Args:
        tensor: of the same shape on every process.
    """
    return tensor if num_processes() == 1 else _Gather.apply(tensor)
