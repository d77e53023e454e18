"""Choice of the flips, turns and crops that suit the images, by linear heads on cached features."""

from collections.abc import Mapping

import torch

from finetune.builders import (
    Training,
    choose_geometry,
    find_unmeasured_keys,
    get_crop_scales,
    is_crop_accepted,
)
from finetune.commands.measurement.measured import apply_measured
from finetune.config.auto import MAX_MEASURED_IMAGES
from finetune.config.facts import Choice
from finetune.config.sections.augment import PRESET_CROP_SCALES
from finetune.distributed.rendezvous import Rendezvous
from finetune.evaluation.grouped_folds import encode_groups
from finetune.probe.invariance import measure_view_effects, sample_rows
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter


def settle_augmentation(
    run: RunFolder,
    training: Training,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
) -> Training:
    """Return the training of a run with the augmentation measured, on all ranks.

    A run that has trained already keeps its augmentation.

    Args:
        run: Run folder.
        training: Objects of the run, with or without its cache enabled.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress and messages.
    """
    if not find_unmeasured_keys(training.config) or run.last_checkpoint_path.is_file():
        return training
    choices = measure_augmentation(
        training, device=device, rendezvous=rendezvous, reporter=reporter
    )
    for key, choice in (choices or {}).items():
        reporter.note(f"{key}={choice.value}: {choice.reason}.")
    return apply_measured(run, training, choices, stage="augment", rendezvous=rendezvous)


def measure_augmentation(
    training: Training,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
) -> Mapping[str, Choice] | None:
    """Return the choices for flips, turns and crops that are still "auto", by dotted key.

    Args:
        training: Objects of a run with a linear probe; its classifier is left on the device.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.

    Returns:
        The choices on rank 0; None on the others.
    """
    keys, probe = find_unmeasured_keys(training.config), training.probe
    if not keys:
        return {}
    assert probe is not None, "nothing is measured without a probe"
    crop_scale = PRESET_CROP_SCALES[training.config.augment.name]
    rows = sample_rows(probe.train.labels, MAX_MEASURED_IMAGES, seed=training.config.seed)
    groups = probe.train.groups
    effects = measure_view_effects(
        training.module.classifier,
        [probe.train.paths[row] for row in rows.tolist()],
        probe.train.targets[rows],
        flips=[key for key in keys if key != "min_crop_scale"],
        crop_areas=get_crop_scales(crop_scale) if "min_crop_scale" in keys else (),
        is_crop_accepted=is_crop_accepted,
        num_classes=len(probe.classes),
        groups=None if groups is None else encode_groups([str(group) for group in groups[rows]]),
        extraction=probe.extraction,
        device=device,
        rendezvous=rendezvous,
        reporter=reporter,
    )
    if effects is None:
        return None
    is_multi_label = training.data.is_multi_label
    return choose_geometry(keys, effects, crop_scale=crop_scale, is_multi_label=is_multi_label)
