"""What a pretrained backbone finds wrong in a data set: labels in doubt, and cut copies."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from finetune.audit.audit import DuplicateSamples, LabelErrorCandidate, collect_label_errors
from finetune.audit.duplicate_cache import cache_duplicates, load_or_find_cropped_duplicates
from finetune.audit.duplicate_groups import (
    add_duplicate_groups,
    assign_duplicate_groups,
    collect_duplicate_groups,
)
from finetune.audit.leakage import describe_leaks, describe_splits_without_leaks, find_leaks
from finetune.audit.report import merge_findings
from finetune.builders import Training, build_training
from finetune.commands.prepare_data import ScannedDataset, fingerprint_samples
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, format_manifest
from finetune.errors import DataError
from finetune.probe.linear_probe import ProbeResult
from finetune.probe.out_of_fold import predict_out_of_fold
from finetune.system.files import write_text
from finetune.system.hardware import get_process_device
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Sample, Split


def audit_with_backbone(
    config: Config, dataset: ScannedDataset, reporter: Reporter
) -> tuple[ScannedDataset, tuple[LabelErrorCandidate, ...]]:
    """Return images with the copies that a backbone adds, and the labels that it doubts.

    The copies are known to later runs on the same images, as if they had looked for them. Each
    label is judged by a head that was fitted to the others' features, which are kept for later
    runs; the most doubtful comes first.

    Args:
        config: The backbone, its weights and how it is asked.
        dataset: The images; their splits do not matter.
        reporter: Told of the progress.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    alone = {"unfreeze.name": "linear_probe", "probe.enabled": "on", "probe.num_crops": 0}
    alone |= {"trainer.devices": 1, "trainer.num_nodes": 1}
    samples = tuple(replace(sample, split=Split.TRAIN) for sample in dataset.samples)
    classes = tuple(sorted({sample.label for sample in samples}))
    training = build_training(
        replace_values(config, alone), Manifest(dataset.root, classes, samples)
    )
    assert training.probe is not None, "asked for"
    said = predict_out_of_fold(
        training.module.classifier,
        training.probe,
        device=get_process_device(training.config.trainer.accelerator, 0),
        reporter=reporter,
    )
    judged = [dataset.samples[row] for row in said.rows.tolist()]
    reporter.start("looking for cut copies", len(samples))
    copies = load_or_find_cropped_duplicates(
        dataset.fingerprints,
        [dataset.root / sample.path for sample in samples],
        dataset.duplicates or (),
        [said.features],
        cache_key=said.features.features_id,
        on_progress=reporter.advance,
    )
    reporter.finish()
    cache_duplicates(dataset.fingerprints, copies)  # for whoever asked will want to act on it
    more = replace(
        dataset, duplicates=copies, samples=assign_duplicate_groups(dataset.samples, copies)
    )
    return more, collect_label_errors(judged, classes, said.probabilities.numpy())


def record_probe_findings(
    run: RunFolder, training: Training, probe: ProbeResult, reporter: Reporter
) -> None:
    """Put down what the probe's features tell of training and validation images, and say it.

    Labels in doubt and cut copies stand beside what else was found. The manifest notes the copies,
    so that validation is measured without those that train, too; the splits stay as they are.

    Raises:
        DataError: A copy leaks, and ``data.leakage`` is "error".
    """
    manifest = training.manifest
    samples = [*manifest.get_samples(Split.TRAIN), *manifest.get_samples(Split.VAL)]
    doubts = collect_label_errors(
        [samples[row] for row in probe.held_out_rows.tolist()],
        manifest.classes,
        probe.held_out_probabilities.numpy(),
    )
    more = _add_cropped_duplicates(training, samples, probe, reporter)
    groups = _find_changed_groups(manifest, more)
    is_written = _update_audit_files(run, doubts, groups)
    where = f", the most doubtful first in {run.audit_csv_path}" if is_written else ""
    _report_label_errors(doubts, where, reporter)
    if groups:
        _report_cropped_duplicates(training.config, manifest, more, len(groups), reporter)
        # at last: what it holds is no longer news to a run that goes on
        write_text(run.manifest_path, format_manifest(more))


def _update_audit_files(
    run: RunFolder,
    label_errors: Sequence[LabelErrorCandidate],
    duplicates: Sequence[DuplicateSamples],
) -> bool:
    """Write what was found beside the rest; tell whether there is a place for it."""
    try:
        audit, findings = merge_findings(
            run.audit_json_path.read_text(encoding="utf-8"),
            label_errors=label_errors,
            duplicates=duplicates,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # of an earlier release, or somebody has changed it
    write_text(run.audit_json_path, audit)
    if not run.audit_csv_path.is_file():  # whoever removed it does not want it
        return False
    write_text(run.audit_csv_path, findings)
    return True


def _add_cropped_duplicates(
    training: Training, samples: Sequence[Sample], probe: ProbeResult, reporter: Reporter
) -> Manifest:
    """Return a run's images with the copies that features add."""
    config, manifest = training.config, training.manifest
    if config.data.leakage == "ignore":
        return manifest
    good, looks, _ = fingerprint_samples(config, manifest.root, samples, reporter=reporter)
    if len(good) < len(samples):  # one has changed meanwhile; whoever needs it will say so
        return manifest
    reporter.start("looking for cut copies", len(samples))
    found = load_or_find_cropped_duplicates(
        looks,
        manifest.resolve_paths(samples),
        collect_duplicate_groups(samples),
        probe.features,
        cache_key=probe.features[0].features_id,
        on_progress=reporter.advance,
    )
    reporter.finish()
    return add_duplicate_groups(manifest, [[samples[row] for row in one.rows] for one in found])


def _find_changed_groups(before: Manifest, after: Manifest) -> list[DuplicateSamples]:
    """Return the groups of copies that are larger than they were, or new."""
    pairs = zip(before.samples, after.samples, strict=True)
    words = {
        new.duplicate_group for old, new in pairs if new.duplicate_group != old.duplicate_group
    }
    return [
        DuplicateSamples(
            tuple(s for s in after.samples if s.duplicate_group == word), is_exact=False
        )
        for word in sorted(words)
    ]


def _report_label_errors(
    label_errors: Sequence[LabelErrorCandidate], location: str, reporter: Reporter
) -> None:
    if label_errors:
        first = label_errors[0]
        labels = "label is" if len(label_errors) == 1 else "labels are"
        reporter.note(
            f"{len(label_errors)} {labels} in doubt{location} (as {first.path}: rather {first.predicted_label}, "
            f"{first.predicted_probability:.2f} against {first.label_probability:.2f})."
        )


def _report_cropped_duplicates(
    config: Config, before: Manifest, after: Manifest, num_groups: int, reporter: Reporter
) -> None:
    """Say which copies a run's manifest will learn of.

    Raises:
        DataError: Held-out images are among them, and ``data.leakage`` is "error".
    """
    known, policy = find_leaks(before), config.data.leakage
    all_leaks = find_leaks(after)
    leaks = {path: copy for path, copy in all_leaks.items() if path not in known}
    if not leaks:
        groups = "group" if num_groups == 1 else "groups"
        reporter.note(f"The backbone's features show {num_groups} {groups} of copies more.")
        return
    words = (
        f"{describe_leaks(after, leaks)}. They are cut so much that only the backbone's features "
        f"show it, after the split"
    )
    remedy = f"Later runs know them after: {_build_inspect_command(config)}"
    if policy == "error":
        raise DataError(f"{words}. {remedy}")
    late = "" if policy == "warn" else f" and too late for data.leakage={policy}"
    reporter.warn(
        f"{words}{late}: what is measured on them flatters the model. "
        f"{describe_splits_without_leaks(after, all_leaks)}. {remedy}"
    )


def _build_inspect_command(config: Config) -> str:
    """Return what makes known to later runs which copies the backbone of a run shows."""
    model, data = config.model, config.data
    words = ["finetune", "inspect", str(data.path), "--backbone", model.backbone]
    if model.weights != "hub":
        words += ["--weights", model.weights]
    if data.cache not in ("auto", "on", "off"):
        words.append(f"data.cache={data.cache}")
    if data.max_megapixels != Config().data.max_megapixels:
        words.append(f"data.max_megapixels={data.max_megapixels:g}")
    return shlex.join(words)
