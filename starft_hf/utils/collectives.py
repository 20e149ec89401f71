"""What several processes owe each other: columns, and nothing else.

The losses compare the rows of a batch with all its columns. With K processes, each computes the rows it holds against
the columns of all, gathered with gradients. Gradients are then averaged over the processes, as DDP and FSDP do, and
are those of one process with the whole batch.
"""

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


T = TypeVar("T")

# The index that stands for no sample. A process whose share of the last batch is short gets it instead, so that all
# processes take part in every step with as many rows.
NO_SAMPLE = -1


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first_on_machine() -> bool:
    """Whether this process is the one that writes files on its machine."""
    return world_size() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0


class _GatherColumns(torch.autograd.Function):
    # torch's own function for this is deprecated in its later versions, and what replaces it is not in earlier ones.

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_values(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if dist.get_backend() == "nccl":
            gradient = gradient.contiguous()
            own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        # What else there is, such as gloo, has no such operation in every version.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather_columns(rows: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, `(K n, ...)`, process by process, with gradients to where they came from.

    Every process must hold as many rows. With one process, `rows` itself.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherColumns.apply(rows)
    return gathered


@torch.no_grad()
def gather_values(rows: Tensor) -> Tensor:
    """The same without gradients."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of `values` over all processes."""
    return gather_values(values[None]).mean(0)


def all_agree(answer: bool, device: torch.device) -> bool:
    """Whether `answer` is true in every process, so that all of them do the same."""
    if world_size() == 1:
        return answer
    return bool(gather_values(torch.tensor([answer], device=device)).all())


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` gives in the first process, in all of them; an exception as well."""
    if world_size() == 1:
        return compute()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def share_of(size: int) -> range:
    """The indices of `size` things that this process takes care of."""
    return range(rank(), size, world_size())


@torch.no_grad()
def assemble(share: Tensor, size: int) -> Tensor:
    """What all processes computed of `size` things, `(size, ...)`, in order; `share` is that of `share_of(size)`."""
    processes = world_size()
    if processes == 1:
        return share
    longest = -(-size // processes)
    padded = share.new_zeros(longest, *share.shape[1:])
    padded[: len(share)] = share
    parts = gather_values(padded).unflatten(0, (processes, longest))
    return parts.transpose(0, 1).flatten(0, 1)[:size]


def leave() -> None:
    """Take leave of the other processes, as the last thing that a program does.

    A process that ends without it may be taken down by threads of gloo that still listen. They end with the last
    reference to the group, and a trainer, which holds one, is in cycles: let go of it before.
    """
    # In this order: DDP's reducer ends what it refers to last without releasing the GIL, which gloo's threads may be
    # waiting for. The group itself does release it.
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def forget_preparation(accelerator: Any, model: Any) -> None:
    """Let Accelerate prepare a model for training that it has prepared for evaluation.

    It marks the latter as prepared, though it has wrapped nothing. Training would leave it at that, and every process
    would train a model of its own.
    """
    if vars(model).pop("_is_accelerate_prepared", False):
        accelerator._models.clear()
