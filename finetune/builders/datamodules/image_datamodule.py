"""Data module of a run, which reads the files themselves."""

import numpy as np
from numpy.typing import NDArray

from finetune.config.resolved import ResolvedConfig
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.samplers.sampling_weights import SamplingSchedule
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import EvalTransform, Transform
from finetune.training.datamodule import ImageDataModule, LoaderOptions
from finetune.types import PreprocessSpec


def build_datamodule(
    config: ResolvedConfig,
    data: TrainingData,
    train_transform: Transform,
    spec: PreprocessSpec,
    *,
    sampling_schedule: SamplingSchedule,
    batch_size: int,
    train_eval_rows: NDArray[np.int64] | None,
) -> ImageDataModule:
    """Return the data module of a run, which reads the files themselves.

    Args:
        config: Resolved config.
        data: Images of the run.
        train_transform: Transform of the training images.
        spec: Preprocessing of the network.
        sampling_schedule: Function from epoch to how often each training image is drawn in it.
        batch_size: Images of a step, over all processes and micro-batches.
        train_eval_rows: Training images that are measured as validation images are; None for none.
    """
    train, val, options = data.train, data.val, config.data.read_options
    train_eval = None
    if train_eval_rows is not None:
        paths = [train.paths[row] for row in train_eval_rows]
        source, targets = FileSource(paths, options=options), train.targets[train_eval_rows]
        train_eval = ImageDataset(source, targets, EvalTransform(spec))
    return ImageDataModule(
        ImageDataset(FileSource(train.paths, options=options), train.targets, train_transform),
        ImageDataset(FileSource(val.paths, options=options), val.targets, EvalTransform(spec)),
        train_eval_dataset=train_eval,
        sampling_schedule=sampling_schedule,
        loader_options=LoaderOptions(
            batch_size=batch_size,
            accumulate_grad_batches=config.trainer.accumulate_grad_batches,
            num_workers=config.data.num_workers,
            seed=config.seed,
        ),
    )
