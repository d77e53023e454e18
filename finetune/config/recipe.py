"""Recipe: rules for the settings that determine accuracy, each choice with its reason.

They depend on the data and the backbone only, following the BiT-HyperRule (Kolesnikov et al. 2020,
https://arxiv.org/abs/1912.11370).
"""

from collections.abc import Mapping

from finetune.config.facts import Choice, Facts
from finetune.config.imbalance import choose_imbalance_strategy, choose_post_hoc_strength
from finetune.config.optimizer_defaults import choose_optimizer_values, choose_warmup
from finetune.config.schema import Config
from finetune.config.sections.augment import (
    DEFAULT_PRESET,
    JITTERED_CHANNELS,
    PRESET_CROP_SCALES,
)
from finetune.types import SCORE_LOSSES
from finetune.units import format_count

MACRO_F1_MIN_RATIO = 2.0
"""Imbalance ratio above which macro F1 replaces accuracy as the monitored metric."""

FIXRES_MIN_IMAGE_SIZE = 160
"""Side of evaluation images in pixels from which training images are smaller."""

CROP_VIEWS_IMAGE_LIMIT = 1_000
"""Number of training images below which the last stage is also trained on a centre crop of each."""

PROBED_STAGES_IMAGE_LIMIT = 20_000
"""Training images up to which heads are also fitted to earlier stages."""

LAST_STAGE_EPOCHS = 6
"""Epochs of a probe deeper than the head on its cached activations."""

CALIBRATION_MIN_IMAGES = 30
"""Number of validation images from which fitting a temperature to them pays off.

Fitting it to N images costs about 1 / (2 N) of log loss on other images. Label smoothing alone
costs more, and ``calibrate`` leaves the logits as they are where cross-validation gains nothing.
"""


def choose_recipe(config: Config, facts: Facts) -> dict[str, Choice]:
    """Return the choices for the settings that determine accuracy, by dotted key."""
    choices = _choose_independent_settings(config, facts)
    num_steps = _count_steps(config, facts, choices)
    switch = config.probe.enabled
    has_fitted_head = (choices["probe.enabled"].value if switch == "auto" else switch) == "on"
    return {
        **choices,
        "lr_schedule.warmup_fraction": choose_warmup(
            config, num_steps, has_fitted_head=has_fitted_head
        ),
    }


def _choose_independent_settings(config: Config, facts: Facts) -> dict[str, Choice]:
    switch = config.probe.enabled
    probed = _supports_probe(config, facts) if switch == "auto" else switch == "on"
    probe_only = probed and config.unfreeze.name == "linear_probe"
    fitted = probed and _is_full_finetuning(config)
    images = f"{facts.num_images:,} training images"
    return {
        "probe.enabled": _choose_probe(config, facts),
        "probe.num_crops": _choose_probe_views(config, facts, has_probe=probed),
        "probe.last_stage_epochs": _choose_probe_epochs(config, has_probe=probed),
        "probe.stages": Choice(
            "on"
            if probed and facts.num_images <= PROBED_STAGES_IMAGE_LIMIT and not facts.is_multi_label
            else "off"
        ),
        "unfreeze.name": _choose_unfreeze(config, facts, has_probe=probed),
        "trainer.epochs": Choice(1)
        if probe_only
        else _choose_epochs(facts, images, has_fitted_head=fitted),
        "trainer.batch_size": Choice(
            _choose_batch_size(
                facts.num_images, num_micro_batches=_count_micro_batches(config, facts)
            ),
            images,
        ),
        "data.image_size": Choice(facts.image_size, "input size of the pretrained backbone"),
        "data.train_image_size": _choose_train_sizes(config, facts, is_probe_only=probe_only),
        "model.batch_norm": _choose_batch_norm(facts),
        "model.head_init": Choice("zero"),
        "augment.name": _choose_augmentation(config),
        **choose_optimizer_values(config, facts, has_probe=probed and not probe_only),
        "optim.layer_decay": _choose_layer_decay(facts),
        "optim.swa_fraction": Choice(0.0),
        "imbalance.strategy": choose_imbalance_strategy(config, facts),
        "imbalance.post_hoc_strength": choose_post_hoc_strength(config, facts),
        "calibration.enabled": _choose_calibration(config, facts),
        "trainer.monitor": _choose_monitor(facts),
        "checkpoint.monitor": _choose_checkpoint_monitor(config, facts),
    }


def _supports_probe(config: Config, facts: Facts) -> bool:
    """Return whether there are pretrained weights, a linear head and a whole network on rank 0."""
    return facts.is_pretrained and facts.has_linear_head and config.trainer.strategy == "ddp"


def _choose_probe(config: Config, facts: Facts) -> Choice:
    if _supports_probe(config, facts):
        return Choice("on", "pretrained weights: fit a linear probe first")
    if not facts.is_pretrained:
        return Choice("off", "no pretrained weights")
    if config.model.head == "mlp":
        return Choice("off", "a head with hidden layers is trained in epochs")
    if not facts.has_linear_head:
        return Choice("off", "the classifier is not a single linear layer")
    return Choice(
        "off",
        f"with trainer.strategy={config.trainer.strategy}, no process holds the whole network",
    )


def _choose_probe_views(config: Config, facts: Facts, *, has_probe: bool) -> Choice:
    """One crop more with few images, where the last stage is trained on the views.

    For the head alone a view gains too little for its forward passes (docs/design/probe.md).
    """
    is_few = facts.num_images < CROP_VIEWS_IMAGE_LIMIT
    has_crops = config.augment.name in ("auto", *PRESET_CROP_SCALES)
    if has_probe and config.probe.depth > 1 and has_crops and is_few:
        return Choice(
            1,
            f"fewer than {CROP_VIEWS_IMAGE_LIMIT:,} images, probe.depth={config.probe.depth}: "
            f"center crop as an additional view",
        )
    return Choice(0)


def _choose_probe_epochs(config: Config, *, has_probe: bool) -> Choice:
    if has_probe and config.probe.depth > 1:
        return Choice(
            LAST_STAGE_EPOCHS, f"on cached activations, because probe.depth={config.probe.depth}"
        )
    return Choice(0)


def _choose_unfreeze(config: Config, facts: Facts, *, has_probe: bool) -> Choice:
    if not facts.is_pretrained:
        return Choice("all", "no pretrained weights")
    if config.unfreeze.params:
        return Choice("head_first", "unfreeze.params is set")
    if has_probe:
        return Choice("all", "the linear probe provides a fitted head")
    return Choice("head_first", "gradients of a random head would distort the backbone")


def _is_full_finetuning(config: Config) -> bool:
    """Return whether all layers train from the first epoch, if there is a probe."""
    return config.unfreeze.name in ("auto", "all") and not config.unfreeze.params


def _choose_epochs(facts: Facts, size_reason: str, *, has_fitted_head: bool) -> Choice:
    """Fewer epochs after a probe and with more images; three times as many from scratch."""
    if has_fitted_head:
        return Choice(
            _compute_epochs_after_probe(facts.num_images), f"{size_reason}, after a linear probe"
        )
    epochs = 10 if facts.num_images < 5_000 else 8 if facts.num_images < 50_000 else 5
    if facts.is_pretrained:
        return Choice(epochs, f"{size_reason}, with layers frozen at first")
    return Choice(3 * epochs, f"{size_reason}, from scratch")


def _compute_epochs_after_probe(num_images: int) -> int:
    """Six for most sets; more with few images, so that there are some 70 steps in batches of 32."""
    if num_images < 50_000:
        return min(30, max(6, round(2_500 / num_images)))
    return 3


def _choose_train_sizes(config: Config, facts: Facts, *, is_probe_only: bool) -> Choice:
    """The side at which objects look as large in random crops as in evaluation images (FixRes)."""
    requested = config.data.image_size
    side = facts.image_size if requested == "auto" else requested
    name = DEFAULT_PRESET if config.augment.name == "auto" else config.augment.name
    is_supported = facts.is_pretrained and facts.supports_any_size and side >= FIXRES_MIN_IMAGE_SIZE
    if is_probe_only or not is_supported or name not in PRESET_CROP_SCALES:
        return Choice((side, side))
    own_scale = config.augment.min_crop_scale
    smaller = compute_fixres_train_size(
        side, min_crop_scale=PRESET_CROP_SCALES[name] if own_scale == "auto" else own_scale
    )
    if smaller == side:
        return Choice((side, side))
    return Choice(
        (smaller, smaller),
        f"random crops enlarge objects (FixRes); {(smaller / side) ** 2:.0%} of the compute of "
        f"{side} px",
    )


def compute_fixres_train_size(
    image_size: int, *, min_crop_scale: float = PRESET_CROP_SCALES[DEFAULT_PRESET]
) -> int:
    """Return the side of training images, a multiple of 32 px, at most that of evaluation.

    A crop of an area a, relative to the image, that is resized to a side enlarges objects by
    1 / sqrt(a). Random crops have areas between ``min_crop_scale`` and 1; the mean of sqrt(a) over
    them is the factor by which training images have to be smaller for objects to look as large on
    average (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).

    Args:
        image_size: Side of evaluation images in pixels.
        min_crop_scale: Smallest area of random crops, relative to the image.
    """
    if min_crop_scale == 1:
        return image_size
    factor: float = 2 / 3 * (1 - min_crop_scale**1.5) / (1 - min_crop_scale)
    return min(image_size, max(32, round(factor * image_size / 32) * 32))


def _choose_augmentation(config: Config) -> Choice:
    """Return the default preset; its color jitter is defined for grey and RGB images."""
    if config.data.channels in JITTERED_CHANNELS:
        return Choice(DEFAULT_PRESET, "random crops, horizontal flips and color jitter")
    return Choice(DEFAULT_PRESET, "random crops and horizontal flips")


def _choose_batch_norm(facts: Facts) -> Choice:
    if not facts.has_batch_norm:
        return Choice("frozen", "no BatchNorm layers")
    if facts.is_pretrained:
        return Choice("frozen", "keep the pretrained running statistics")
    return Choice("train", "no pretrained running statistics")


def _count_steps(config: Config, facts: Facts, choices: Mapping[str, Choice]) -> int:
    """Return the number of optimizer steps of a run."""
    epochs = choices["trainer.epochs"].value
    if config.trainer.epochs != "auto":
        epochs = config.trainer.epochs
    batch_size = choices["trainer.batch_size"].value
    if config.trainer.batch_size != "auto":
        batch_size = config.trainer.batch_size
    num_steps: int = epochs * max(1, facts.num_images // batch_size)
    return num_steps


def _choose_layer_decay(facts: Facts) -> Choice:
    """0.7 per stage of a five-stage network, distributed over the layer groups."""
    if not facts.is_pretrained:
        return Choice(1.0, "no pretrained weights")
    decay: float = 0.7 ** (4 / max(4, facts.num_groups - 2))
    return Choice(round(decay, 4), f"0.7 per stage, {facts.num_groups} layer groups")


def _choose_calibration(config: Config, facts: Facts) -> Choice:
    if config.loss.name in SCORE_LOSSES and facts.num_val_images > 0:
        return Choice("on", "the logits are scores until a temperature scales them")
    is_enough = facts.num_val_images >= CALIBRATION_MIN_IMAGES
    return Choice(
        "on" if is_enough else "off", format_count(facts.num_val_images, "validation image")
    )


def _choose_monitor(facts: Facts) -> Choice:
    if facts.is_multi_label:
        return Choice("mean_average_precision", "multi-label: independent of thresholds")
    ratio = f"imbalance ratio {facts.imbalance_ratio:.3g}"
    if facts.imbalance_ratio > MACRO_F1_MIN_RATIO:
        return Choice("macro_f1", ratio)
    return Choice("accuracy", ratio)


def _choose_checkpoint_monitor(config: Config, facts: Facts) -> Choice:
    if config.trainer.monitor != "auto":
        return Choice(config.trainer.monitor, "trainer.monitor is set")
    imbalance = config.imbalance
    is_weighted = imbalance.strategy == "class_weights" or imbalance.class_weights == "balanced"
    if facts.is_multi_label and (config.loss.name == "asymmetric" or is_weighted):
        return Choice(
            "mean_average_precision", "the loss distorts probabilities, and with them the log loss"
        )
    return Choice("calibrated_loss", "varies less between few images than a rate of errors")


def _choose_batch_size(num_images: int, *, num_micro_batches: int) -> int:
    """Larger for larger sets, and a multiple of the micro-batches of a step."""
    minimum = 32 if num_images < 5_000 else 64 if num_images < 50_000 else 128
    return -(-minimum // num_micro_batches) * num_micro_batches


def _count_micro_batches(config: Config, facts: Facts) -> int:
    """Return the micro-batches of a step, over all processes and accumulated batches."""
    trainer = config.trainer
    devices = facts.processes_per_node if isinstance(trainer.devices, str) else trainer.devices
    nodes = facts.num_nodes if isinstance(trainer.num_nodes, str) else trainer.num_nodes
    accumulate = trainer.accumulate_grad_batches
    return devices * nodes * (1 if isinstance(accumulate, str) else accumulate)
