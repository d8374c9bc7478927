"""One training run: made or found on disk, carried to its last step."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retinanet import build, distributed
from retinanet.config import TrainConfig
from retinanet.data.loader import Batch, eval_plan
from retinanet.data.workers import LoaderError, check_shared_memory, shared_bytes
from retinanet.devices import choose_precision, explain_precision
from retinanet.evaluation.average_precision import Evaluation, validate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import Thresholds, find_thresholds
from retinanet.model.retinanet import RetinaNet
from retinanet.signals import Signals, Stopped
from retinanet.training.checkpoint import save_checkpoint
from retinanet.training.logs import MetricsLog, start_logging
from retinanet.training.memory import explain_out_of_memory, fewest_parts, worst_batch
from retinanet.training.progress import EarlyStopping, Progress
from retinanet.training.run_directory import RunDirectory, read_rows
from retinanet.training.start import (
    check_checkpoint,
    check_images,
    check_same_step,
    find_checkpoint,
    other_conventions,
    transfer,
)
from retinanet.training.step_metrics import Means
from retinanet.weights.read import read_trained

logger = logging.getLogger(__name__)


class Scores(NamedTuple):
    """One evaluation during training."""

    model: RetinaNet  # that was evaluated: the trained weights, or the EMA weights
    evaluation: Evaluation
    detections: DetectionArrays
    thresholds: Thresholds  # where F1 is largest


class TrainingRun:
    """One training run: set up, resume, train, evaluate, save."""

    def __init__(
        self,
        settings: TrainConfig,
        overrides: list[str],
        device: torch.device,
        signals: Signals,
        *,
        on_start: Callable[[TrainingRun], Sequence[str]] | None = None,
        on_first_step: Callable[[TrainingRun, Means], None] | None = None,
        on_evaluation: Callable[[TrainingRun, Scores, bool], None] | None = None,
    ) -> None:
        """Read the data, build the parts, load the last checkpoint; nothing is written yet.

        Args:
            settings: checked, with an output_dir.
            overrides: as typed, for the record.
            device: of this rank.
            signals: those that this process received.
            on_start: lines for the log of a new run, before its first step; on the main rank.
            on_first_step: gets the means of the first step; on the main rank.
            on_evaluation: gets what was evaluated, and whether it is the best; on the main rank,
                when the row and the checkpoint are written.

        Raises:
            ValueError: data, settings or a directory that do not fit.
            FileNotFoundError: a file that is named but not there.
        """
        build.check_device(settings, device, train=True)
        self.on_start = on_start
        self.on_first_step = on_first_step
        self.on_evaluation = on_evaluation
        self.overrides, self.device, self.signals = overrides, device, signals

        # The run on disk.
        self.directory = RunDirectory(Path(settings.output_dir))
        folder = shlex.quote(str(self.directory.tensorboard))
        self.watch = f"watch      tensorboard --logdir {folder}"
        self.why_precision = "precision as set"
        if settings.precision == "auto":  # what it means here, or meant where the run began
            recorded = (self.directory.recorded() or {}).get("precision")
            precision = recorded or choose_precision("auto", device)
            self.why_precision = "as this run began" if recorded else explain_precision(device)
            settings = dataclasses.replace(settings, precision=precision)
        self.settings, self.plain = settings, dataclasses.asdict(settings)
        checkpoint, self.fell_back = find_checkpoint(
            self.directory, self.plain, overwrite=settings.overwrite
        )

        # Data.
        train_data, self.val_data = build.build_splits(settings.data)
        self.train_data = build.drop_unseen(settings, train_data)
        self.file_sizes = {
            "train_files": self.train_data.file_sizes(),
            "val_files": self.val_data.file_sizes(),
        }
        self.aside, self.moved = False, []  # lines for the log
        if checkpoint is not None:
            root, sizes = settings.data.root, self.file_sizes
            try:
                self.moved = check_images(checkpoint, self.directory, root, sizes)
            except ValueError:
                if not settings.overwrite:
                    raise
                checkpoint, self.aside = None, True
        self.loader = build.build_loader(settings, self.train_data, device)
        schedule, steps_per_epoch = settings.schedule, self.loader.steps_per_epoch
        self.total_steps = schedule.max_steps or schedule.epochs * steps_per_epoch
        self.evaluate_every = max(1, round(settings.evaluation.every_epochs * steps_per_epoch))

        # The model and its training, new or from a checkpoint.
        names = self.train_data.category_names
        from_elsewhere = checkpoint is not None or settings.init_from is not None
        self.model = build.build_model(settings, len(names), load_later=from_elsewhere)
        self.init_lines: list[str] = []
        if checkpoint is None and settings.init_from is not None:
            start = read_trained(Path(settings.init_from))
            self.init_lines = transfer(self.model, start, settings.init_from, names)
            self.init_lines += other_conventions(start["settings"], self.plain)
        self.trainer = build.build_trainer(
            settings, self.model, names, total_steps=self.total_steps, device=device
        )
        if checkpoint is not None:
            check_checkpoint(checkpoint, self.directory, self.train_data, self.val_data)
            self.trainer.load_state_dict(checkpoint)
        self.stopping = EarlyStopping() if checkpoint is None else EarlyStopping.of(checkpoint)
        checkpoint = checkpoint or {}
        self.num_bad_steps = checkpoint.get("bad_steps", 0)  # older checkpoints have none
        self.grad_norms: list[float] = checkpoint.get("grad_norms", [])
        # Of the last evaluation.
        self.thresholds: dict[str, Any] | None = checkpoint.get("thresholds")
        self.schedule_before = checkpoint.get("settings", self.plain)["schedule"]
        self.missed_images: set[str] = set()  # messages about unreadable validation images
        self.saved_step = self.trainer.step
        check_same_step(self.trainer.step, self.directory)
        if settings.optim.accumulate == "auto":
            images = settings.optim.batch_size // distributed.world_size()
            worst = worst_batch(self.train_data, build.build_augment(settings, train=True), images)
            parts = fewest_parts(self.trainer, worst)
            self.loader = build.build_loader(settings, self.train_data, device, parts)

    # The loop.

    def run(self) -> None:
        """Train to the end, or report that it has been reached.

        Raises:
            Stopped: a signal ended the run on some rank; the same command goes on.
            FloatingPointError: too many bad steps.
            MemoryError: the GPU's memory is too small.
            LoaderError: a data loader worker failed, or would have too little shared memory.
            OSError: a file could not be written.
        """
        if not self.finished():
            self._check_shared_memory()
        self._start()
        self.signals.has_begun = True
        with distributed.before_exit(lambda why: self._record("failed", why)):
            try:
                self._train()
            except torch.OutOfMemoryError as error:
                images = self.settings.optim.batch_size // distributed.world_size()
                message = explain_out_of_memory(self.trainer, images, self.loader.accumulate)
                self._record("failed", message)
                raise MemoryError(message) from error
            except Stopped:
                received = self.signals.received
                by = received.name if received else "another rank"
                step, total = self.trainer.step, self.total_steps
                logger.info(
                    f"stopped    by {by} after step {step} of {total}; the same command goes on"
                )
                self._record("stopped", by)
                raise
            except Exception as error:
                if "more than 1 value per channel" in str(error):  # torch's batch norms
                    parts = self.loader.accumulate * distributed.world_size()
                    images = self.settings.optim.batch_size // parts
                    error = ValueError(
                        f"a batch norm got one value per channel, which has no variance: {images} "
                        f"image(s) in a micro-batch, and C5 is one cell. Use model.norm=frozen or "
                        f"group, or raise optim.batch_size or data.min_size."
                    )
                self._record("failed", str(error))
                raise error
            else:
                self._log_end()
                self.log.show(lambda board: board.finished())
                self._record("finished")
            finally:
                self.progress.close()

    def _train(self) -> None:
        """The steps, evaluations and saves that are left."""
        if self.finished():
            return
        settings, step = self.settings, self.trainer.step
        self._check_bad_steps()
        if self._evaluation_due():  # the run ended before or during it
            with self._interrupting():
                (micro_batches,) = self.loader.steps(step - 1, step)
                self.trainer.latest = micro_batches[-1]
            self._evaluate()
            if self.finished():
                return
        batches = self._interruptible(self.loader.steps(step, self.total_steps))
        for step in self.trainer.steps(batches):
            self.progress.bar.update()
            due = self._evaluation_due()
            if step == 1 or step % settings.log_every_steps == 0 or due:
                means = self._log_row()
                if step == 1 and self.on_first_step is not None and distributed.is_main():
                    self._write(lambda means=means: self.on_first_step(self, means))
                    self.progress.restart_clock()
            if distributed.any_rank(self._stop_requested()):
                if not self._save():
                    logger.warning("the run could not save; it goes on from an older checkpoint")
                raise Stopped
            if due:
                self._save()  # so that a crash in the evaluation loses no step
                self._evaluate()
            elif settings.save_every_steps and step % settings.save_every_steps == 0:
                self._save()
            if self.finished():
                return

    def _interruptible(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The micro-batches of every step; what ends their loading saves the step before it.

        Several ranks end together: a rank alone can neither save nor leave the others' step.
        """
        while True:
            try:
                with self._interrupting():
                    micro_batches = next(steps, None)
            except (LoaderError, Stopped) as error:
                step = self.trainer.step
                saved = step > self.saved_step and distributed.world_size() == 1 and self._save()
                if saved and isinstance(error, LoaderError):
                    logger.info("saved      step %d; the same command goes on", step)
                raise
            if micro_batches is None:
                return
            yield micro_batches

    def _interrupting(self) -> contextlib.AbstractContextManager:
        """Within, a signal ends a run of one rank at once."""
        alone = distributed.world_size() == 1
        return self.signals.interrupting() if alone else contextlib.nullcontext()

    def _stop_requested(self) -> bool:
        """Whether this rank got a signal, or learned that another did."""
        monitor = distributed.monitor()
        if monitor is None:
            return self.signals.received is not None
        if self.signals.received is not None:
            monitor.send_stop()
        return monitor.stop_requested

    def _evaluation_due(self) -> bool:
        step = self.trainer.step
        at_boundary = step % self.evaluate_every == 0 or step == self.total_steps
        return step > self.stopping.evaluated_step and at_boundary

    def finished(self) -> bool:
        """Whether the last step or the end of patience is reached, and evaluated."""
        return self._out_of_patience() or self.stopping.evaluated_step >= self.total_steps

    def _out_of_patience(self) -> bool:
        patience = self.settings.evaluation.patience
        return patience is not None and self.stopping.without_improvement >= patience

    def _log_row(self) -> Means:
        means = self.progress.row(self.trainer)
        if means.bad:
            self.progress.report_bad_steps(means, self.trainer, self.train_data)
            self.num_bad_steps += len(means.bad)
            if self.num_bad_steps > self.settings.max_bad_steps:
                self._save()
                self._check_bad_steps()
        return means

    def _check_bad_steps(self) -> None:
        if self.num_bad_steps > self.settings.max_bad_steps:
            raise FloatingPointError(
                f"{self.num_bad_steps} steps had a loss or gradient that is not finite, and "
                f"max_bad_steps={self.settings.max_bad_steps}. They changed no weights; the run "
                f"has saved, and its bad_steps.jsonl has their images and the likely cause. Start "
                f"anew with the fix, or raise max_bad_steps to go on without such steps."
            )

    # Evaluations and saves.

    def _evaluate(self) -> None:
        """Score the final weights, keep the best, save."""
        model = self.model if self.trainer.ema is None else self.trainer.ema.model
        how = build.build_validation(self.settings, self.settings.evaluation, self.device)
        try:
            with self._interrupting():
                evaluation, detections = validate(
                    model,
                    self.val_data,
                    stop_requested=self._stop_requested,
                    bad_images=self.missed_images,
                    **how,
                )
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"the GPU's memory is too small for the evaluation; lower evaluation.batch_size="
                f"{how['batch_size']}. The same command then goes on."
            ) from error
        best = self.stopping.best
        better = self.stopping.add(self.trainer.step, evaluation.metrics)
        kept = distributed.on_main(
            lambda: self._write(lambda: self._keep(model, evaluation, detections, better))
        )
        if not kept:  # best.pt may be the one before, and the next one must be able to replace it
            self.stopping.best = best
        self._save(keep_previous=False)  # the same step: previous.pt stays an older one
        self.progress.restart_clock()

    def _keep(
        self, model: RetinaNet, evaluation: Evaluation, detections: DetectionArrays, better: bool
    ) -> None:
        """The row, the checkpoint if it is the best, and what the caller makes of it."""
        step = self.trainer.step
        epoch = self.progress.epoch(step)
        thresholds = find_thresholds(self.val_data, detections, evaluation.max_dets[-1])
        self.thresholds = thresholds.plain()
        self.log.write({"step": step, "epoch": epoch, **evaluation.metrics})
        mark = "" if not better else " (latest)" if self.stopping.best["AP"] is None else " (best)"
        logger.info("evaluation after epoch %.4g, step %d%s", epoch, step, mark)
        if better:
            state = {"model": model.state_dict(), "step": step, **self._metadata()}
            save_checkpoint(self.directory.best, state)
        if self.on_evaluation is not None:
            self.on_evaluation(self, Scores(model, evaluation, detections, thresholds), better)

    def _metadata(self) -> dict[str, Any]:
        """What inference needs beside the weights, and the best metric so far."""
        data = self.train_data
        return {
            "settings": self.plain,
            "classes": {"names": list(data.category_names), "ids": list(data.category_ids)},
            "best": self.stopping.best,
            "thresholds": self.thresholds,
            "train_data": data.fingerprint,
            "val_data": self.val_data.fingerprint,
            **self.file_sizes,
        }

    def _save(self, *, keep_previous: bool = True) -> bool:
        """Whether last.pt was written; the one before it, unless damaged, stays as previous.pt."""
        state = {
            **self.trainer.state_dict(),
            **self._metadata(),
            **self.stopping.state_dict(),
            "bad_steps": self.num_bad_steps,
            "grad_norms": self.progress.grad_norms,
        }
        keep = keep_previous and not self.fell_back

        def save() -> None:
            self.log.sync()
            save_checkpoint(self.directory.last, state, keep_previous=keep)

        saved = distributed.on_main(lambda: self._write(save))
        self.fell_back = self.fell_back and not saved
        if saved:
            self.saved_step = self.trainer.step
            self._record("running")
        return saved

    def _write(self, action: Callable[[], None]) -> bool:
        """Whether it was done; what cannot be written ends the run or is warned of, as set."""
        try:
            action()
        except OSError as error:
            if self.settings.on_failed_save == "stop":
                raise
            logger.warning("%s Training goes on without it.", error)
            return False
        return True

    # Start and end.

    def _check_shared_memory(self) -> None:
        """The workers of training hold theirs of /dev/shm while those of an evaluation work."""
        how = build.build_validation(self.settings, self.settings.evaluation, self.device)
        images, augment = how["max_images"], how["augment"]
        plan = eval_plan(self.val_data, augment, batch_size=how["batch_size"], max_images=images)
        validation = shared_bytes(plan, augment.rule, how["workers"], limit=len(plan))
        ranks = distributed.local_world_size()
        check_shared_memory(ranks * (self.loader.shared_bytes + validation))

    def _start(self) -> None:
        """Make the directory, start the logs, log what is about to happen."""
        distributed.on_main(
            lambda: self.directory.make(
                self.plain,
                self.overrides,
                aside=self.aside,
                device=str(self.device),
                processes=distributed.world_size(),
                train_data=self.train_data.fingerprint,
                val_data=self.val_data.fingerprint,
            )
        )
        main, step, settings = distributed.is_main(), self.trainer.step, self.settings
        start_logging(self.directory.root / "train.log", main=main)
        if main and not step and read_rows(self.directory.metrics):
            logger.warning(
                f"{self.directory.checkpoints} has no checkpoint although it has rows: this run "
                f"begins anew and drops them."
            )
        if main:
            reported_step = step - len(self.trainer.totals.rows)
            self.directory.forget_after(step, self.stopping.evaluated_step, reported_step)
        self.log = MetricsLog(
            self.directory if main else None,
            # An evaluation that is made again has the step of a row that stays.
            next_step=step if self._evaluation_due() else step + 1,
            must_write=settings.on_failed_save == "stop",
        )
        self.progress = Progress(
            self.log,
            step=step,
            total_steps=self.total_steps,
            steps_per_epoch=self.loader.steps_per_epoch,
            main=main,
        )
        self.progress.grad_norms = self.grad_norms
        self.log.show(lambda board: board.settings(self.plain))

        precision = f"forward pass in {settings.precision} ({self.why_precision})"
        logger.info(f"run        {self.directory.root}")
        logger.info(f"device     {self.device}, {precision}")
        if settings.optim.accumulate == "auto":
            logger.info(f"accumulate {self.loader.accumulate} micro-batches a step, measured")
        lines: list[str] = []
        if step:
            lines = [f"continue   after step {step} of {self.total_steps}", *self.moved]
            before, now = self.schedule_before, self.plain["schedule"]
            changed = [f"{k} from {before[k]} to {now[k]}" for k in now if now[k] != before[k]]
            # With max_steps nothing reads the epochs.
            if changed and (now["max_steps"] is None or now["max_steps"] != before["max_steps"]):
                lines.append(
                    f"extended   schedule.{', '.join(changed)}; the rate follows the schedule of "
                    f"the longer run from here on: {self.trainer.schedule(step):.4g} at step "
                    f"{step + 1}"
                )
        elif main and self.on_start is not None:
            lines += self.on_start(self)
        for line in lines:
            logger.info("%s", line)
        self._record("running", started=True, **({} if step else {"expected": lines}))
        self.progress.restart_clock()
        logger.info("%s", self.watch)

    def _log_end(self) -> None:
        """Log what there is now that the run has finished."""
        root, best = self.directory.root, self.stopping.best
        if best["AP"] is None:
            result = f"AP n/a: nothing to find; best.pt is the latest, step {best['step']}"
        else:
            result = f"best AP {best['AP']:.4f} at step {best['step']}"
        steps, patience = f"{self.trainer.step} steps", self.settings.evaluation.patience
        if self._out_of_patience() and self.trainer.step < self.total_steps:
            steps = f"{self.trainer.step} of {self.total_steps} steps"
            result += (
                f"; early stopping: {self.stopping.without_improvement} evaluations without a "
                f"better one, and evaluation.patience={patience}. The same command with a larger "
                f"patience, or null, goes on"
            )
        logger.info(f"finished   {steps}; {result}")
        if self.loader.bad_images:
            logger.info("replaced   %d unreadable images", len(self.loader.bad_images))
        logger.info("best       %s", self.directory.best)
        if (root / "eval" / "report.html").exists():
            logger.info("report     %s", root / "eval" / "report.html")
        logger.info("pictures   %s", self.directory.plots)
        logger.info("%s", self.watch)
        checkpoint = shlex.quote(f"checkpoint={self.directory.best}")
        logger.info("evaluate   python eval.py %s", checkpoint)

    def _record(
        self, state: str, why: str | None = None, *, started: bool = False, **more: Any
    ) -> None:
        """Write run.json: how the run stands, for programs."""
        facts = {
            "state": state,
            "step": self.trainer.step,
            "total_steps": self.total_steps,
            "best": self.stopping.best,
            "replaced": sorted(self.loader.bad_images | self.missed_images),
            **more,
        }
        if distributed.is_main():
            try:
                self.directory.record_run(facts, why, started=started)
            except OSError as error:  # what must be kept is in the checkpoint
                logger.warning("%s", error)
