"""Reduction of the micro-batches of a run that is out of memory."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from finetune.builders import Training, get_micro_batch_size
from finetune.commands.fit.prepare import describe_batch_norm_effect
from finetune.commands.fit.resume import rebuild_training
from finetune.commands.stored_run import read_stored_config
from finetune.config.load import dump_config, replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.errors import OutOfMemoryError
from finetune.system.files import write_text
from finetune.system.hardware import release_memory
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

T = TypeVar("T")


def retry_with_smaller_micro_batches(
    run: RunFolder, training: Training, attempt: Callable[[Training], T], *, reporter: Reporter
) -> T:
    """Return the result of a function, called again with smaller micro-batches while out of memory.

    Args:
        run: Run folder, whose config keeps the number of micro-batches.
        training: Objects of the run.
        attempt: Function of the training that may run out of memory.
        reporter: Receiver of the message that tells the new micro-batches.
    """
    while True:
        try:
            return attempt(training)
        except OutOfMemoryError as error:
            reduced = reduce_micro_batch(training, error)
        # outside of the handler: there the error would keep the tensors of the failed step alive
        release_memory()
        accumulate = reduced.trainer.accumulate_grad_batches
        reporter.note(
            f"Out of memory: the batch of {training.batch_size} is now split into "
            f"{accumulate} micro-batches with accumulated gradients; "
            f"what was interrupted starts again.{describe_batch_norm_effect(training)}"
        )
        # the stored config has the settings that were measured
        config = replace_values(
            read_stored_config(run), {"trainer.accumulate_grad_batches": accumulate}
        )
        write_text(run.config_path, dump_config(config))
        training = rebuild_training(run, config)


def reduce_micro_batch(training: Training, error: OutOfMemoryError) -> ResolvedConfig:
    """Return the config of a run with half as many images per micro-batch, or fewer.

    Raises:
        OutOfMemoryError: The micro-batch cannot get smaller, or other processes would have to use
            the new config, too.
    """
    config = training.config
    accumulate = config.trainer.accumulate_grad_batches
    micro_batch_size = get_micro_batch_size(training)
    largest_factor = micro_batch_size // training.min_micro_batch_size
    factors = (n for n in range(2, largest_factor + 1) if micro_batch_size % n == 0)
    factor = next(factors, None)
    if factor is None:
        images = "1 image does" if micro_batch_size == 1 else f"{micro_batch_size} images do"
        raise OutOfMemoryError(
            f"{error} A micro-batch of {images} not fit. Use a smaller --image-size or --backbone, "
            f"or model.grad_checkpointing=true."
        )
    if config.world_size > 1:
        run = RunFolder(Path(config.output or "RUN"))
        raise OutOfMemoryError(
            f"{error} Resume with smaller micro-batches: {run.resume_command} "
            f"trainer.accumulate_grad_batches={accumulate * factor}"
        )
    return replace_values(config, {"trainer.accumulate_grad_batches": accumulate * factor})
