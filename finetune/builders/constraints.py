"""Constraints between settings: the table of combinations that cannot run.

To add one, append a ``Constraint`` to a table below and a case to its contract test. Ranges of one
value belong to the config sections, parameters of a named component to its builder, and
contradictions within ``imbalance`` to ``config.imbalance``, which the command line checks first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.builders.criterion import select_probe_loss
from finetune.builders.resolve import RunSpec
from finetune.config.auto import get_config_value
from finetune.config.resolved import ResolvedConfig
from finetune.config.sections.data import AUGMENT_NAMES
from finetune.errors import ConfigError, DataError, FinetuneError

PRESETS_BY_STRENGTH = tuple(name for name in AUGMENT_NAMES if name != "none")

Predicate = Callable[[ResolvedConfig, RunSpec], bool]


@dataclass(frozen=True, slots=True)
class Constraint:
    """Combination of settings that cannot run.

    Attributes:
        keys: Dotted keys: the setting that is rejected, then those that it conflicts with.
        is_violated: Function of the config and the run; true if the run violates the constraint.
        reason: Why it is a conflict and what to do; a format string of ``run`` and ``config``.
        error: Class of the exception.
    """

    keys: tuple[str, ...]
    is_violated: Predicate
    reason: str
    error: type[FinetuneError] = ConfigError

    def format_message(self, run: RunSpec) -> str:
        """Return the message for a run that violates the constraint; it names all keys."""
        first, *others = (
            f"{key}={_format_value(get_config_value(run.config, key))}" for key in self.keys
        )
        conflict = f" cannot apply to {' and '.join(others)}" if others else ""
        return f"{first}{conflict}: {self.reason.format(run=run, config=run.config)}"


def check_constraints(run: RunSpec) -> None:
    """Raise an error for the first violated constraint.

    Raises:
        ConfigError: Settings cannot be combined; the message names them.
        DataError: There are too few images for the settings.
    """
    for constraint in CONSTRAINTS:
        if constraint.is_violated(run.config, run):
            raise constraint.error(constraint.format_message(run))


def _format_value(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_sharded(config: ResolvedConfig) -> bool:
    return config.trainer.strategy != "ddp"


def _has_weaker_preset(config: ResolvedConfig, _: RunSpec) -> bool:
    """Return whether the preset of rare classes is not stronger than that of the others."""
    augment = config.augment
    if augment.rare_class_preset == "off":
        return False
    if augment.name not in PRESETS_BY_STRENGTH:
        return True
    strength = PRESETS_BY_STRENGTH.index
    return strength(augment.name) >= strength(augment.rare_class_preset)


def _require_image_pairs(key: str) -> Constraint:
    """Return the constraint that mixing needs two images in each micro-batch."""
    return Constraint(
        (key, "trainer.batch_size"),
        lambda c, run: run.micro_batch_size < 2 and bool(get_config_value(c, key)),
        "each of the {config.num_micro_batches} micro-batches of a step of {run.batch_size} images "
        "has one image, and mixing needs two. Use a larger batch or fewer micro-batches.",
    )


def _require_probe(key: str, default: int) -> Constraint:
    """Return the constraint that a setting of the linear probe needs one."""
    return Constraint(
        (key, "probe.enabled"),
        lambda c, _: c.probe.enabled == "off" and get_config_value(c, key) != default,
        "it is a setting of the linear probe. Leave one of them out.",
    )


def _forbid_for_probe_only(key: str, is_set: Predicate) -> Constraint:
    """Return the constraint that a setting needs epochs, which a linear probe only has not."""
    return Constraint(
        (key, "unfreeze.name"),
        lambda c, run: c.is_probe_only and is_set(c, run),
        "the head is fitted by logistic regression until it converges, without epochs. Leave it "
        "out, or set probe.enabled=off to train the head in epochs.",
    )


_HARDWARE = (
    Constraint(
        ("model.batch_norm", "trainer.accelerator"),
        lambda c, _: c.model.batch_norm == "sync" and c.trainer.accelerator != "cuda",
        "torch synchronizes BatchNorm on GPUs only. Set model.batch_norm to frozen or train.",
    ),
    Constraint(
        ("trainer.precision", "trainer.accelerator"),
        lambda c, _: c.trainer.precision == "16-mixed" and c.trainer.accelerator == "cpu",
        "CPUs have no fp16 arithmetic. Set trainer.precision to bf16-mixed or 32-true.",
    ),
    Constraint(
        ("trainer.devices", "trainer.accelerator"),
        lambda c, run: c.trainer.accelerator == "cuda" and c.trainer.devices > run.num_gpus,
        "this node has {run.num_gpus} visible GPUs. Lower trainer.devices or check "
        "CUDA_VISIBLE_DEVICES; under srun use --gpus-per-node, as --gpus-per-task and --gpu-bind "
        "hide the other GPUs.",
    ),
)

_BATCHES = (
    Constraint(
        (
            "trainer.batch_size",
            "trainer.devices",
            "trainer.num_nodes",
            "trainer.accumulate_grad_batches",
        ),
        lambda c, _: c.trainer.batch_size % c.num_micro_batches != 0,
        "it is not divisible by the {config.num_micro_batches} micro-batches of a step. Use a "
        "multiple of {config.num_micro_batches}.",
    ),
    Constraint(
        ("trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"),
        lambda c, run: run.num_images < c.num_micro_batches,
        "an epoch draws {run.num_images} training images, fewer than the "
        "{config.num_micro_batches} micro-batches of a step. Lower one of them.",
        DataError,
    ),
    _require_image_pairs("augment.mixup"),
    _require_image_pairs("augment.cutmix"),
    Constraint(
        ("model.batch_norm", "trainer.batch_size"),
        lambda _, run: run.micro_batch_size < 2 and run.trains_local_batch_norm,
        "each of the {config.num_micro_batches} micro-batches of a step of {run.batch_size} images "
        "has one image, and BatchNorm needs statistics of several. Use a larger batch, fewer "
        "micro-batches or model.batch_norm=frozen.",
    ),
    Constraint(
        ("model.grad_checkpointing", "model.batch_norm"),
        lambda c, run: (
            c.model.grad_checkpointing
            and c.model.batch_norm != "frozen"
            and run.facts.has_batch_norm
        ),
        "the second forward pass would update the BatchNorm statistics again. Set "
        "model.batch_norm=frozen.",
    ),
)

_WEIGHT_AVERAGING = (
    Constraint(
        ("optim.swa_fraction", "model.batch_norm", "trainer.devices"),
        lambda c, _: (
            c.optim.swa_fraction > 0 and c.world_size > 1 and c.model.batch_norm == "train"
        ),
        "each of the {config.world_size} processes has BatchNorm statistics of its own. Set "
        "model.batch_norm=frozen, or sync on GPUs, or optim.swa_fraction=0.",
    ),
    Constraint(
        ("optim.swa_fraction", "trainer.epochs"),
        lambda c, run: c.optim.swa_fraction > 0 and round(c.optim.swa_fraction * run.num_steps) < 2,
        "it covers fewer than 2 of the {run.num_steps} steps. Increase it, or set "
        "optim.swa_fraction=0.",
    ),
)

_SHARDING = (
    Constraint(
        ("trainer.strategy", "trainer.accelerator"),
        lambda c, _: _is_sharded(c) and c.trainer.accelerator != "cuda",
        "sharding needs GPUs. Set trainer.strategy=ddp.",
    ),
    Constraint(
        ("trainer.strategy", "unfreeze.name"),
        lambda c, run: _is_sharded(c) and len({phase.depth for phase in run.phases}) > 1,
        "the parameters are sharded once, at the start, and this schedule changes its depth. Set "
        "trainer.strategy=ddp, or a schedule with one depth such as unfreeze.name=all.",
    ),
    Constraint(
        ("trainer.strategy",),
        lambda c, _: c.trainer.strategy == "deepspeed",
        "its checkpoints are folders of shards, which can neither become a bundle nor be resumed "
        "with another number of processes. Set trainer.strategy=fsdp.",
    ),
    Constraint(
        ("trainer.strategy", "trainer.devices"),
        lambda c, _: _is_sharded(c) and c.world_size == 1,
        "there is one process, and sharding needs at least two. Add --devices 2 or more.",
    ),
    Constraint(
        ("trainer.strategy", "optim.swa_fraction"),
        lambda c, _: _is_sharded(c) and c.optim.swa_fraction > 0,
        "no process holds the whole network, whose weights would be averaged. Set "
        "optim.swa_fraction=0.",
    ),
    Constraint(
        ("trainer.strategy", "trainer.compile"),
        lambda c, _: _is_sharded(c) and c.trainer.compile,
        "compiling a sharded network is not supported. Leave one of them out.",
    ),
)

_PROBE = (
    _require_probe("probe.num_crops", 0),
    _require_probe("probe.depth", 1),
    _require_probe("probe.last_stage_epochs", 0),
    Constraint(
        ("imbalance.head_rebalancing", "probe.enabled"),
        lambda c, _: (
            c.probe.enabled == "off" and c.imbalance.head_rebalancing in ("crt", "tau_norm")
        ),
        "it extracts features of all images with the trained network, as a linear probe does. Use "
        "imbalance.strategy=post_hoc, which needs no images.",
    ),
    Constraint(
        ("probe.last_stage_epochs", "probe.depth"),
        lambda c, _: (
            c.probe.enabled == "on" and (c.probe.depth == 1) != (c.probe.last_stage_epochs == 0)
        ),
        "a depth of 2 or more needs epochs on cached activations, and a depth of 1 has none. Leave "
        "probe.last_stage_epochs out.",
    ),
    Constraint(
        ("probe.enabled", "model.backbone"),
        lambda c, run: c.probe.enabled == "on" and not run.facts.has_linear_head,
        "its classifier is not one linear layer. Leave probe.enabled out.",
    ),
    Constraint(
        ("probe.enabled", "trainer.strategy"),
        lambda c, _: c.probe.enabled == "on" and _is_sharded(c),
        "a linear probe needs the whole network in one process. Set probe.enabled=off.",
    ),
    Constraint(
        ("probe.depth", "model.backbone"),
        lambda c, run: c.probe.enabled == "on" and c.probe.depth >= max(2, run.facts.num_groups),
        "the network has {run.facts.num_groups} layer groups, of which at least one must stay "
        "frozen. Lower probe.depth, or use --unfreeze all.",
    ),
)

_PROBE_ONLY = (
    _forbid_for_probe_only("trainer.epochs", lambda c, _: c.trainer.epochs != 1),
    _forbid_for_probe_only("loss.name", lambda c, _: c.loss.name != select_probe_loss(c.loss.name)),
    _forbid_for_probe_only("loss.label_smoothing", lambda c, _: c.loss.label_smoothing > 0),
    _forbid_for_probe_only(
        "augment.rare_class_preset", lambda c, _: c.augment.rare_class_preset != "off"
    ),
    _forbid_for_probe_only("augment.mixup", lambda c, _: c.augment.mixup > 0),
    _forbid_for_probe_only("augment.cutmix", lambda c, _: c.augment.cutmix > 0),
    _forbid_for_probe_only("optim.swa_fraction", lambda c, _: c.optim.swa_fraction > 0),
    _forbid_for_probe_only(
        "data.train_image_size",
        lambda c, run: set(c.data.train_image_size) != {run.facts.image_size},
    ),
)

_IMAGES = (
    Constraint(
        ("augment.rare_class_preset", "augment.name"),
        _has_weaker_preset,
        f"the preset of rare classes must be stronger than the other one, in the order "
        f"{', '.join(PRESETS_BY_STRENGTH)}. Leave one of them out.",
    ),
    Constraint(
        ("augment.rare_class_preset", "augment.rare_class_fraction"),
        lambda c, run: c.augment.rare_class_preset != "off" and not run.rare_classes,
        "no class has fewer than {config.augment.rare_class_fraction:.0%} of the training images "
        "of the largest class. Leave augment.rare_class_preset out, or increase "
        "augment.rare_class_fraction.",
    ),
    Constraint(
        ("imbalance.head_rebalancing", "imbalance.sampler", "imbalance.class_weights", "loss.name"),
        lambda _, run: bool(run.untrained_classes),
        "class '{run.untrained_classes[0]}' has no weight in the last epoch, so probabilities "
        "cannot be adjusted for it. Change the sampler or the weights, or set "
        "imbalance.head_rebalancing=none.",
    ),
    Constraint(
        ("data.cache_shorter_side", "data.cache"),
        lambda c, _: c.data.cache == "off" and c.data.cache_shorter_side != "auto",
        "without a cache images are decoded at full size. Leave one of them out.",
    ),
)

CONSTRAINTS: tuple[Constraint, ...] = (
    *_HARDWARE,
    *_PROBE,
    *_PROBE_ONLY,
    *_BATCHES,
    *_WEIGHT_AVERAGING,  # needs the steps of an epoch, which valid batches make
    *_SHARDING,
    *_IMAGES,
)
"""All constraints, in the order in which they are checked."""
