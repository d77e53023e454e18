"""Compare backbones by a linear probe on the same images, to choose one before fine-tuning."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.builders import (
    build_training,
    get_micro_batch_size,
    measure_full_finetuning_bytes,
    update_training,
)
from finetune.commands.compare.backbone_result import BackboneFailure, BackboneResult
from finetune.commands.compare.checks import check_compare, check_single_process
from finetune.commands.compare.label_precision import measure_label_precision
from finetune.commands.compare.result import CompareResult, sort_by_score
from finetune.commands.fit.prepare import load_run_data
from finetune.commands.measurement.augmentation_check import measure_augmentation
from finetune.commands.measurement.monitor_check import check_some_label
from finetune.commands.prepare_data import resolve_data_path
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import FinetuneError, ModelError, OutOfMemoryError
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.lookup import is_import_path
from finetune.models.backbone import check_backbone_name, create_meta_network
from finetune.models.costs.throughput import count_macs, measure_throughput
from finetune.models.head import find_linear_head
from finetune.models.pretrained.hub import check_cached_or_reachable, find_hub_weights
from finetune.models.pretrained.weights import extract_first_line
from finetune.models.pretrained.weights_folder import find_weights
from finetune.probe.linear_probe import fit_probe
from finetune.system.files import write_text
from finetune.system.hardware import (
    explain_out_of_memory,
    get_process_device,
    is_out_of_memory,
    release_memory,
)
from finetune.types import Reporter, Split
from finetune.units import format_count, format_duration


def compare(
    config: Config,
    backbones: str | Sequence[str],
    *,
    weights: str = "hub",
    csv: Path | None = None,
    reporter: Reporter | None = None,
) -> CompareResult:
    """Compute the probe metrics and the cost of each backbone on the same images.

    Images, split, preprocessing and precision are those of ``fit`` with the same config, and the
    features stay in the feature cache, where ``fit`` finds them.

    Args:
        config: Config as for ``fit``; only keys that a probe depends on may be set.
        backbones: timm names, googlenet or alexnet; duplicates are ignored.
        weights: "hub", or a folder with one file per backbone, see ``find_weights``.
        csv: CSV file to write as well, atomically; None for none.
        reporter: Receiver of progress and notes.

    Returns:
        The backbones, best first. A backbone that fails once the work has begun is listed in
        ``CompareResult.failures`` instead of raising.

    Raises:
        FinetuneError: Invalid arguments, data or weights; the message names the remedy.
        KeyboardInterrupt: Stop requested; computed features stay in the cache.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    check_single_process(detect_launch())
    names = list(dict.fromkeys([backbones] if isinstance(backbones, str) else backbones))
    check_compare(config, names, weights=weights, csv=csv)
    path = resolve_data_path(config)
    settings = {
        key: value for key, value in diff_from_defaults(config).items() if key != "data.path"
    }
    with signals.allow_interrupts():
        sources = _resolve_sources(names, weights, config.model.kwargs)
        config, data = load_run_data(config, reporter)
        manifest = data.manifest
        _check_labels(manifest)
        try:
            rows, failures = _probe_all(config, manifest, sources, reporter)
        except KeyboardInterrupt:
            reporter.note(
                "Stopped. Computed features are cached; rerun the same command to continue."
            )
            raise
    seconds = time.monotonic() - start
    result = CompareResult(path, sort_by_score(rows), tuple(failures), settings, seconds)
    if csv is not None:
        write_text(csv, result.to_csv(), "Free space there, or choose another --csv.")
    return result


def _resolve_sources(
    names: Sequence[str], weights: str, kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Return backbone to the value of ``--weights`` of ``fit``, without reading any weights.

    Raises:
        ModelError: Some backbones cannot be compared; the message lists each with its reason.
    """
    sources: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in names:
        try:
            check_backbone_name(name)
            sources[name] = _resolve_source(name, weights)
            _check_head(name, kwargs)
        except FinetuneError as error:
            reasons[name] = str(error)
    if reasons:
        if len(reasons) == 1:
            raise ModelError(next(iter(reasons.values())))
        lines = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        raise ModelError(f"{len(reasons)} of {len(names)} backbones cannot be compared:{lines}")
    return sources


def _resolve_source(name: str, weights: str) -> str:
    if weights != "hub":
        return str(find_weights(Path(weights).expanduser().resolve(), name))
    if is_import_path(name):
        return "random"  # a network of one's own, compared by its random features
    hub_weights = find_hub_weights(name)
    if hub_weights is None:
        raise ModelError(
            f"timm has no weights for '{name}'. Leave it out, or give a folder with --weights."
        )
    check_cached_or_reachable(hub_weights, name)
    return "hub"


def _check_head(name: str, kwargs: Mapping[str, Any]) -> None:
    network = create_meta_network(name, kwargs=kwargs)
    if network is not None and find_linear_head(network) is None:
        raise ModelError(
            f"'{name}' has a classifier that is not a single linear layer, so a linear probe "
            f"cannot be fitted. Leave it out."
        )


def _probe_all(
    config: Config, manifest: Manifest, sources: Mapping[str, str], reporter: Reporter
) -> tuple[list[BackboneResult], list[BackboneFailure]]:
    """Return the results and failures of the backbones; only one is in memory at a time."""
    rows: list[BackboneResult] = []
    failures: list[BackboneFailure] = []
    for number, (name, weights) in enumerate(sources.items(), start=1):
        prefix = f"[{number}/{len(sources)}] {name}"
        try:
            row = _probe_backbone(config, manifest, name, weights, reporter)
        except Exception as error:  # timm networks and torch raise errors of any type
            failures.append(_build_failure(name, error))
            reporter.finish()
            reporter.warn(f"{prefix} failed: {failures[-1].reason}")
        else:
            rows.append(row)
            reporter.note(f"{prefix}: {_describe_result(row)}")
        # after the handler, whose traceback keeps the tensors of the failed backbone alive
        release_memory()
    return rows, failures


def _probe_backbone(
    config: Config, manifest: Manifest, name: str, weights: str, reporter: Reporter
) -> BackboneResult:
    start = time.monotonic()
    training = build_training(_build_probe_config(config, name, weights), manifest)
    device = get_process_device(training.config.trainer.accelerator, 0)
    choices = measure_augmentation(training, device=device, rendezvous=None, reporter=reporter)
    training = update_training(training, choices or {})
    assert training.probe is not None, "requested by _build_probe_config"
    classifier, trainer = training.module.classifier, training.config.trainer
    probe = fit_probe(classifier, training.probe, device=device, rendezvous=None, reporter=reporter)
    assert probe is not None, "this is the only process"
    spec, val = training.network.spec, training.data.val
    network = classifier.network.eval()
    return BackboneResult(
        backbone=name,
        weights=weights,
        image_size=spec.input_size[-1],
        num_parameters=sum(group.num_parameters for group in classifier.groups),
        num_macs=count_macs(network, spec, device=device),
        images_per_second=measure_throughput(
            network, spec, device=device, precision=trainer.precision
        ),
        training_bytes=measure_full_finetuning_bytes(training),
        batch_size=get_micro_batch_size(training),
        monitor=trainer.monitor,
        metrics=probe.metrics,
        is_correct=probe.is_correct,
        num_images=probe.num_images,
        num_computed=probe.num_computed,
        seconds=time.monotonic() - start,
        stages=probe.stages,
        precision=None
        if val.multi_hot is None
        else measure_label_precision(
            # the head is not fitted on the validation images, which come last
            probe.held_out_probabilities[-len(val) :].double().numpy(),
            val.multi_hot > 0,
            groups_N=val.groups,
            value=probe.metrics[MEAN_AVERAGE_PRECISION],
        ),
    )


def _check_labels(manifest: Manifest) -> None:
    """Check that a validation image has a label, if images have any number of labels.

    Raises:
        DataError: None has, so that no average precision is defined.
    """
    if manifest.is_multi_label:
        check_some_label(
            manifest.get_samples(Split.VAL),
            "validation image",
            effect="no average precision compares the backbones",
            remedy="Add images with labels to the val split.",
        )


def _build_probe_config(config: Config, name: str, weights: str) -> Config:
    """Return the config of a run that only fits a linear probe to one backbone."""
    return replace_values(
        config,
        {
            "model.backbone": name,
            "model.weights": weights,
            "unfreeze.name": "linear_probe",
            "probe.enabled": "on",
            "trainer.devices": 1,
            "trainer.num_nodes": 1,
        },
    )


def _describe_result(row: BackboneResult) -> str:
    duration = format_duration(row.seconds)
    num_cached = row.num_images - row.num_computed
    if not row.num_computed:
        return f"features of {format_count(num_cached, 'image')} from the cache, {duration}"
    cached = f", {num_cached:,} from the cache" if num_cached else ""
    return f"features of {format_count(row.num_computed, 'image')} computed{cached}, {duration}"


def _build_failure(name: str, error: Exception) -> BackboneFailure:
    if is_out_of_memory(error) and not isinstance(error, FinetuneError):
        return BackboneFailure(name, explain_out_of_memory(error), OutOfMemoryError.exit_code)
    if isinstance(error, FinetuneError):
        return BackboneFailure(name, str(error), error.exit_code)
    return BackboneFailure(
        name, f"{type(error).__name__}: {extract_first_line(error)}.", FinetuneError.exit_code
    )
