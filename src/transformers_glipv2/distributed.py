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
    if num_processes() == 1:
        return tensor
    # Imported here, as not every build of PyTorch has collectives.
    from torch.distributed import _functional_collectives as collectives

    if hasattr(collectives, "all_gather_single_autograd"):
        return collectives.all_gather_single_autograd(tensor.contiguous(), 0, dist.group.WORLD)  # type: ignore[arg-type]
    # Its predecessor, which newer releases deprecate.
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor))
