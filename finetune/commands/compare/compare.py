"""Probe several backbones on the same images, to choose one before anything is fine-tuned."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.builders import build_training, get_micro_batch_size, measure_full_finetuning_bytes
from finetune.commands.compare.comparison import (
    BackboneFailure,
    BackboneResult,
    CompareResult,
    sort_by_score,
)
from finetune.commands.compare.validate import check_compare, check_single_process
from finetune.commands.fit.prepare import load_run_data
from finetune.commands.prepare_data import resolve_data_path
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import FinetuneError, ModelError, OutOfMemoryError
from finetune.models.backbone import check_backbone_name, create_meta_network
from finetune.models.head import find_linear_head
from finetune.models.hub import check_cached_or_reachable, find_hub_weights
from finetune.models.throughput import count_macs, measure_throughput
from finetune.models.weights import extract_first_line
from finetune.models.weights_folder import find_weights
from finetune.probe.linear_probe import fit_probe
from finetune.system.files import write_text
from finetune.system.hardware import (
    explain_out_of_memory,
    get_process_device,
    is_out_of_memory,
    release_memory,
)
from finetune.types import Reporter


def compare(
    config: Config,
    backbones: Sequence[str],
    *,
    weights: str = "hub",
    csv: Path | None = None,
    reporter: Reporter | None = None,
) -> CompareResult:
    """Return what the probe of each backbone is worth on the same images, and what each costs.

    Images, split, preprocessing and precision are those of ``fit`` with the same config, and the
    answers of the backbones stay in the store, where ``fit`` finds them.

    Args:
        config: As for ``fit``; only keys that a probe depends on may be set.
        backbones: timm names, googlenet or alexnet.
        weights: "hub", or a folder that holds a file for each, see ``find_weights``.
        csv: A file to write, too; whole or not at all.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend. What goes wrong with one backbone after the
            work has begun stands in the result instead.
        KeyboardInterrupt: It was asked to stop; what was computed stays in the store.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    check_single_process(detect_launch())
    names = list(dict.fromkeys(backbones))
    check_compare(config, names, weights=weights, csv=csv)
    path = resolve_data_path(config)
    asked = {key: value for key, value in diff_from_defaults(config).items() if key != "data.path"}
    with signals.allow_interrupts():
        sources = _resolve_sources(names, weights, config.model.kwargs)
        config, data = load_run_data(config, reporter)
        manifest = data.manifest
        try:
            rows, failed = _probe_all(config, manifest, sources, reporter)
        except KeyboardInterrupt:
            reporter.note("Stopped. What was computed is kept; the same command goes on with it.")
            raise
    seconds = time.monotonic() - start
    result = CompareResult(path, sort_by_score(rows), tuple(failed), asked, seconds)
    if csv is not None:
        write_text(csv, result.to_csv())
    return result


def _resolve_sources(
    names: Sequence[str], weights: str, kwargs: Mapping[str, Any]
) -> dict[str, str]:
    """Return for each backbone what ``--weights`` of ``fit`` takes; nothing is read yet.

    Raises:
        ModelError: Names every backbone that cannot be compared, and why.
    """
    sources: dict[str, str] = {}
    mistakes: dict[str, str] = {}
    for name in names:
        try:
            check_backbone_name(name)
            sources[name] = _resolve_source(name, weights)
            _check_head(name, kwargs)
        except FinetuneError as error:
            mistakes[name] = str(error)
    if mistakes:
        if len(mistakes) == 1:
            raise ModelError(next(iter(mistakes.values())))
        lines = "".join(f"\n  {name}: {reason}" for name, reason in mistakes.items())
        raise ModelError(f"{len(mistakes)} of {len(names)} backbones cannot be compared:{lines}")
    return sources


def _resolve_source(name: str, weights: str) -> str:
    if weights != "hub":
        return str(find_weights(Path(weights).expanduser().resolve(), name))
    found = find_hub_weights(name)
    if found is None:
        raise ModelError(
            f"timm has no weights for '{name}'. Leave it out, or name a folder with --weights."
        )
    check_cached_or_reachable(found, name)
    return "hub"


def _check_head(name: str, kwargs: Mapping[str, Any]) -> None:
    network = create_meta_network(name, kwargs=kwargs)
    if network is not None and find_linear_head(network) is None:
        raise ModelError(
            f"'{name}' has a classifier that is not one linear layer, which a probe cannot fit. "
            f"Leave it out."
        )


def _probe_all(
    config: Config, manifest: Manifest, sources: Mapping[str, str], reporter: Reporter
) -> tuple[list[BackboneResult], list[BackboneFailure]]:
    """Return what came of each backbone, one after the other; only one is in memory at a time."""
    rows: list[BackboneResult] = []
    failed: list[BackboneFailure] = []
    for number, (name, weights) in enumerate(sources.items(), start=1):
        where = f"{number} of {len(sources)}  {name}"
        try:
            row = _probe_backbone(config, manifest, name, weights, reporter)
        except Exception as error:  # timm's networks and torch raise what they like
            failed.append(_build_failure(name, error))
            reporter.finish()
            reporter.warn(f"{where} failed: {failed[-1].reason}")
        else:
            rows.append(row)
            reporter.note(f"{where}: {_describe_result(row)}")
        # outside of the handler, which keeps the tensors of what failed
        release_memory()
    return rows, failed


def _probe_backbone(
    config: Config, manifest: Manifest, name: str, weights: str, reporter: Reporter
) -> BackboneResult:
    start = time.monotonic()
    training = build_training(_build_probe_config(config, name, weights), manifest)
    assert training.probe is not None, "asked for"
    classifier, trainer = training.module.classifier, training.config.trainer
    device = get_process_device(trainer.accelerator, 0)
    found = fit_probe(classifier, training.probe, device=device, rendezvous=None, reporter=reporter)
    assert found is not None, "alone"
    spec = training.network.spec
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
        metrics=found.metrics,
        is_correct=found.is_correct,
        num_images=found.num_images,
        num_computed=found.num_computed,
        seconds=time.monotonic() - start,
    )


def _build_probe_config(config: Config, name: str, weights: str) -> Config:
    """Return the config of a run on one backbone that is its probe and nothing else."""
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
    known = row.num_images - row.num_computed
    if not row.num_computed:
        return f"all {known} images known from before, {row.seconds:.0f} s"
    before = f", {known} known from before" if known else ""
    return f"{row.num_computed} images asked about{before}, {row.seconds:.0f} s"


def _build_failure(name: str, error: Exception) -> BackboneFailure:
    if is_out_of_memory(error) and not isinstance(error, FinetuneError):
        return BackboneFailure(name, explain_out_of_memory(error), OutOfMemoryError.exit_code)
    if isinstance(error, FinetuneError):
        return BackboneFailure(name, str(error), error.exit_code)
    return BackboneFailure(
        name, f"{type(error).__name__}: {extract_first_line(error)}.", FinetuneError.exit_code
    )
