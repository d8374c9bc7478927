"""The two jobs of the command line: training and evaluation, with the tools that report on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from retinanet import build, distributed
from retinanet.atomic import check_writable
from retinanet.build import load_model, recorded_settings
from retinanet.checks import check_sizes, restore
from retinanet.config import DetectorConfig, EvalConfig, EvaluationConfig, TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.issues import raise_refused
from retinanet.data.splits import missing_issues
from retinanet.devices import choose_device, choose_precision
from retinanet.evaluation.average_precision import validate
from retinanet.evaluation.numbers import COCO_MAX_DETS
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.model.heads import count_classes
from retinanet.run import Scores, TrainingRun
from retinanet.signals import Signals
from retinanet.tools.diagnose.explain import explain
from retinanet.tools.first_loss import announcement, first_step
from retinanet.tools.report.figures import training_curves
from retinanet.tools.report.publish import log_evaluation, publish, refresh_report
from retinanet.tools.report.run_record import Record, read_record
from retinanet.tools.report.style import save_png
from retinanet.tools.report.tensorboard import show_evaluation, show_first_batch
from retinanet.training.logs import few, start_logging
from retinanet.training.run_directory import environment, read_rows
from retinanet.training.start import describe_source
from retinanet.training.step_metrics import Means
from retinanet.weights.read import read_trained

logger = logging.getLogger(__name__)


def train(settings: TrainConfig, overrides: list[str]) -> None:
    """Train, evaluate and keep everything in ``settings.output_dir``, typed overrides included.

    Raises:
        ValueError: data or settings that cannot be trained on, or another run in the directory.
        FileNotFoundError: a file that is named but not there.
        FloatingPointError: more than ``max_bad_steps`` losses or gradients that are not finite.
        Stopped: a signal ended the run, which has saved.
    """
    device = choose_device(settings.device)
    with Signals() as signals, distributed.group(device.type):
        start_logging(None, main=distributed.is_main())
        TrainingRun(
            settings,
            overrides,
            device,
            signals,
            on_start=describe_run,
            on_first_step=compare_first_step,
            on_evaluation=publish_evaluation,
        ).run()


def describe_run(run: TrainingRun) -> list[str]:
    """What to expect of a new run: its data, its network, its first loss."""
    return announcement(
        run.settings,
        run.train_data,
        run.val_data,
        run.trainer,
        run.init_lines,
        total_steps=run.total_steps,
    )


def compare_first_step(run: TrainingRun, means: Means) -> None:
    """Log the first loss beside the expected one, and show the first batch."""
    if not means.bad and run.settings.init_from is None:
        logger.info("%s", first_step(run.settings, run.train_data, run.trainer, means))
    if run.settings.log_images:
        show_first_batch(run.log, run.directory, run.trainer, run.train_data)


def publish_evaluation(run: TrainingRun, scores: Scores, better: bool) -> None:
    """Tables, files and plots of an evaluation; ``eval/`` always describes best.pt."""
    step, finished, root = run.trainer.step, run.finished(), run.directory.root
    scored = explain(
        run.val_data,
        scores.detections,
        scores.evaluation,
        run.settings,
        run.plain,
        num_drawn=run.settings.log_images,
        step=step,
        metrics=run.directory.metrics,
        train_ids=run.train_data.category_ids,
        thresholds=scores.thresholds,
    )
    log_evaluation(scored, cap=run.settings.postprocess.detections, classes=finished)
    sheet = None
    if better:
        checkpoint = str(run.directory.best)
        about = {"checkpoint": checkpoint, "step": step}
        sheet = publish(root, scored, about=about, record=read_record(root, checkpoint, step))
    save_png(training_curves(read_rows(run.directory.metrics)), run.directory.plots / "curves.png")
    show = few(step // run.evaluate_every) or finished
    augment = build.build_augment(run.settings, train=False)
    run.log.show(
        lambda board: show_evaluation(
            board,
            run.trainer,
            scores.evaluation,
            best=run.stopping.best["AP"],
            model=scores.model,
            data=run.train_data,
            augment=augment if show and run.settings.log_images else None,
            predictions=sheet if show else None,
        )
    )
    if finished and not better:  # the report of the best checkpoint lacks these curves
        refresh_report(root, run.val_data)


def evaluate(settings: EvalConfig, overrides: list[str]) -> None:
    """Evaluate a checkpoint: table on the console, files in ``<folder>/eval``.

    Settings that are None come from the checkpoint; the report shows the typed overrides.

    Raises:
        ValueError: a damaged checkpoint, or data of other classes.
        FileNotFoundError: a file that is named but not there.
    """
    device = choose_device(settings.device)
    with distributed.group(device.type):
        start_logging(None, main=distributed.is_main())

        # What the checkpoint records, and over it what eval.py was given.
        checkpoint, given = Path(settings.checkpoint), settings.evaluation
        state = read_trained(checkpoint)
        source, step = describe_source(state), state["step"]
        detector = recorded_settings(state)
        recorded = state["settings"].get("evaluation")  # None: another project's
        evaluated = None if recorded is None else restore(EvaluationConfig, recorded)
        as_trained = how_scored(detector, evaluated)
        take_over(settings.data, detector.data)
        take_over(settings.postprocess, detector.postprocess)
        check_sizes(detector.data.min_size, detector.data.max_size)
        # max_images is not taken over: a training that looks at few images saves time, and null
        # is the word for all of them.
        for name in ("backend", "max_dets", "batch_size"):
            if getattr(given, name) is None and evaluated is not None:
                setattr(given, name, getattr(evaluated, name))
        detector.precision = choose_precision(settings.precision or detector.precision, device)
        changed = how_scored(detector, given) != as_trained
        build.check_device(detector, device, train=False)

        # The data, with the labels of the checkpoint.
        if detector.data.val_annotations is None:
            raise ValueError(
                f"{checkpoint} ({source}) does not say which data to evaluate on; add data=coco "
                f"data.root=PATH, or data=custom with its paths."
            )
        data = match_classes(build.build_data(detector.data, "val"), checkpoint, state)
        if given.max_images is None:  # now rather than after hours
            skip = detector.data.on_bad_image == "skip"
            raise_refused(missing_issues(data, "val", skip=skip))

        # The detections and their scores.
        folder = output_folder(settings, state, data, changed=changed)
        distributed.on_main(lambda: check_writable(folder / "eval", "output_dir"))
        model = load_model(state, detector).to(device)
        logger.info(
            "evaluate   %s (%s) on %d images of %s, shorter side %d px",
            *(checkpoint, source, len(data), data.path, detector.data.min_size),
        )
        how = build.build_validation(detector, given, device)
        evaluation, detections = validate(model, data, compiled=settings.compile, **how)
        if not distributed.is_main():
            return

        # Tables, files and the report.
        thresholds = None
        if evaluation is not None:
            thresholds = find_thresholds(data, detections, evaluation.max_dets[-1])
        scored = explain(
            data,
            detections,
            evaluation,
            detector,
            state["settings"],
            num_drawn=settings.log_images,
            step=step,
            metrics=checkpoint.parent.parent / "metrics.jsonl",
            train_ids=state["classes"]["ids"],
            thresholds=thresholds,
        )
        log_evaluation(scored, cap=detector.postprocess.detections, classes=True)
        if (folder / "config.yaml").exists():  # the report of a run
            record = read_record(folder, settings.checkpoint, step)
        else:
            processes = distributed.world_size()
            record = Record(
                kind="Evaluation",
                title="/".join(folder.resolve().parts[-2:]),
                checkpoint=settings.checkpoint,
                step=step,
                typed=overrides,
                settings=asdict(detector) | {"evaluation": asdict(given)},
                starts=[{**environment(), "device": str(device), "processes": processes}],
            )
        publish(folder, scored, about={"checkpoint": str(checkpoint), "step": step}, record=record)
        logger.info("files      %s, %s", folder / "eval", folder / "plots")
        logger.info("report     %s", folder / "eval" / "report.html")


def take_over(given: Any, settings: Any) -> None:
    """Put the settings that are given, not None, over others of the same group, in place."""
    for f in fields(given):
        if getattr(given, f.name) is not None:
            setattr(settings, f.name, getattr(given, f.name))


def how_scored(detector: DetectorConfig, evaluation: Any) -> tuple[Any, ...]:
    """All that the numbers of one model on one data set depend on; None: validate's defaults."""
    data = detector.data
    images = evaluation and (evaluation.max_images, list(evaluation.max_dets or COCO_MAX_DETS))
    resized = data.min_size, data.max_size, data.resize
    return *resized, detector.precision, images, asdict(detector.postprocess)


def match_classes(data: CocoData, checkpoint: Path, state: dict[str, Any]) -> CocoData:
    """Give data the labels of a checkpoint: classes are the same by name, in any order.

    Raises:
        ValueError: the names that only one of them has, or other numbers of classes, and what to
            do.
    """
    own, names = data.category_names, state["classes"]["names"]
    if names is None:
        num_classes = count_classes(state["model"])
        if len(own) == num_classes:
            return data
        raise ValueError(
            f"{checkpoint} detects {num_classes} classes and does not name them; {data.path} "
            f"lists {len(own)} categories. It can be evaluated on data with exactly as many, "
            f"whose ids are in the order of its labels."
        )
    if sorted(own) == sorted(names):
        return data.relabelled(names)

    def only(these: Sequence[str], others: Sequence[str]) -> str:
        rest = [name for name in these if name not in others]
        return ", ".join(rest[:5]) + (", ..." if len(rest) > 5 else "") or "none"

    raise ValueError(
        f"the checkpoint {checkpoint} detects {len(names)} classes, {data.path} lists {len(own)} "
        f"categories; only the checkpoint has {only(names, own)}, only the data "
        f"{only(own, names)}. Evaluate it on data with its classes, or start from it with "
        f"init_from={checkpoint}."
    )


def output_folder(settings: EvalConfig, state: dict, data: CocoData, *, changed: bool) -> Path:
    """Where the files go: ``<run>/eval`` is best.pt as it was trained, other folders the rest.

    ``changed``: it is scored in another way than in training.
    """
    if settings.output_dir is not None:
        return Path(settings.output_dir)
    checkpoint = Path(settings.checkpoint)
    run = checkpoint.parent.parent
    if not (run / "config.yaml").exists():
        run = checkpoint.with_suffix("")
    own = state.get("val_data") == data.fingerprint
    files = state.get("val_files") or []  # older checkpoints have none
    pairs = zip(files, data.file_sizes(), strict=False)
    own = own and all(before == now for before, now in pairs if None not in (before, now))
    if own and not changed and checkpoint.name == "best.pt":
        return run
    parts = [] if checkpoint.name == "best.pt" else [checkpoint.stem]
    parts += [] if own else [settings.data.name or data.path.stem]
    parts += ["changed"] if changed else []
    return run / "_".join(["eval", *parts])
