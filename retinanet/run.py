"""One training run: made or found on disk, carried to its last step."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from retinanet import build, distributed
from retinanet.config import TrainConfig
from retinanet.devices import choose_precision
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.plots import plot_curves
from retinanet.evaluation.publish import publish, tell
from retinanet.evaluation.validate import validate
from retinanet.exchange.read import read_trained
from retinanet.training import announce
from retinanet.training.checkpoint import load_latest, save_checkpoint
from retinanet.training.directory import RunDirectory
from retinanet.training.logs import MetricsLog, start_logging
from retinanet.training.progress import Progress
from retinanet.training.survey import describe, survey
from retinanet.training.transfer import other_conventions, transfer

logger = logging.getLogger(__name__)

# What last.pt has and best.pt has not.
TO_CONTINUE = {"optimizer", "scaler", "loss", "ema", "evaluated_step", "fruitless"}


class TrainingRun:
    """Everything of one run, and the order of its acts."""

    def __init__(self, settings: TrainConfig, overrides: list[str], device: torch.device) -> None:
        """Read the data, build the parts, prepare the directory, load the last checkpoint.

        Args:
            settings: checked, with an output_dir.
            overrides: as typed, for the record.
            device: of this rank.

        Raises:
            ValueError: data, settings or a directory that do not fit.
            FileNotFoundError: a file that is named but not there.
        """
        build.check_device(settings, device, train=True)
        self.directory = RunDirectory(Path(settings.output_dir))
        if settings.precision == "auto":  # what it means here, or meant where the run began
            precision = self.directory.precision() or choose_precision("auto", device)
            settings = dataclasses.replace(settings, precision=precision)
        self.settings = settings
        self.overrides = overrides
        self.device = device
        self.plain = dataclasses.asdict(settings)
        stored = self._stored_checkpoint()
        self.train_data, self.val_data = build.build_splits(settings.data)
        self.stream = build.build_stream(settings, self.train_data, device)
        self.total_steps = self._total_steps()
        every = settings.evaluation.every_epochs * self.stream.steps_per_epoch
        self.evaluate_every = max(1, round(every))
        self.best: dict[str, Any] = {"AP": None, "step": 0}
        self.evaluated_step = 0
        self.fruitless = 0  # evaluations since the best one
        self._build(stored)

    def _build(self, stored: dict[str, Any] | None) -> None:
        """The model and what trains it, from the checkpoint where there is one."""
        settings = self.settings
        names = self.train_data.category_names
        from_elsewhere = stored is not None or settings.init_from is not None
        self.model = build.build_model(settings, len(names), load_later=from_elsewhere)
        if stored is None and settings.init_from is not None:
            start = read_trained(Path(settings.init_from))
            self.init_lines = transfer(self.model, start, settings.init_from, names)
            self.init_lines += other_conventions(start["settings"], self.plain)
        self.trainer = build.build_trainer(
            settings, self.model, names, total_steps=self.total_steps, device=self.device
        )
        if stored is not None:
            self._load(stored)

    def run(self) -> None:
        """Train to the end, or report that it has been reached."""
        self._open()
        try:
            if self._finished():
                self._report_finished()
                return
            if self._evaluation_due():  # the run was killed while it evaluated
                self._evaluate()
                self._save(keep_previous=False)
                self.progress.restart_clock()
            if not self._finished():
                steps = self.stream.steps(self.trainer.step, self.total_steps)
                self.trainer.run(steps, self._after_step)
            self._report_finished()
        finally:
            self.progress.close()

    def _stored_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to continue from, unless this is another run than the one on disk."""
        overwrite = self.settings.overwrite
        moves = distributed.on_main(lambda: self.directory.check(self.plain, overwrite=overwrite))
        found = None if moves else load_latest(self.directory.checkpoints)
        if found is None:
            return None
        for problem in found[1]:
            logger.warning("%s The checkpoint before it is used.", problem)
        return found[0]

    def _open(self) -> None:
        """Make the directory, start the logs, say what is about to happen."""
        distributed.on_main(
            lambda: self.directory.make(
                self.plain,
                self.overrides,
                device=str(self.device),
                processes=distributed.world_size(),
                train_data=self.train_data.fingerprint,
                val_data=self.val_data.fingerprint,
            )
        )
        main = distributed.is_main()
        start_logging(self.directory.root / "train.log", main=main)
        step = self.trainer.step
        if main:
            self.directory.forget_after(step, self.evaluated_step)
        self.log = MetricsLog(self.directory if main else None, step=step)
        self.progress = Progress(
            self.log,
            step=step,
            total_steps=self.total_steps,
            steps_per_epoch=self.stream.steps_per_epoch,
            main=main,
        )
        logger.info("run        %s", self.directory.root)
        logger.info("device     %s, forward pass in %s", self.device, self.trainer.precision)
        if step:
            logger.info("continue   after step %d of %d", step, self.total_steps)
        elif main:
            for line in self._announcement():
                logger.info("%s", line)
            self.progress.restart_clock()

    def _announcement(self) -> list[str]:
        """What to expect of the first step."""
        settings, data = self.settings, self.train_data
        found = survey(
            data,
            self.model.anchor_generator,
            self.trainer.matcher,
            min_size=settings.data.min_size,
            max_size=settings.data.max_size,
            keep_empty=settings.data.keep_empty,
        )
        lines = [f"repaired   {what}: {count}" for what, count in data.repairs.items()]
        lines += describe(found, data.category_names)
        lines.append(
            announce.describe_rate(
                settings.optim.lr, settings.optim.batch_size, settings.optim.reference_batch
            )
        )
        alpha = self._loss_settings()["alpha"]
        lines.append(announce.describe_alpha(alpha, data.category_names))
        lines += announce.warn_of_warmup(settings.schedule.warmup_steps, self.total_steps)
        if settings.init_from is not None:
            return lines + self.init_lines
        if settings.loss.name != "focal":
            return [*lines, announce.NO_FORECAST]
        lines += announce.announce_loss(
            found, num_classes=self.model.num_classes, **self._loss_settings()
        )
        return lines if self._closed_form_holds() else [*lines, announce.FORECAST_LIMITS]

    def _loss_settings(self) -> dict[str, Any]:
        alpha = build.resolve_alpha(self.settings.loss.alpha, self.train_data.category_names)
        return {
            "alpha": alpha,
            "gamma": self.settings.loss.gamma,
            "prior": self.settings.model.prior,
        }

    def _total_steps(self) -> int:
        schedule = self.settings.schedule
        return schedule.max_steps or schedule.epochs * self.stream.steps_per_epoch

    def _after_step(self) -> bool:
        """Log, evaluate and save when due; true when the run is over."""
        step, settings = self.trainer.step, self.settings
        self.progress.bar.update()
        due = self._evaluation_due()
        saves = bool(settings.save_every_steps) and step % settings.save_every_steps == 0
        # A row before each checkpoint, so that a resumed run writes the same rows.
        if step == 1 or step % settings.log_every_steps == 0 or due or saves:
            self._log_row()
        if due:
            self._save()
            self._evaluate()
            self._save(keep_previous=False)  # the same step: previous.pt stays an older one
            self.progress.restart_clock()
        elif saves:
            self._save()
        return self._finished()

    def _evaluation_due(self) -> bool:
        step = self.trainer.step
        at_boundary = step % self.evaluate_every == 0 or step == self.total_steps
        return step > self.evaluated_step and at_boundary

    def _finished(self) -> bool:
        patience = self.settings.evaluation.patience
        stopped = patience is not None and self.fruitless >= patience
        return stopped or self.evaluated_step >= self.total_steps

    def _log_row(self) -> None:
        means = self.progress.row(self.trainer)
        if self.trainer.step > 1 or self.settings.init_from is not None:
            return
        if self._closed_form_holds():
            num_classes = self.model.num_classes
            line = announce.compare_first_loss(
                means, num_classes=num_classes, **self._loss_settings()
            )
        else:
            line = f"first step class loss {means.class_loss:.4g}, not compared"
        logger.info("%s", line)

    def _closed_form_holds(self) -> bool:
        """Whether it gives the loss of a batch, and not only an average over the data."""
        loss = self.settings.loss
        one_alpha = loss.alpha is None or isinstance(loss.alpha, int | float)
        return loss.normalizer == "batch" and one_alpha and loss.name == "focal"

    def _evaluate(self) -> None:
        """Score the weights to ship, keep the best, draw."""
        step = self.trainer.step
        model = self.model if self.trainer.ema is None else self.trainer.ema.model
        evaluation, found = validate(
            model,
            self.val_data,
            **build.build_validation(self.settings, self.settings.evaluation, self.device),
        )
        better = self._is_better(evaluation)
        self.evaluated_step = step
        self.fruitless = 0 if better else self.fruitless + 1
        if better:
            self.best = {"AP": evaluation.metrics["AP"], "step": step}
        distributed.on_main(lambda: self._keep(model, evaluation, found, better))

    def _is_better(self, evaluation: Evaluation) -> bool:
        AP, best = evaluation.metrics["AP"], self.best["AP"]
        return not self.best["step"] or (AP is not None and (best is None or best < AP))

    def _keep(
        self, model: torch.nn.Module, evaluation: Evaluation, found: DetectionArrays, better: bool
    ) -> None:
        """Row, pictures and files of an evaluation; ``eval/`` always describes best.pt."""
        step = self.trainer.step
        epoch = self.progress.epoch(step)
        self.log.write({"step": step, "epoch": epoch, **evaluation.metrics})
        logger.info("evaluation after epoch %.4g, step %d%s", epoch, step, " (best)" * better)
        tell(
            evaluation,
            found,
            cap=self.settings.postprocess.detections,
            classes=self._finished(),
        )
        if better:
            state = {"model": model.state_dict(), "step": step, **self._description()}
            save_checkpoint(self.directory.best, state)
            sheet = publish(
                self.directory.root,
                self.val_data,
                evaluation,
                found,
                num_drawn=self.settings.log_images,
                about={"checkpoint": str(self.directory.best), "step": step},
            )
            if sheet is not None:
                self.log.image(step, "predictions", sheet)
        plot_curves(self.directory.metrics, self.directory.plots / "curves.png")
        if self.trainer.latest is not None:
            self.log.histograms(step, self.trainer.p_t(self.trainer.latest))

    def _description(self) -> dict[str, Any]:
        """What inference needs beside the weights, and how the run stands."""
        data = self.train_data
        return {
            "settings": self.plain,
            "classes": {"names": list(data.category_names), "ids": list(data.category_ids)},
            "best": self.best,
            "train_data": data.fingerprint,
            "val_data": self.val_data.fingerprint,
        }

    def _save(self, *, keep_previous: bool = True) -> None:
        """Write last.pt; the one before stays as previous.pt."""
        state = {
            **self.trainer.state_dict(),
            **self._description(),
            "evaluated_step": self.evaluated_step,
            "fruitless": self.fruitless,
        }
        last = self.directory.last
        distributed.on_main(lambda: save_checkpoint(last, state, keep_previous=keep_previous))

    def _load(self, stored: dict[str, Any]) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            ValueError: the annotations are not those it was trained on, or it is no checkpoint to
                continue from.
        """
        if not stored.keys() >= TO_CONTINUE:
            raise ValueError(
                f"{self.directory.last} holds a model without the state of its training, as "
                f"best.pt does; put the last.pt of the run there, or choose another output_dir "
                f"(with init_from=PATH to keep the weights)."
            )
        for data, fingerprint in (
            (self.train_data, stored["train_data"]),
            (self.val_data, stored["val_data"]),
        ):
            if data.fingerprint != fingerprint:
                raise ValueError(
                    f"{data.path} is not the file that {self.directory.root} was started with; "
                    f"restore it, or choose another output_dir (with init_from="
                    f"{self.directory.best} to keep the weights)."
                )
        self.trainer.load_state_dict(stored)
        self.best = stored["best"]
        self.evaluated_step = stored["evaluated_step"]
        self.fruitless = stored["fruitless"]

    def _report_finished(self) -> None:
        AP = "n/a" if self.best["AP"] is None else f"{self.best['AP']:.4f}"
        logger.info(
            "finished   %d steps; best AP %s at step %d", self.trainer.step, AP, self.best["step"]
        )
        if self.stream.bad_images:
            logger.info("replaced   %d unreadable images", len(self.stream.bad_images))
        logger.info("best       %s", self.directory.best)
        logger.info("pictures   %s", self.directory.plots)
        logger.info("curves     tensorboard --logdir %s", self.directory.root / "tensorboard")
