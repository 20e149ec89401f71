"""The public methods of the trainer that publish a run. A push that fails never ends it."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from starft_hf.data.columns import ImageColumns
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.card_edits import update_card
from starft_hf.hub.model_card import CardContent, render_card
from starft_hf.hub.pushing import OF_THE_RUN, PushError, advice, open_repository, push_folder, reason
from starft_hf.hub.record import RunRecord, make_record, model_source, public_id
from starft_hf.hub.snippets import Usage
from starft_hf.models.adapters import base_model_of, base_state, is_adapted, merge_and_save
from starft_hf.models.heads import HEAD_FILE, HEAD_NAME
from starft_hf.training.setup import RunSetup
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.text import without_paths


logger = logging.get_logger(__name__)

_FIGURES = "figures"


class HubMixin(Trainer):
    """The public methods of `StarFTTrainer` that save a run for others and publish it."""

    setup: RunSetup
    evaluation_results: dict[str, EvaluationResult]
    zero_shot_results: dict[str, EvaluationResult]
    evaluated_columns: dict[str, ImageColumns]
    _start: str | None = None
    _evaluated_step: int | None = None

    @property
    def record(self) -> RunRecord:
        """What someone needs to repeat the run, as `starft.json` keeps it."""
        setup, start = self.setup, model_source(base_model_of(self.model), self._start)
        diagnostics = None if setup.sample_weights is None else setup.sample_weights.diagnostics
        return make_record(
            self.args.recorded_settings,
            setup.pool,
            getattr(self.train_dataset, "dataset", None),
            class_names=setup.plan.class_names,
            start=start,
            reference=setup.reference_source or start,
            processes=self.args.world_size,
            reg_weight=None if setup.reference is None else setup.reg_weight,
            sample_weights=None if diagnostics is None else asdict(diagnostics),
        )

    def record_start(self) -> None:
        """Record which weights training starts from, once."""
        if self._start is None and self.args.should_save:
            state = base_state(self.model)
            self._start = tensors_digest({name: state[name] for name in state if not name.startswith(HEAD_NAME)})

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`; a push that fails is logged, and what was saved stays."""
        try:
            super().save_model(output_dir, _internal_call)
        except PushError as error:
            logger.error("%s", error)

    def save_record(self, output_dir: str | PathLike[str]) -> None:
        """Write `starft.json` beside the weights."""
        self.record.save(output_dir)

    def merge_and_save(self, output_dir: str | PathLike[str]) -> None:
        """Save the model with its adapter merged in, as a plain checkpoint with its processor, record and card.

        Raises:
            ValueError: if the model has no adapter.
        """
        if self.args.should_save:
            self._save_merged(Path(output_dir), None)

    def _save_merged(self, folder: Path, repo_id: str | None) -> None:
        merge_and_save(self.model, self.processing_class, folder)
        self.save_record(folder)
        self._write_card(folder, folder.name, repo_id, merged=True)

    # The card

    def create_model_card(
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the model card, README.md, into the output folder; what a person has written into one stays.

        Args:
            license: of the model; None takes that of the base model.
            tags: further tags.
            model_name: the heading.
            dataset: ids of the training data on the Hub; None takes what `datasets` knows of them.
            kwargs: further arguments of `Trainer.create_model_card`, which have no effect.
        """
        if self.is_world_process_zero():
            title = model_name or self._wanted_repo.split("/")[-1]
            tags = [tags] if isinstance(tags, str) else list(tags or ())
            datasets = [dataset] if isinstance(dataset, str) else dataset
            stated: dict[str, Any] = {"license": license, "tags": tags, "datasets": datasets}
            self._write_card(Path(str(self.args.output_dir)), title, self.hub_model_id, **stated)

    def _write_card(
        self, folder: Path, title: str, repo_id: str | None, *, merged: bool = False, **stated: Any
    ) -> None:
        record, adapter, texts = self.record, None, self.setup.encoder.encode_texts
        if is_adapted(self.model) and not merged:
            config: Any = next(iter(self.model.peft_config.values()))
            adapter = str(getattr(config.peft_type, "value", config.peft_type))
        license, datasets = stated.get("license"), stated.get("datasets")
        # Evaluation sets may have been named by their folders.
        results, zero_shot = (
            {without_paths(name): result for name, result in found.items()}
            for found in (self.evaluation_results, self.zero_shot_results)
        )
        content = CardContent(
            title=title,
            repo_id=repo_id,
            record=record,
            results=results,
            zero_shot=zero_shot,
            adapter=adapter,
            head=(folder / HEAD_FILE).is_file(),
            license=license or _license_of(record.start["id"], self.args.hub_token),
            datasets=_dataset_ids(getattr(self.train_dataset, "dataset", None)) if datasets is None else datasets,
            tags=stated.get("tags", ()),
            usage=Usage(
                getattr(base_model_of(self.model).config, "model_type", ""),
                texts.max_length if texts.fixed_length else None,
                {without_paths(name): self.evaluated_columns[name] for name in self.evaluation_results},
            ),
            figures=_save_figures(folder, zero_shot, results),
        )
        kept = [key for key, value in (("license", license), ("datasets", datasets)) if value is not None]
        update_card(folder, render_card(content, self.args.card_template), kept)

    # Publishing

    @property
    def _wanted_repo(self) -> str:
        return str(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name)

    def _push_settings(self, **changes: Any) -> dict[str, Any]:
        """Where and how this run is published; what is not None in `changes` wins."""
        args = self.args
        own = {"private": args.hub_private_repo, "revision": args.hub_revision, "token": args.hub_token}
        return own | {name: value for name, value in changes.items() if value is not None}

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, so that a missing right is an error before training.

        Raises:
            PushError: if nobody is logged in or the token does not suffice. Other failures are tried again later.
        """
        self.push_in_progress = None
        if not self.is_world_process_zero():
            return
        wanted = self._wanted_repo
        try:
            self.hub_model_id = open_repository(wanted, **self._push_settings(token=token, private=private))
        except (LocalTokenNotFoundError, HFValidationError) as error:
            raise PushError(reason(error, wanted)) from error
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if isinstance(error, HfHubHTTPError) and status in (401, 403):
                raise PushError(reason(error, wanted)) from error
            logger.warning("%s It is tried again when something is saved.", reason(error, wanted))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        tag: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save and publish the model with its processor, `starft.json`, card and plots.

        Args:
            commit_message: of the commit.
            blocking: whether to wait until it is done.
            token: with the right to write.
            revision: the branch; None is `hub_revision`, or main.
            private: whether a new repository is private.
            tag: a Git tag for the commit.
            kwargs: of `create_model_card`, such as `tags` for the card.

        Returns:
            The commit, or with `blocking=False` a future of it; None in all processes but one.

        Raises:
            PushError: if it could not be published. What was saved stays.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        super().save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.create_model_card(**kwargs)
        self._finish_current_push()
        settings = self._push_settings(token=token, private=private, revision=revision)
        repo_id, message = self.hub_model_id or self._wanted_repo, commit_message or "End of training"
        return push_folder(str(self.args.output_dir), repo_id, tag=tag, message=message, blocking=blocking, **settings)

    def publish_trained(self) -> None:
        """At the end of a run that is pushed as it trains: publish the model with its results.

        It is evaluated, unless it was after its last step; with `hub_strategy="end"`, the user calls `push_to_hub`.
        If the Hub does not answer, that is logged as an error.
        """
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        step = self.state.global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            step = self.state.best_global_step or step
        if self.eval_dataset is not None and self._evaluated_step != step:
            self.evaluate()
        try:
            self.push_to_hub()
        except PushError as error:
            logger.error("%s", error)

    def push_merged_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Publish the model with its adapter merged in, as a plain checkpoint with its processor, record and card.

        Args:
            repo_id: the repository.
            kwargs: of `push_folder`, such as `private` or `revision`.

        Raises:
            ValueError: if the model has no adapter.
            PushError: if it could not be published.
        """
        if not self.is_world_process_zero():
            return None
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.split("/")[-1]
            self._save_merged(folder, repo_id)
            return push_folder(folder, repo_id, **{"token": self.args.hub_token, **kwargs})

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self._log_failed_pushes()
        in_progress: Any = self.push_in_progress
        running = in_progress is not None and not in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            if self.hub_model_id is None:
                self.init_hf_repo()
            repo_id = self.hub_model_id
            if repo_id is None:
                return
            output = Path(str(self.args.output_dir))
            for file in Path(checkpoint_folder).iterdir():
                if file.is_file() and not OF_THE_RUN.match(file.name):
                    shutil.copy(file, output / file.name)
            self.create_model_card()
            message = f"Training in progress, step {self.state.global_step}"
            settings = self._push_settings(message=message, blocking=False)
            jobs = [push_folder(output, repo_id, **settings)]
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = strategy == HubStrategy.CHECKPOINT
                path = "last-checkpoint" if last else Path(checkpoint_folder).name
                jobs.append(push_folder(checkpoint_folder, repo_id, path_in_repo=path, **settings))
        except Exception as error:
            # A run of hours does not end because the Hub does not answer.
            cause = error if isinstance(error, PushError) else reason(error, repo_id)
            logger.error("%s Training continues.", cause)
            return
        if running:
            in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._log_failed_pushes()

    def _log_failed_pushes(self) -> None:
        """Log which of the pushes in the background failed: they do not."""
        in_progress: Any = getattr(self, "push_in_progress", None)
        for job in list(getattr(in_progress, "jobs", ())):
            if job.done() and (error := job.exception()) is not None:
                in_progress.jobs.remove(job)
                where = {"private": self.args.hub_private_repo, "revision": self.args.hub_revision}
                how = advice(str(self.args.output_dir), self.hub_model_id, **where)
                logger.error("%s %s", reason(error, self.hub_model_id), how)


def _license_of(model_id: str | None, token: str | None) -> str | None:
    # A card without it is better than no card.
    with suppress(Exception):
        card = None if model_id is None else ModelCard.load(model_id, token=token, ignore_metadata_errors=True)
        return None if card is None else card.data.license
    return None


def _dataset_ids(dataset: Any) -> list[str]:
    """The repositories on the Hub that `datasets` has read a dataset from."""
    addresses = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    prefix = "hf://datasets/"
    found = [address.removeprefix(prefix).split("@")[0] for address in addresses if address.startswith(prefix)]
    return [name for name in dict.fromkeys(found) if public_id(name) is not None]


def _save_figures(
    folder: Path, zero_shot: Mapping[str, EvaluationResult], results: Mapping[str, EvaluationResult]
) -> list[tuple[str, str]]:
    import importlib.util

    from starft_hf.report import RobustnessReport, Run

    if not results or importlib.util.find_spec("matplotlib") is None:
        return []
    runs = [Run("fine-tuned", 0, results)]
    if set(zero_shot) == set(results):
        runs.insert(0, Run("zero-shot", 0, zero_shot))
    figures = RobustnessReport(runs).save_figures(folder / _FIGURES)
    return [(alt, f"{_FIGURES}/{path.name}") for alt, path in figures]
