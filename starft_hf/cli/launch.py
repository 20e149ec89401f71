"""Running a command again in several processes, and the configurations for it that come with the package."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starft_hf.cli.arguments import option


# The file in which a process writes its exit code for the one that launched it: launchers turn every failure into 1.
_CODE_FILE = "STARFT_EXIT_CODE_FILE"


def config_file(name: str, *, or_path: bool = False) -> Path:
    """The path of the configuration `name` for `accelerate launch`; `or_path` also accepts the path of a file."""
    from starft_hf.utils.names import unknown_name

    files = {file.stem: file for file in Path(__file__).parent.glob("accelerate_configs/*.yaml")}
    if name not in files:
        if or_path and Path(name).is_file():
            return Path(name)
        raise argparse.ArgumentTypeError(unknown_name("configuration", name, sorted(files)))
    return files[name]


def launched() -> bool:
    """Whether accelerate or torchrun started this process."""
    # Accelerate sets no rank for a single process without a distributed type.
    return "LOCAL_RANK" in os.environ or _CODE_FILE in os.environ


def launched_by_user() -> bool:
    """Whether accelerate or torchrun started this process without `launch`."""
    return launched() and _CODE_FILE not in os.environ


@dataclass
class LaunchArguments:
    """How a command that trains starts its processes."""

    processes: int | None = option(None, "Processes on all machines; by default 1, or as the configuration says.")
    accelerate_config: str | None = option(None, "For `accelerate launch`: ddp, fsdp2, two_machines or a file.")
    machine_rank: int | None = option(None, "Number of this machine, from 0.")
    main_process_ip: str | None = option(None, "Address of machine 0.")


def launcher_flags(own: LaunchArguments) -> list[str]:
    """The flags of `accelerate launch`, empty if the command is to run in this process."""
    if own.processes is not None and own.processes < 1:
        raise argparse.ArgumentTypeError(f"--processes is {own.processes}; it must be a positive integer")
    machine: dict[str, Any] = {"machine_rank": own.machine_rank, "main_process_ip": own.main_process_ip}
    flags: dict[str, Any] = {"config_file": config_file("ddp"), "num_processes": own.processes}
    if own.accelerate_config is not None:
        flags |= {"config_file": config_file(own.accelerate_config, or_path=True), **machine}
        _check_machines(own.accelerate_config, flags["config_file"], machine)
    elif any(value is not None for value in machine.values()):
        raise argparse.ArgumentTypeError(
            "--machine_rank and --main_process_ip need several machines; pass --accelerate_config two_machines as well"
        )
    elif own.processes in (None, 1):
        return []
    else:
        # The precision is that of the command's own settings.
        flags["mixed_precision"] = "no"
    return [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]


def _check_machines(config: str, file: Path, machine: dict[str, Any]) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        content = load_config_from_file(str(file))
        several = content.num_machines > 1 and content.main_process_ip is None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(
            f"--accelerate_config {config} is not a configuration of `accelerate launch` ({reason}); "
            "write one with `accelerate config`, or pass ddp or fsdp2"
        ) from error
    if several and None in machine.values():
        raise argparse.ArgumentTypeError(
            f"--accelerate_config {config} is for several machines; on each, pass its --machine_rank (from 0) and the "
            "--main_process_ip of machine 0"
        )


def launch(arguments: Sequence[str], flags: Sequence[str]) -> int:
    """Run the `starft` command line `arguments` through `accelerate launch` with its `flags`; returns the exit code.

    SIGTERM is passed on, and the processes end when this one is killed. The exit code is the one that
    `report_exit_code` received, if any.
    """
    import subprocess
    import tempfile

    import torch

    from starft_hf.training.checkpointing.interruption import INTERRUPTED
    from starft_hf.utils.processes import launcher_variables

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code"
        command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "starft_hf", *arguments]
        variables = {_CODE_FILE: str(file), **launcher_variables()}
        # Since torch 2.6 there is a question for all kinds.
        accelerator = getattr(torch, "accelerator", torch.cuda)
        if not accelerator.is_available():
            # Without it, Accelerate would let every process train by itself.
            variables["ACCELERATE_USE_CPU"] = "true"
        process = subprocess.Popen(command, env={**os.environ, **variables})
        former = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, former)
        # The launcher itself was stopped, before it started any process.
        code = INTERRUPTED if code == -signal.SIGTERM else code
        return int(file.read_text()) if file.exists() else code


def report_exit_code(code: int) -> None:
    """Pass an exit code to the process that launched this one, if any."""
    if _CODE_FILE in os.environ:
        Path(os.environ[_CODE_FILE]).write_text(str(code))
