"""`starft push`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import Command


class PushCommand(Command):
    """Publishes what a run has saved."""

    name = "push"
    summary = "publish the folder of a run on the Hub"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("folder", type=Path, help="what the run has saved")
        parser.add_argument("--repo-id", help="name, or organisation/name (default: the name of the folder)")
        parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
        parser.add_argument("--revision", help="branch, made where it does not exist (default: main)")
        parser.add_argument("--tag", help="a tag for the commit")
        parser.add_argument("--message", default="Upload model", help="of the commit")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        if not any((options.folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise argparse.ArgumentTypeError(
                f"{options.folder} has neither config.json nor adapter_config.json; pass a folder that a run has saved"
            )
        from starft_hf.cli.output import print_json
        from starft_hf.hub.pushing import push_folder

        commit = push_folder(
            options.folder,
            options.repo_id or options.folder.resolve().name,
            private=options.private,
            revision=options.revision,
            tag=options.tag,
            message=options.message,
        )
        if options.json:
            print_json({"commit_url": commit.commit_url})
        else:
            print(f"Published: {commit.commit_url}")
