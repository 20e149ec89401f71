"""By hand, as root: what XFS still holds after a power cut, as in a copy of its disk that is taken without warning."""

import shutil
import subprocess

import pytest
from transformers import TrainerCallback

from starft_hf.training.checkpointing.files import last_valid_checkpoint
from tests.support.disk import mounted
from tests.support.resumed_run import make_trainer


class CopyDisk(TrainerCallback):
    """Copies the image of a disk as it is, before every step but the first: after a save and what it removed."""

    def __init__(self, image):
        self.image = image

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step:
            copy = self.image.with_name(f"{state.global_step}.img")
            subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)


@pytest.mark.soak
def test_at_every_moment_a_power_cut_leaves_the_last_checkpoint(tmp_path):
    """The only one there is: the former was removed because this one was on the disk."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is not installed; on Debian: apt-get install xfsprogs")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(400 * 2**20)
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    settings = {"save_steps": 1, "save_total_limit": 1, "max_steps": 5, "eval_strategy": "no"}
    with mounted(tmp_path / "disk", image, "loop") as disk:
        trainer = make_trainer(disk, callbacks=[CopyDisk(image)], **settings)
        trainer.train()
    for step in range(1, 5):
        with mounted(tmp_path / f"after {step}", tmp_path / f"{step}.img", "loop,nouuid") as after:
            found, flaws = last_valid_checkpoint(after / "output")
            assert (found and found.name, flaws) == (f"checkpoint-{step}", [])
