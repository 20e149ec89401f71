"""Ready configurations for `accelerate launch`.

    accelerate launch --config_file "$(python -m starft_hf.cli.accelerate_configs ddp)" train.py

prints nothing of its own: the command in the middle gives the path of a file.
"""

from pathlib import Path

from starft_hf.utils.names import unknown_name


def config_file(name: str) -> Path:
    """The file of a configuration: "ddp", "fsdp2" or "two_machines".

    Raises:
        ValueError: if there is none of that name.
    """
    files = {file.stem: file for file in Path(__file__).parent.glob("*.yaml")}
    if name not in files:
        raise ValueError(unknown_name("configuration", name, sorted(files)))
    return files[name]
