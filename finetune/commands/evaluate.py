"""Evaluation of a model, or of several together, on labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import ModelBundle
from finetune.bundle.validation_choices import list_validation_choices
from finetune.commands.ensembles.combined_model import (
    get_first_path,
    list_members,
    load_models,
    to_paths,
)
from finetune.commands.ensembles.member_runs import count_training_images, read_member_runs
from finetune.commands.evaluation.evaluation_images import (
    EvaluationSet,
    get_run_files,
    select_images,
)
from finetune.commands.evaluation.evaluation_result import EvaluateResult
from finetune.commands.rejected_files import report_unreadable
from finetune.commands.rejection.evaluated_rejection import evaluate_rejection, judge_answers
from finetune.commands.rejection.model_rejector import complete_run_statistics, create_rejector
from finetune.commands.run_images import read_run_images
from finetune.commands.target_prior import apply_prior, prior_to_json
from finetune.config.load import build_config
from finetune.data.layouts.split_names import SplitSetting
from finetune.data.manifest import Manifest, check_labels
from finetune.errors import ConfigError
from finetune.evaluation.rejection.reject_options import (
    RejectOptions,
    check_reject_options,
    parse_reject,
)
from finetune.inference.input_checks import check_views, resize_input
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.rejector import Rejector
from finetune.inference.scoring import evaluate_targets
from finetune.inference.tta import parse_tta
from finetune.system.hardware import prepare_accelerator
from finetune.system.host import count_available_cores
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Split, StrPath, Tta

__all__ = ["EvaluateResult", "EvaluationOptions", "evaluate", "evaluate_loaded"]


def evaluate(
    model: StrPath | Sequence[StrPath],
    data: StrPath | None = None,
    *,
    split: Split | str | None = None,
    device: str = "auto",
    batch_size: int = 32,
    tta: Tta | str | bool = Tta.NONE,
    image_size: int | None = None,
    weights: str = "equal",
    prior: str | None = None,
    splits: str | Mapping[str, str] | None = None,
    reject: RejectOptions | str | bool | None = None,
    reporter: Reporter | None = None,
) -> EvaluateResult:
    """Evaluate a model, or the mean of several, on labelled images.

    Args:
        model: Run folder, bundle folder or checkpoint, or several of them.
        data: Class folders, split folders or a CSV; None, or the data path of the run, takes the
            held-out images of the run, or of the first of several runs.
        split: Split to evaluate, "train", "val" or "test"; None takes test, else val, else all
            images.
        device: "cpu", "cuda", "mps" or "auto".
        batch_size: Images per batch.
        tta: Views of each image to average over: "none", "hflip", "crops", "crops10" or "sizes";
            True is "hflip".
        image_size: Height and width of the input in pixels; None for those of the model.
        weights: Weights of several models: "equal", or "val" for those that minimise the log loss
            on the validation images that all runs share.
        prior: Target class prior: "uniform", "train", "model" or a file; None takes that of the
            model card.
        splits: Split folders of the data, as the config key ``data.splits``; None takes those of
            the run if the data have them, and else finds them by their names.
        reject: Which answers are rejected, see ``predict``; a run without the statistics for it
            gets them.
        reporter: Receiver of progress and notes.

    Raises:
        FinetuneError: Invalid arguments, model or data; the message names the remedy.
    """
    reporter = reporter or Reporter()
    paths, data = to_paths(model), None if data is None else Path(data)
    if split not in (None, *Split):
        raise ConfigError(f"Unknown split '{split}'. Choose one of {', '.join(Split)}.")
    accelerator = prepare_accelerator(device, setting="--device")
    views, rules = parse_tta(tta), parse_reject(reject)
    if rules is not None:
        check_reject_options(rules, tta=views, image_size=image_size, others={"--prior": prior})
        for path in paths:
            complete_run_statistics(path, batch_size=batch_size, reporter=reporter)
    bundle = load_models(
        paths, weights=weights, device=accelerator, batch_size=batch_size, reporter=reporter
    )
    bundle = resize_input(apply_prior(bundle, prior, reporter), image_size)
    check_views(bundle, views)
    setting: SplitSetting | None = None
    if splits is not None:
        setting = build_config({}, flags={"data.splits": ("splits", splits)}).data.split_setting
    rejector = None if rules is None else create_rejector(bundle, paths, rules, reporter)
    options = EvaluationOptions(
        None if split is None else Split(split), accelerator, batch_size, views, setting, rejector
    )
    result = evaluate_loaded(bundle, paths, data, options=options, reporter=reporter)
    prior_json = prior_to_json(bundle.card, requested=prior)
    return replace(result, prior=prior_json, image_size=image_size)


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Options of the evaluation of a loaded model.

    Attributes:
        split: Split to evaluate; None takes test, else val, else all images.
        device: Device, such as "cpu" or "cuda".
        batch_size: Images per batch.
        tta: Views of each image.
        splits: How splits are found in the data; None takes that of the run.
        rejector: Rejector of answers; None for none.
    """

    split: Split | None = None
    device: str = "cpu"
    batch_size: int = 32
    tta: Tta = Tta.NONE
    splits: SplitSetting | None = None
    rejector: Rejector | None = None


def evaluate_loaded(
    bundle: ModelBundle,
    paths: Sequence[Path],
    data: Path | None = None,
    *,
    options: EvaluationOptions,
    reporter: Reporter,
) -> EvaluateResult:
    """Evaluate a loaded model on labelled images.

    Args:
        bundle: Model, or an ensemble.
        paths: Paths of the models that it is made of.
        data: Images; None takes the held-out images of the first run among ``paths``.
        options: Split, device and views.
        reporter: Receiver of progress and notes.

    Raises:
        ConfigError: There are neither data nor a run, or a member was trained on held-out images.
        DataError: The images cannot be read or have other classes.
    """
    runs = ((path, read_run_images(path)) for path in paths)
    path, run = next(((p, r) for p, r in runs if r is not None), (paths[0], None))
    if options.splits is not None and run is not None:
        run = replace(run, splits=options.splits)
    images = select_images(
        path,
        data,
        run,
        options.split,
        options.splits or "auto",
        bundle.card.read_options,
        reporter,
        multi_label_classes=bundle.card.classes if bundle.card.is_multi_label else (),
    )
    source = data if data is not None or run is None else run.path
    check_labels(images.samples, bundle.card.classes, source=source)
    num_training_images = _count_training_images(images, paths, path, reporter)
    if num_training_images:
        _name_held_out_metrics(paths, reporter)
    manifest = Manifest(images.root, bundle.card.classes, tuple(images.samples))
    cores = count_available_cores()
    predictor = Predictor(
        bundle,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=cores - 1 if cores > 2 and len(images.samples) > 1000 else 0,
        tta=options.tta,
    )
    reporter.start("evaluating", len(images.samples))
    targets = manifest.encode_targets(images.samples)
    files = manifest.resolve_paths(images.samples)
    lost: dict[int, str] = {}
    logits, judgements = judge_answers(
        bundle, predictor, files, options.rejector, on_batch=reporter.advance, unreadable=lost
    )
    reporter.finish()
    if lost:
        kept, rejected = report_unreadable(images.samples, images.root, lost, reporter)
        targets, logits = targets[kept], logits[kept]
        judgements = [judgements[row] for row in kept] if judgements else []
        images = images.select(kept, rejected)
    result = EvaluateResult(
        get_first_path(bundle, paths),
        images.root,
        images.split,
        evaluate_targets(predictor, logits, targets),
        images.rejected,
        options.tta,
        prior_to_json(bundle.card, requested=None),
        num_training_images=num_training_images,
        differences=images.differences,
        members=list_members(bundle, paths),
        validation_choices=_list_choices(bundle, images),
        rejection=evaluate_rejection(
            predictor, options.rejector, logits, targets, judgements,
            has_chosen=images.differences is not None and images.split is Split.VAL,
        ),
    )  # fmt: skip
    if run is None:
        return result
    clean_rows = find_rows_without_leaks(run.manifest, get_run_files(images, run))
    if clean_rows is None:
        return result
    without_leaks = evaluate_targets(predictor, logits[clean_rows], targets[clean_rows])
    return replace(result, without_leaks=without_leaks)


def _list_choices(bundle: ModelBundle, images: EvaluationSet) -> tuple[str, ...]:
    """Return what the images chose of the model; empty if they are no run's validation images."""
    is_validation = images.differences is not None and images.split is Split.VAL
    cards = [bundle.card, *(member.card for member in bundle.members)]
    return list_validation_choices(cards) if is_validation else ()


def _name_held_out_metrics(paths: Sequence[Path], reporter: Reporter) -> None:
    """Name the files with the metrics of images that folds hold out, for each cross-validation."""
    for run in map(RunFolder, paths):
        if run.folds_csv_path.is_file() and run.cross_validation_path.is_file():
            reporter.note(
                f"Metrics of images that a network has not been trained on, each by the fold that "
                f"holds it out, are in {run.cross_validation_path}; the predictions in "
                f"{run.out_of_fold_path}."
            )


def _count_training_images(
    images: EvaluationSet, paths: Sequence[Path], run_path: Path, reporter: Reporter
) -> int | None:
    """Return the number of images that a model was trained on, and warn of them.

    Raises:
        ConfigError: Several models are evaluated on held-out images of one run, and another one was
            trained on them.
    """
    is_held_out = images.differences is not None and images.split is not Split.TRAIN
    return count_training_images(
        images.root,
        images.samples,
        read_member_runs(paths),
        known_matches=images.matches,
        known_path=run_path,
        held_out_by=str(run_path) if is_held_out and len(paths) > 1 else "",
        reporter=reporter,
    )
