"""Collectives: gathering candidates, shards and decisions from all processes.

Each of K processes computes the losses of its own rows against the candidates of all, gathered with gradients. DDP and
FSDP then average gradients over processes, which gives those of one process with the whole batch.
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

# The index of padding rows. A process with fewer samples of the last batch is padded with them, so that all processes
# have the same number of rows in every step.
NO_SAMPLE = -1


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def is_local_main_process() -> bool:
    """Whether this process is the one that writes files on its machine."""
    return world_size() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0


class _GatherWithGradient(torch.autograd.Function):
    # torch's own function is deprecated in its later versions, and earlier ones lack the replacement.

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
        # Other backends, such as gloo, do not have reduce_scatter in every version.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather_candidates(rows: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, `(K n, ...)`, in the order of ranks; gradients flow back to all of them.

    Every process must have the same number of rows. With one process, `rows` itself.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherWithGradient.apply(rows)
    return gathered


@torch.no_grad()
def gather_values(rows: Tensor) -> Tensor:
    """The same as `gather_candidates` without gradients."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of `values` over all processes."""
    return gather_values(values[None]).mean(0)


def all_processes_agree(answer: bool, device: torch.device) -> bool:
    """Whether `answer` is true in every process, so that all take the same branch. Also a barrier."""
    if world_size() == 1:
        return answer
    return bool(gather_values(torch.tensor([answer], device=device)).all())


def run_on_main_process(compute: Callable[[], T]) -> T:
    """Call `compute` in the main process alone; all processes return its result, or raise its exception."""
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


def shard_indices(size: int) -> range:
    """The indices, out of `size`, that this process computes."""
    return range(rank(), size, world_size())


@torch.no_grad()
def gather_shards(shard: Tensor, size: int) -> Tensor:
    """The rows that all processes computed, `(size, ...)`, in order; `shard` has those of `shard_indices(size)`."""
    processes = world_size()
    if processes == 1:
        return shard
    longest = -(-size // processes)
    padded = shard.new_zeros(longest, *shard.shape[1:])
    padded[: len(shard)] = shard
    parts = gather_values(padded).unflatten(0, (processes, longest))
    return parts.transpose(0, 1).flatten(0, 1)[:size]


def destroy_process_group() -> None:
    """Destroy the process group, as the last thing that a program does: otherwise gloo's threads may crash its exit.

    They end with the last reference to the group. A trainer holds one, in reference cycles: delete it before.
    """
    # Collect first, then destroy: a DDP reducer that holds the last reference to the group would destroy it without
    # releasing the GIL, which gloo's threads may be waiting for. `dist.destroy_process_group` does release it.
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
