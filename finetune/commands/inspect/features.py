"""Label errors and cropped duplicates, found with the features of a pretrained backbone."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune.audit.duplicate_cache import cache_duplicates, load_or_find_cropped_duplicates
from finetune.audit.duplicate_groups import (
    add_duplicate_groups,
    assign_duplicate_groups,
    collect_duplicate_groups,
)
from finetune.audit.findings.duplicate_samples import DuplicateSamples
from finetune.audit.label_errors import (
    LabelCheck,
    LabelErrorCandidate,
    collect_label_errors,
    describe_label_check,
    measure_label_check,
)
from finetune.audit.leakage import describe_leaks, describe_splits_without_leaks, find_leaks
from finetune.audit.report import merge_findings
from finetune.builders import Training, build_training
from finetune.commands.prepare_data import ScannedDataset, fingerprint_samples
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, format_manifest
from finetune.data.multi_label.multi_hot import count_labels
from finetune.data.training_data import group_samples
from finetune.errors import DataError
from finetune.probe.cross_validation import extract_features, fit_head
from finetune.probe.features.feature_store import StoredFeatures
from finetune.probe.linear_probe import ProbeResult
from finetune.system.files import write_text
from finetune.system.hardware import get_process_device
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Split
from finetune.units import format_count, format_folds


def audit_with_backbone(
    config: Config, dataset: ScannedDataset, reporter: Reporter
) -> tuple[ScannedDataset, tuple[LabelErrorCandidate, ...], LabelCheck | None]:
    """Return the dataset with cropped duplicates added, the likely label errors and their check.

    The duplicates are stored, so that later runs on the same images use them as if they had found
    them by themselves. Each label is compared with the prediction of a head fitted to the features
    of other images; the features are stored for later runs. The most likely error comes first.

    Args:
        config: Backbone, weights, image size and accelerator.
        dataset: Images; their splits do not matter.
        reporter: Receives progress.

    Raises:
        FinetuneError: The backbone, its weights or the images are unsuitable.
    """
    settings = {"unfreeze.name": "linear_probe", "probe.enabled": "on", "probe.num_crops": 0}
    settings |= {"trainer.devices": 1, "trainer.num_nodes": 1}
    samples = tuple(replace(sample, split=Split.TRAIN) for sample in dataset.samples)
    classes = tuple(sorted(count_labels(samples)))
    training = build_training(
        replace_values(config, settings), Manifest(dataset.root, classes, samples)
    )
    assert training.probe is not None, "probe.enabled=on"
    images = training.probe.train
    features = extract_features(
        training.module.classifier,
        images.paths,
        extraction=training.probe.extraction,
        device=get_process_device(training.config.trainer.accelerator, 0),
        reporter=reporter,
    )
    reporter.start("searching cropped duplicates", len(samples))
    duplicates = load_or_find_cropped_duplicates(
        dataset.fingerprints,
        [dataset.root / sample.path for sample in samples],
        dataset.duplicates or (),
        [features],
        cache_key=features.features_id,
        on_progress=reporter.advance,
    )
    reporter.finish()
    # a later fit with data.leakage=drop or move acts on them
    cache_duplicates(dataset.fingerprints, duplicates)
    extended = replace(
        dataset,
        duplicates=duplicates,
        samples=assign_duplicate_groups(dataset.samples, duplicates),
    )
    fitted = fit_head(
        [features],
        images.targets,
        np.ones(len(samples)),
        num_classes=len(classes),
        groups=group_samples(extended.samples),
    )
    folds = format_folds(
        fitted.num_folds, num_held_out=fitted.num_held_out_folds, num_groups=fitted.num_groups
    )
    reporter.note(f"Labels are compared with heads that were fitted to other images: {folds}.")
    judged = [dataset.samples[row] for row in fitted.held_out_rows.tolist()]
    probabilities = fitted.held_out_probabilities.numpy()
    return (
        extended,
        collect_label_errors(judged, classes, probabilities),
        measure_label_check(judged, classes, probabilities),
    )


class ProbeDuplicateSearch:
    """Search for cropped duplicates with the features of a probe, before its head is fitted.

    Args:
        training: Objects of the run.
        reporter: Receiver of progress.

    Attributes:
        manifest: Manifest of the run; with the cropped duplicates once ``find_groups`` was called.
    """

    def __init__(self, training: Training, reporter: Reporter) -> None:
        self.manifest = training.manifest
        self._config = training.config
        self._reporter = reporter

    def find_groups(self, features: Sequence[StoredFeatures]) -> NDArray[np.int64]:
        """Search the duplicates, and return the groups of the training images for folds, (N,).

        Args:
            features: Features of the training images and of the validation images.
        """
        self.manifest = _add_cropped_duplicates(
            self._config, self.manifest, features, self._reporter
        )
        return group_samples(self.manifest.get_samples(Split.TRAIN))


def record_probe_findings(
    run: RunFolder, training: Training, probe: ProbeResult, extended: Manifest, reporter: Reporter
) -> None:
    """Record and report what the features of a probe reveal in training and validation images.

    Likely label errors and cropped duplicates are added to the run's audit. The duplicates are also
    recorded in the manifest, so that validation metrics without leaked images exclude them; the
    splits are not changed.

    Args:
        run: Run folder.
        training: Objects of the run.
        probe: Result of the probe.
        extended: Manifest of the run with the cropped duplicates.
        reporter: Receiver of messages.

    Raises:
        DataError: A cropped duplicate leaks, and ``data.leakage`` is "error".
    """
    manifest = training.manifest
    samples = [*manifest.get_samples(Split.TRAIN), *manifest.get_samples(Split.VAL)]
    judged = [samples[row] for row in probe.held_out_rows.tolist()]
    probabilities = probe.held_out_probabilities.numpy()
    label_errors = collect_label_errors(judged, manifest.classes, probabilities)
    label_check = measure_label_check(judged, manifest.classes, probabilities)
    groups = _find_changed_groups(manifest, extended)
    is_written = _update_audit_files(run, label_errors, label_check, groups)
    location = f"; see {run.audit_csv_path}" if is_written else ""
    trust = describe_label_check(
        None if label_check is None else label_check.to_json(),
        is_multi_label=manifest.is_multi_label,
    )
    _report_label_errors(label_errors, trust, location, reporter)
    if groups:
        _report_cropped_duplicates(training.config, manifest, extended, len(groups), reporter)
        # written last: a resumed run must report these duplicates again if this one crashes before
        write_text(run.manifest_path, format_manifest(extended))


def _update_audit_files(
    run: RunFolder,
    label_errors: Sequence[LabelErrorCandidate],
    label_check: LabelCheck | None,
    duplicates: Sequence[DuplicateSamples],
) -> bool:
    """Add findings to the run's audit files; return whether ``audit.csv`` was updated."""
    try:
        audit, findings = merge_findings(
            run.audit_json_path.read_text(encoding="utf-8"),
            label_errors=label_errors,
            duplicates=duplicates,
            label_check=label_check,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing, damaged or of a later version
    write_text(run.audit_json_path, audit)
    if not run.audit_csv_path.is_file():  # the user deleted it; do not recreate it
        return False
    write_text(run.audit_csv_path, findings)
    return True


def _add_cropped_duplicates(
    config: Config, manifest: Manifest, features: Sequence[StoredFeatures], reporter: Reporter
) -> Manifest:
    """Return the manifest of a run with the cropped duplicates of some of its images."""
    samples = [*manifest.get_samples(Split.TRAIN), *manifest.get_samples(Split.VAL)]
    if config.data.leakage == "ignore":
        return manifest
    readable, fingerprints, _ = fingerprint_samples(
        config, manifest.root, samples, reporter=reporter
    )
    if len(readable) < len(samples):  # a file has changed; training reports it when it reads it
        return manifest
    reporter.start("searching cropped duplicates", len(samples))
    found = load_or_find_cropped_duplicates(
        fingerprints,
        manifest.resolve_paths(samples),
        collect_duplicate_groups(samples),
        features,
        cache_key=features[0].features_id,
        on_progress=reporter.advance,
    )
    reporter.finish()
    return add_duplicate_groups(manifest, [[samples[row] for row in group.rows] for group in found])


def _find_changed_groups(before: Manifest, after: Manifest) -> list[DuplicateSamples]:
    """Return the duplicate groups that have grown or are new."""
    pairs = zip(before.samples, after.samples, strict=True)
    group_ids = {
        new.duplicate_group for old, new in pairs if new.duplicate_group != old.duplicate_group
    }
    return [
        DuplicateSamples(
            tuple(s for s in after.samples if s.duplicate_group == group_id), is_exact=False
        )
        for group_id in sorted(group_ids)
    ]


def _report_label_errors(
    label_errors: Sequence[LabelErrorCandidate], trust: str, location: str, reporter: Reporter
) -> None:
    """Report the number of likely label errors with the most likely one.

    Args:
        label_errors: The errors, the most likely one first.
        trust: How accurate the heads are that contradict the labels.
        location: Where they are listed; may be empty.
        reporter: Receiver of the message.
    """
    if label_errors:
        first, count = label_errors[0], len(label_errors)
        more = f", and {count - 1} more" if count > 1 else ""
        reporter.note(
            f"{format_count(count, 'possible label error')}, by {trust}: {first.path} is "
            f"labelled '{first.label}' (p={first.label_probability:.2f}), predicted "
            f"'{first.predicted_label}' (p={first.predicted_probability:.2f}){more}{location}"
        )


def _report_cropped_duplicates(
    config: Config, before: Manifest, after: Manifest, num_groups: int, reporter: Reporter
) -> None:
    """Report the duplicates that a run's manifest is about to record.

    Raises:
        DataError: Held-out images are among them, and ``data.leakage`` is "error".
    """
    known, policy = find_leaks(before), config.data.leakage
    all_leaks = find_leaks(after)
    new_leaks = {path: other for path, other in all_leaks.items() if path not in known}
    if not new_leaks:
        groups = "duplicate group" if num_groups == 1 else "duplicate groups"
        reporter.note(f"The features of the backbone reveal {num_groups} more {groups}.")
        return
    summary = (
        f"{describe_leaks(after, new_leaks)}. They are crops that only the features of the "
        f"backbone reveal, after the split was made"
    )
    remedy = f"To make them known to later runs: {_build_inspect_command(config)}"
    if policy == "error":
        raise DataError(f"data.leakage=error: {summary}. {remedy}")
    late = "" if policy == "warn" else f", too late for data.leakage={policy}"
    reporter.warn(
        f"{summary}{late}: metrics on them are too optimistic. "
        f"{describe_splits_without_leaks(after, all_leaks)}. {remedy}"
    )


def _build_inspect_command(config: Config) -> str:
    """Return the command whose audit makes the duplicates of a run known to later runs."""
    model, data = config.model, config.data
    args = ["finetune", "inspect", str(data.path), "--backbone", model.backbone]
    if model.weights != "hub":
        args += ["--weights", model.weights]
    if data.splits != "auto":
        args.append(f"data.splits={data.splits}")
    if data.cache not in ("auto", "on", "off"):
        args.append(f"data.cache={data.cache}")
    if data.max_megapixels != Config().data.max_megapixels:
        args.append(f"data.max_megapixels={data.max_megapixels:g}")
    return shlex.join(args)
