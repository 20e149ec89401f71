"""The public methods of the trainer that publish a run. A push that fails never ends it."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from starft_hf.data.columns import ImageColumns
from starft_hf.evaluation.results import classification_results
from starft_hf.hub.card_content import dataset_ids, license_of, save_figures
from starft_hf.hub.card_edits import update_card
from starft_hf.hub.model_card import CardContent, render_card
from starft_hf.hub.publishable import publishable
from starft_hf.hub.pushing import PushError, advice, open_repository, push_folder, reason
from starft_hf.hub.record import RunRecord, make_record, model_source
from starft_hf.hub.snippets import Usage
from starft_hf.models.adapters import base_model_of, base_state, is_adapted
from starft_hf.models.fsdp import before_sharding, check_mergeable, whole_weights
from starft_hf.models.heads import HEAD_FILE, HEAD_NAME
from starft_hf.models.sigmoid import BIAS, has_added_bias
from starft_hf.models.towers import works_alone
from starft_hf.report import TrainingPoint
from starft_hf.training.checkpointing.files import read_content, saving_results
from starft_hf.training.checkpointing.publishing import copy_to_publish
from starft_hf.training.measurements import Measurements
from starft_hf.training.parameter_groups import trained_parts
from starft_hf.training.saving import save_merged
from starft_hf.training.setup import RunSetup
from starft_hf.utils.files import expanded
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.text import without_paths
from starft_hf.utils.waiting import NoAnswerError, result_of, upload_limit


logger = logging.get_logger(__name__)


class HubMixin(Trainer):
    """The public methods of `StarFTTrainer` that save a run for others and publish it."""

    setup: RunSetup
    measured: Measurements
    head: nn.Linear | None
    class_names: Sequence[str] | None
    evaluated_columns: dict[str, ImageColumns]
    # The shares of the trained weights in interpolated ones, and of data without splits that were held out.
    alpha: float | None = None
    held_out: float | None = None
    _start: str | None = None
    _evaluated_step: int | None = None

    @property
    def record(self) -> RunRecord:
        """What someone needs to repeat the run, as `starft.json` keeps it."""
        setup, start = self.setup, model_source(base_model_of(self.model), self._start)
        diagnostics = None if setup.sample_weights is None else setup.sample_weights.diagnostics
        # What "auto" stands for here.
        share = {"plain_caption_share": setup.plan.plain_share} if setup.plan.plain_share else {}
        return make_record(
            # `auto_find_batch_size` may have found a smaller one.
            {**self.args.recorded_settings, "per_device_train_batch_size": self._train_batch_size, **share},
            setup.pool,
            getattr(self.train_dataset, "dataset", None),
            drawn_from=setup.plan.drawn_from,
            held_out=self.held_out,
            class_names=setup.plan.class_names,
            start=start,
            reference=setup.reference_source or start,
            processes=self.args.world_size,
            regularizer=setup.regularizer_name,
            reg_weight=None if setup.reference is None else setup.reg_weight,
            sample_weights=None if diagnostics is None else asdict(diagnostics),
            alpha=self.alpha,
            trained=trained_parts(self.model, self.args),
        )

    def record_start(self) -> None:
        """Record which weights training starts from, once."""
        if self._start is None and self.args.should_save:
            state = base_state(self.model)
            # Neither a head nor a bias that the run has added are weights it starts from.
            added = (HEAD_NAME, BIAS) if has_added_bias(self.model) else HEAD_NAME
            self._start = tensors_digest({name: state[name] for name in state if not name.startswith(added)})

    def measure_start(self, checkpoint: Path | None) -> None:
        """Measure what the trained model is compared with: the weights that training starts from.

        These are in the model, unless it was trained already, also if training resumes from `checkpoint`.
        """
        self.measured.begin(self.model)
        if not self.measured.at_start:
            return
        kept = (checkpoint and read_content(checkpoint)) or {}
        if not kept.get("retention_before"):
            with before_sharding(self):
                self.measured.retention_before = self.setup.evaluate_retention_sets(
                    self.model, self.args, self.accelerator
                )
        # `Trainer` evaluates at the start of a run from the beginning.
        wanted = self.args.eval_on_start and self.eval_dataset is not None
        if wanted and checkpoint is not None and not kept.get("zero_shot"):
            named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for name, dataset in named.items():
                prefix = f"eval_{name}" if name else "eval"
                loader = self.get_eval_dataloader(name or dataset)
                self.evaluation_loop(loader, "Evaluation", prediction_loss_only=True, metric_key_prefix=prefix)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`; a push that fails is logged, and a full disk raises a CheckpointError."""
        folder = expanded(output_dir or str(self.args.output_dir))
        try:
            with saving_results(folder, Path(str(self.args.output_dir))), whole_weights(self.accelerator):
                super().save_model(str(folder), _internal_call)
        except PushError as error:
            logger.error("%s", error)

    def save_record(self, output_dir: str | PathLike[str]) -> None:
        """Write `starft.json` beside the weights."""
        self.record.save(output_dir)

    def merge_and_save(self, output_dir: str | PathLike[str]) -> None:
        """Save the model with its adapter merged in, as a plain checkpoint with its processor, record and card.

        Raises:
            ValueError: if the model has no adapter, or FSDP has sharded it.
            FileExistsError: if the folder holds an adapter, or the base model of this one.
        """
        check_mergeable(self.model)
        if self.args.should_save:
            self._save_merged(expanded(output_dir), None)

    def _save_merged(self, folder: Path, repo_id: str | None) -> None:
        save_merged(self.model, self.processing_class, folder, self.head, self.class_names)
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
        results = self.measured.of(self.model)
        before = self.measured.comparable(results)
        for name in self.measured.latest.keys() - results.keys() if not self.is_in_train else ():
            logger.warning("The weights have changed since %r was evaluated, so the card has no results on it.", name)
        columns = {without_paths(name): self.evaluated_columns[name] for name in classification_results(results)}
        # Evaluation sets may have been named by their folders.
        results, before = ({without_paths(name): one for name, one in part.items()} for part in (results, before))
        log = TrainingPoint.from_log_history(self.state.log_history)
        content = CardContent(
            title=title,
            repo_id=repo_id,
            record=record,
            results=results,
            before=before,
            retention=self.measured.retention_of(self.model),
            adapter=adapter,
            head=(folder / HEAD_FILE).is_file(),
            license=license or license_of(record.start["id"], self.args.hub_token, self.args.hub_timeout),
            datasets=dataset_ids(getattr(self.train_dataset, "dataset", None)) if datasets is None else datasets,
            tags=stated.get("tags", ()),
            usage=Usage(
                getattr(base_model_of(self.model).config, "model_type", ""),
                texts.max_length if texts.fixed_length else None,
                columns,
                works_alone(self.model),
            ),
            figures=save_figures(folder, before, results),
            defaults=self.args.settings_at_defaults,
            log=[(point.step, point.base_loss, point.reg_loss) for point in log],
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
        own["timeout"] = args.hub_timeout
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
        with whole_weights(self.accelerator):
            super().save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.create_model_card(**kwargs)
        self._finish_current_push()
        settings = self._push_settings(token=token, private=private, revision=revision)
        settings |= {"message": commit_message or "End of training", "include": self.args.hub_include}
        repo_id = self.hub_model_id or self._wanted_repo
        return push_folder(str(self.args.output_dir), repo_id, tag=tag, blocking=blocking, **settings)

    def evaluate_trained(self) -> None:
        """Evaluate the trained model, if there is an evaluation set, unless it was after its last step."""
        step = self.state.global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            step = self.state.best_global_step or step
        if self.eval_dataset is not None and self._evaluated_step != step:
            self.evaluate()

    def publish_trained(self) -> None:
        """At the end of a run that is pushed as it trains: publish the model with its results.

        It is evaluated, unless it was after its last step; with `hub_strategy="end"`, the user calls `push_to_hub`.
        If the Hub does not answer, that is logged as an error.
        """
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        self.evaluate_trained()
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
            ValueError: if the model has no adapter, or FSDP has sharded it.
            PushError: if it could not be published.
        """
        check_mergeable(self.model)
        if not self.is_world_process_zero():
            return None
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.split("/")[-1]
            self._save_merged(folder, repo_id)
            return push_folder(
                folder, repo_id, **{"token": self.args.hub_token, "timeout": self.args.hub_timeout, **kwargs}
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self._log_failed_pushes()
        in_progress: Any = self.push_in_progress
        running = in_progress is not None and not in_progress.is_done()
        if running and not self.args.hub_always_push and strategy != HubStrategy.ALL_CHECKPOINTS:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            if self.hub_model_id is None:
                self.init_hf_repo()
            repo_id = self.hub_model_id
            if repo_id is None:
                return
            output = Path(str(self.args.output_dir))
            for name in publishable(Path(checkpoint_folder))[0]:
                shutil.copy(Path(checkpoint_folder) / name, output / name)
            self.create_model_card()
            message = f"Training in progress, step {self.state.global_step}"
            settings = self._push_settings(message=message, blocking=False)
            jobs = [push_folder(output, repo_id, include=self.args.hub_include, **settings)]
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                last = strategy == HubStrategy.CHECKPOINT
                path = "last-checkpoint" if last else Path(checkpoint_folder).name
                # A copy, because the checkpoint itself may be removed before it is uploaded.
                copy = copy_to_publish(Path(checkpoint_folder))
                job = push_folder(copy, repo_id, path_in_repo=path, include=["*", "*/*"], **settings)
                job.add_done_callback(lambda _: shutil.rmtree(copy, ignore_errors=True))
                jobs.append(job)
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
        in_progress: Any = getattr(self, "push_in_progress", None)
        for job in list(getattr(in_progress, "jobs", ())):
            try:
                result_of(job, "the Hub, for an upload that began while training", self._upload_limit())
            except NoAnswerError as error:
                in_progress.jobs.remove(job)
                logger.error("%s", reason(error, self.hub_model_id))
            except Exception:
                # Those that failed are logged below.
                continue
        self._log_failed_pushes()

    def _upload_limit(self) -> float:
        output = Path(str(self.args.output_dir))
        sizes = (path.stat().st_size for path in output.iterdir() if path.is_file())
        return upload_limit(sum(sizes), self.args.hub_timeout)

    def _log_failed_pushes(self) -> None:
        """Log which of the pushes in the background failed: they do not."""
        in_progress: Any = getattr(self, "push_in_progress", None)
        for job in list(getattr(in_progress, "jobs", ())):
            if job.done() and (error := job.exception()) is not None:
                in_progress.jobs.remove(job)
                where = {"private": self.args.hub_private_repo, "revision": self.args.hub_revision}
                how = advice(str(self.args.output_dir), self.hub_model_id, **where)
                logger.error("%s %s", reason(error, self.hub_model_id), how)
