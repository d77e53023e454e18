"""Constraints of hardware, batches, averaged weights and sharding."""

from finetune.builders.constraints.constraint import Constraint, is_sharded
from finetune.config.auto import get_config_value
from finetune.errors import DataError


def _require_image_pairs(key: str) -> Constraint:
    """Return the constraint that mixing needs two images in each micro-batch."""
    return Constraint(
        (key, "trainer.batch_size"),
        lambda c, run: run.micro_batch_size < 2 and bool(get_config_value(c, key)),
        "each of the {config.num_micro_batches} micro-batches of a step of {run.batch_size} images "
        "has one image, and mixing needs two. Use a larger batch or fewer micro-batches.",
    )


HARDWARE = (
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

BATCHES = (
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

WEIGHT_AVERAGING = (
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

SHARDING = (
    Constraint(
        ("trainer.strategy", "trainer.accelerator"),
        lambda c, _: is_sharded(c) and c.trainer.accelerator != "cuda",
        "sharding needs GPUs. Set trainer.strategy=ddp.",
    ),
    Constraint(
        ("trainer.strategy", "unfreeze.name"),
        lambda c, run: is_sharded(c) and len({phase.depth for phase in run.phases}) > 1,
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
        lambda c, _: is_sharded(c) and c.world_size == 1,
        "there is one process, and sharding needs at least two. Add --devices 2 or more.",
    ),
    Constraint(
        ("trainer.strategy", "optim.swa_fraction"),
        lambda c, _: is_sharded(c) and c.optim.swa_fraction > 0,
        "no process holds the whole network, whose weights would be averaged. Set "
        "optim.swa_fraction=0.",
    ),
    Constraint(
        ("trainer.strategy", "trainer.compile"),
        lambda c, _: is_sharded(c) and c.trainer.compile,
        "compiling a sharded network is not supported. Leave one of them out.",
    ),
)
