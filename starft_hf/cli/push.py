"""`starft push`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import CommandParser
from starft_hf.cli.output import show


SUMMARY = "publish the folder of a run on the Hub"


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(prog=prog, description=SUMMARY)
    parser.add_argument("folder", type=Path, help="the folder that a run saved")
    parser.add_argument("--repo-id", help="name, or organization/name (default: the name of the folder)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch, created if it does not exist (default: main)")
    parser.add_argument("--tag", help="tag of the commit")
    parser.add_argument("--message", default="Upload model", help="message of the commit")
    return parser


def run(options: argparse.Namespace) -> None:
    if not any((options.folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise argparse.ArgumentTypeError(
            f"{options.folder} has neither config.json nor adapter_config.json; pass a folder that a run saved"
        )
    from starft_hf.hub.pushing import push_folder

    commit = push_folder(
        options.folder,
        options.repo_id or options.folder.resolve().name,
        private=options.private,
        revision=options.revision,
        tag=options.tag,
        message=options.message,
    )
    show(options, {"commit_url": commit.commit_url}, f"Published: {commit.commit_url}")
