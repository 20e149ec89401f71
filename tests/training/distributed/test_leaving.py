"""How a process takes leave of the others."""

import gc
import weakref

import torch.distributed as dist

from starft_hf.utils.collectives import destroy_process_group


class Cycle:
    """As a trainer, which its callbacks and its optimizer refer to."""

    def __init__(self):
        self.myself = self


def test_what_is_in_cycles_is_let_go_of_while_there_is_a_group():
    """DDP's reducer, if it is the last to refer to the group, waits for threads that may be waiting for it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    there_was_a_group = []
    gc.disable()
    try:
        weakref.finalize(Cycle(), lambda: there_was_a_group.append(dist.is_initialized()))
        destroy_process_group()
    finally:
        gc.enable()
    assert there_was_a_group == [True]
    assert not dist.is_initialized()
    destroy_process_group()
