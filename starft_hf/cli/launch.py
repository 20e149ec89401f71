"""Running a command again in several processes, and the configurations for it that come with the package."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


# The file in which a process leaves its exit code for the one that launched it: launchers turn every failure into 1.
_CODE_FILE = "STARFT_EXIT_CODE_FILE"


def config_file(name: str, *, or_path: bool = False) -> Path:
    """The path of a configuration for `accelerate launch`.

    Args:
        name: "ddp", "fsdp2" or "two_machines".
        or_path: also accept the path of any other file.

    Raises:
        argparse.ArgumentTypeError: if the name is unknown.
    """
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


def launcher_flags(
    config: str | None, processes: int | None, machine_rank: int | None, main_process_ip: str | None
) -> list[str]:
    """The flags of `accelerate launch`, empty if the command runs in this process.

    Args:
        config: the name or path of a configuration.
        processes: the number of processes on all machines; None takes that of the configuration.
        machine_rank: the number of this machine.
        main_process_ip: the address of machine 0.

    Raises:
        argparse.ArgumentTypeError: if they contradict each other or the configuration cannot be read.
    """
    flags: dict[str, object]
    if processes is not None and processes < 1:
        raise argparse.ArgumentTypeError(f"--processes is {processes}; it must be a positive integer")
    machine = {"machine_rank": machine_rank, "main_process_ip": main_process_ip}
    if config is not None:
        file = config_file(config, or_path=True)
        _check_machines(config, file, machine)
        flags = {"config_file": file, "num_processes": processes, **machine}
    elif any(value is not None for value in machine.values()):
        raise argparse.ArgumentTypeError(
            "--machine_rank and --main_process_ip need a configuration for several machines; "
            "pass --accelerate_config two_machines as well"
        )
    elif processes in (None, 1):
        return []
    else:
        # The precision is that of the command's own settings.
        flags = {"config_file": config_file("ddp"), "num_processes": processes, "mixed_precision": "no"}
    return [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]


def _check_machines(config: str, file: Path, machine: dict[str, object]) -> None:
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
            f"--accelerate_config {config} is for several machines; on each of them, pass its --machine_rank (from 0) "
            "and the --main_process_ip of machine 0"
        )


def launch(arguments: Sequence[str], flags: Sequence[str]) -> int:
    """Run a `starft` command line through `accelerate launch`; returns the exit code.

    Args:
        arguments: the command line, without the program's name.
        flags: those of `accelerate launch`.

    SIGTERM is passed on, and the exit code is the one that `tell_launcher` received, if any.
    """
    import subprocess
    import tempfile

    from starft_hf.training.checkpointing.interruption import INTERRUPTED

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code"
        command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "starft_hf", *arguments]
        process = subprocess.Popen(command, env={**os.environ, _CODE_FILE: str(file)})

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        former = signal.signal(signal.SIGTERM, pass_on)
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, former)
        # The launcher itself was stopped, before it started any process.
        code = INTERRUPTED if code == -signal.SIGTERM else code
        return int(file.read_text()) if file.exists() else code


def tell_launcher(code: int) -> None:
    """Leave an exit code for the process that launched this one, if any."""
    if _CODE_FILE in os.environ:
        Path(os.environ[_CODE_FILE]).write_text(str(code))
