"""`starft push`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import given
from starft_hf.cli.output import show


SUMMARY = "publish the folder of a run on the Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the folder that a run saved")
    parser.add_argument("--repo_id", help="name, or organization/name (default: the name of the folder)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch, created if it does not exist (default: main)")
    parser.add_argument("--tag", help="tag of the commit")
    parser.add_argument("--message", default="Upload model", help="message of the commit")
    parser.add_argument("--include", nargs="+", help="further files to publish, as paths or patterns in the folder")
    parser.add_argument("--timeout", type=float, help="seconds that the Hub may take to answer (default: 60)")


def run(options: argparse.Namespace) -> None:
    folder = options.folder
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise argparse.ArgumentTypeError(
            f"{folder} has neither config.json nor adapter_config.json; pass a folder that a run saved"
        )
    from starft_hf.hub.pushing import push_folder

    settings = given(options, "private", "revision", "tag", "message", "include", "timeout")
    commit = push_folder(folder, options.repo_id or folder.resolve().name, **settings)
    show(options, {"commit_url": commit.commit_url}, f"Published: {commit.commit_url}")
