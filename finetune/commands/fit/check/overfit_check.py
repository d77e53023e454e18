"""Check before a run: its network learns a few training images, or what hinders it is found."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from finetune.builders import Training, build_training
from finetune.builders.constraints.probe_rules import check_probe_settings
from finetune.commands.fit.check.attempts import Attempts
from finetune.commands.fit.check.busy_clock import count_seconds, read_clocks
from finetune.commands.fit.check.check_evidence import (
    CheckEvidence,
    HeldOutResult,
    compare_with_chance,
)
from finetune.commands.fit.check.check_images import (
    CheckRows,
    Contradiction,
    choose_rows,
    compute_statistics,
    find_contradictions,
    load_rows,
    pair_contradicting,
)
from finetune.commands.fit.check.hindrances import find_hindrances
from finetune.commands.fit.check.plain_loss import move_batch, predict_logits, select_images
from finetune.commands.fit.launch_check import check_launch
from finetune.commands.fit.prepare import check_new_run, load_run_data
from finetune.commands.measurement.input_notes import note_input
from finetune.commands.measurement.normalization import check_normalization
from finetune.config.schema import Config
from finetune.data.dataset import Batch
from finetune.diagnosis.finding import Finding
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError
from finetune.system.hardware import get_process_device
from finetune.types import Reporter, Split

TIME_LIMIT_SECONDS = 60.0
"""Time limit of all attempts, after the images have been listed and audited.

Time in which other programs use the cores does not count, up to twice as much.
"""

_HELD_OUT_SECONDS = 10.0
_HELD_OUT_BATCH, _MIN_HELD_OUT = 16, 32


@dataclass(frozen=True, slots=True, eq=False)
class CheckResult:
    """Result of a check.

    Attributes:
        findings: What hinders the run, or that nothing does, the worst first.
        evidence: Numbers that they stand on.
        lr_reason: Reason for the learning rate; empty if the config gave it.
        settings: Settings of the run that the check had, and number of classes that were learned.
        switched_off: What a run has and the check leaves out.
        seconds: Wall time of this call.
    """

    findings: tuple[Finding, ...]
    evidence: CheckEvidence
    lr_reason: str
    settings: Mapping[str, Any]
    switched_off: tuple[str, ...]
    seconds: float

    @property
    def is_passed(self) -> bool:
        """Whether the images were learned and no finding is a problem."""
        is_hindered = any(finding.severity == "problem" for finding in self.findings)
        return self.evidence.is_learned and not is_hindered

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        evidence = self.evidence
        held_out = evidence.held_out
        traces = {"run": evidence.main, "unfrozen": evidence.deeper}
        return {
            "is_passed": self.is_passed,
            "seconds": round(self.seconds, 3),
            "time_limit_seconds": evidence.time_limit_seconds,
            "settings": dict(self.settings),
            "lr_reason": self.lr_reason,
            "switched_off": list(self.switched_off),
            "attempts": {
                **{k: None if one is None else one.to_json() for k, one in traces.items()},
                "other_rates": [trace.to_json() for trace in evidence.other_rates],
            },
            "held_out": None if held_out is None else held_out.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_learning(
    config: Config,
    *,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    reporter: Reporter | None = None,
) -> CheckResult:
    """Train on 32 images with the settings of a run until none is wrong, or find what hinders it.

    No run folder is created; only caches of the audit are written. One process does it, in fp32.

    Args:
        config: Config of the run.
        time_limit_seconds: Time limit of the training, at which what was reached is reported.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    check_single_process(config)
    with signals.allow_interrupts():
        training = _prepare(config, reporter)
        reporter.start("learning a few images", round(time_limit_seconds))
        try:
            evidence, lr_reason = _collect_evidence(
                training, time_limit_seconds, _build_clock(reporter)
            )
        finally:
            reporter.finish()
    return CheckResult(
        find_hindrances(evidence),
        evidence,
        lr_reason,
        _describe_settings(training, evidence),
        _list_switched_off(training),
        time.monotonic() - start,
    )


def check_single_process(config: Config) -> None:
    """Check that a new run of one split is checked by one process.

    Raises:
        ConfigError: The run continues another one or has folds, or a launcher has started several
            processes.
    """
    if config.cross_validation.num_folds is not None:
        raise ConfigError(
            f"--check cannot be used with cross_validation.num_folds="
            f"{config.cross_validation.num_folds}: it checks one run. Leave the folds out; their "
            f"runs have the same settings."
        )
    if config.resume != "never":
        raise ConfigError(
            f"--check cannot be used with resume={config.resume}: it checks a new run. Leave one "
            f"of them out."
        )
    launch = check_launch(config.trainer, detect_launch())
    if launch is not None and launch.world_size > 1:
        raise ConfigError(
            f"--check runs in one process, but {launch.launcher} started {launch.world_size}. Run "
            f"finetune fit --check without {launch.launcher}, then train with all processes."
        )


def _prepare(config: Config, reporter: Reporter) -> Training:
    """Return the objects of a new run, on the device."""
    check_normalization(config)
    check_new_run(config)
    resolved, data = load_run_data(config, reporter)
    training = build_training(resolved, data.manifest)
    check_probe_settings(config, training.config)
    note_input(training, data.audit, reporter)
    training.module.to(get_process_device(training.config.trainer.accelerator, 0))
    return training


def _build_clock(reporter: Reporter) -> Callable[[], None]:
    """Return a function that advances the progress bar by the seconds since it was called last."""
    start, shown = time.monotonic(), 0

    def advance() -> None:
        nonlocal shown
        seconds = int(time.monotonic() - start)
        reporter.advance(seconds - shown)
        shown = seconds

    return advance


def _collect_evidence(
    training: Training, time_limit_seconds: float, on_step: Callable[[], None]
) -> tuple[CheckEvidence, str]:
    """Return the numbers of the check, and the reason for the learning rate."""
    samples = training.manifest.get_samples(Split.TRAIN)
    contradictions = find_contradictions(samples)
    rows = choose_rows(training, contradictions)
    batch = load_rows(training, rows.learned)
    mean, std = compute_statistics(batch["image"])
    _settle_normalization(training, batch)
    keys = [hashlib.blake2b(one.numpy().tobytes()).hexdigest() for one in batch["image"]]
    same_pixels = pair_contradicting(
        [samples[row] for row in rows.learned], keys, is_exact=True, rows=rows.learned.tolist()
    )
    listed = {one.rows for one in same_pixels}
    contradictions = same_pixels + [one for one in contradictions if one.rows not in listed]
    spec_mean, spec_std = training.module.mean.cpu(), training.module.std.cpu()
    evidence = CheckEvidence(
        num_images=len(keys),
        num_distinct=len(set(keys)),
        pixel_std=float(std.max()),
        input_mean=tuple(((mean - spec_mean) / spec_std).tolist()),
        input_std=tuple((std / spec_std).tolist()),
        contradictions=tuple(contradictions),
        num_groups=len(training.module.classifier.groups),
        is_pretrained=training.facts.is_pretrained,
        time_limit_seconds=time_limit_seconds,
    )
    if evidence.num_distinct == 1:
        return evidence, ""
    batch = move_batch(_drop_contradicting(batch, rows, contradictions), training.module.device)
    attempts = Attempts(training, batch, time_limit_seconds=time_limit_seconds, on_step=on_step)
    main = attempts.learn_as_run()
    is_rate_chosen = bool(attempts.lr_reason)
    evidence = replace(evidence, main=main, is_rate_chosen=is_rate_chosen)
    if main.is_learned:
        held_out = _predict_held_out(training, rows, attempts)
        return replace(evidence, held_out=held_out), attempts.lr_reason
    deeper = attempts.try_deeper(main)
    if deeper is None or not deeper.is_learned:
        evidence = replace(evidence, other_rates=attempts.try_other_rates(main))
    return replace(evidence, deeper=deeper), attempts.lr_reason


def _settle_normalization(training: Training, batch: Batch) -> None:
    """Normalise by the images of the check where the run measures those of all its images."""
    if training.config.data.normalize == "dataset":
        mean, std = compute_statistics(batch["image"])
        training.module.mean.copy_(mean)
        training.module.std.copy_(torch.where(std < 1e-3, torch.ones_like(std), std))


def _drop_contradicting(
    batch: Batch, rows: CheckRows, contradictions: list[Contradiction]
) -> Batch:
    """Return the images without the second one of each exact contradiction."""
    dropped = [one.rows[1] for one in contradictions if one.is_exact]
    return select_images(batch, np.flatnonzero(~np.isin(rows.learned, dropped)))


def _predict_held_out(
    training: Training, rows: CheckRows, attempts: Attempts
) -> HeldOutResult | None:
    """Return how other training images are predicted, as many as there is time for."""
    start, limit = read_clocks(), min(attempts.seconds_left, _HELD_OUT_SECONDS)
    predictions, targets = [], []
    for first in range(0, len(rows.held_out), _HELD_OUT_BATCH):
        if first >= _MIN_HELD_OUT and count_seconds(start) > limit:
            break
        part = load_rows(training, rows.held_out[first : first + _HELD_OUT_BATCH])
        logits = predict_logits(training.module, part["image"]).cpu()
        is_multi_label = training.data.is_multi_label
        predictions.append((logits > 0).long() if is_multi_label else logits.argmax(dim=1))
        targets.append(part["label"].long())
        attempts.on_step()
    if not predictions:
        return None
    return compare_with_chance(
        torch.cat(predictions).numpy(), torch.cat(targets).numpy(), seed=training.config.seed
    )


def _describe_settings(training: Training, evidence: CheckEvidence) -> dict[str, Any]:
    config = training.config
    return {
        "num_images": evidence.num_images,
        "num_classes": len(training.data.classes),
        "backbone": config.model.backbone,
        "image_size": training.network.spec.input_size[-1],
        "loss": config.loss.name,
        "optimizer": config.optim.name,
        "unfreeze": config.unfreeze.name,
        "num_groups": evidence.num_groups,
        "has_probe": training.probe is not None,
    }


def _list_switched_off(training: Training) -> tuple[str, ...]:
    """Return what the run has and the check leaves out, as nothing should hinder learning."""
    config = training.config
    named = {
        "augmentation": config.augment.name != "none",
        "mixup": config.augment.mixup > 0,
        "CutMix": config.augment.cutmix > 0,
        f"label smoothing of {config.loss.label_smoothing:g}": config.loss.label_smoothing > 0,
        "weight averaging": config.optim.swa_fraction > 0,
        f"sampler {config.imbalance.sampler}": config.imbalance.sampler not in ("none", "uniform"),
        "penalties of the weights": config.optim.head_l1 > 0,
    }
    always = ("dropout", "learning-rate schedule", "mixed precision")
    return (*(name for name, is_used in named.items() if is_used), *always)
