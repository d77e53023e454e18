"""Statistics for ``--reject`` in the bundle of a run, from the images of the run."""

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import load_model
from finetune.bundle.rejection.rejection_statistics import save_rejection_statistics
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.training_data import TrainingData
from finetune.errors import DataError
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.feature_pass import has_features
from finetune.inference.rejection.measure_statistics import measure_rejection_statistics
from finetune.system.hardware import resolve_accelerator
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter


def record_rejection_statistics(
    run: RunFolder, config: Config, manifest: Manifest, *, batch_size: int, reporter: Reporter
) -> None:
    """Measure and write the statistics at the end of a run, unless the config turns it off.

    Runs without validation images have none. A failure is a warning.

    Args:
        run: Run folder with the bundle.
        config: Config of the run.
        manifest: Images of the run, with the duplicates that it knows.
        batch_size: Images per batch.
        reporter: Receiver of progress and of the warning.
    """
    if config.rejection.enabled == "off" or not len(TrainingData.from_manifest(manifest).val):
        return
    try:
        measure_run_statistics(run, config, manifest, batch_size=batch_size, reporter=reporter)
    except Exception as error:
        reason = (str(error).partition("\n")[0] or repr(error)).rstrip(".")
        reporter.warn(
            f"The statistics for predict --reject could not be measured: {reason}. The model is "
            f"not affected; rejection.enabled=off leaves them out."
        )


def measure_run_statistics(
    run: RunFolder, config: Config, manifest: Manifest, *, batch_size: int, reporter: Reporter
) -> None:
    """Measure the statistics of the model of a run, and write them into its bundle.

    Duplicates of training images are left out of the validation images: their distances would be
    those of images that the network knows. A network without features has no statistics.

    Args:
        run: Run folder with the bundle.
        config: Config of the run.
        manifest: Images of the run.
        batch_size: Images per batch.
        reporter: Receiver of progress.

    Raises:
        DataError: There are no validation images, or none that can be read.
        StorageError: The disk is full or fails.
    """
    bundle = load_model(run.bundle_dir)
    if bundle.members or not has_features(bundle):
        return
    data = TrainingData.from_manifest(manifest)
    validation = data.val
    if not len(validation):
        raise DataError("the run has no validation images, on which thresholds are chosen")
    if clean := find_rows_without_leaks(manifest, validation.paths):
        validation = validation.select(clean)
    predictor = Predictor(
        bundle,
        device=resolve_accelerator(config.trainer.accelerator),
        batch_size=batch_size,
        num_workers=config.data.num_workers if isinstance(config.data.num_workers, int) else 0,
        options=config.data.read_options,
    )
    statistics = measure_rejection_statistics(
        bundle,
        predictor,
        train=data.train,
        validation=validation,
        seed=config.split_seed,
        reporter=reporter,
    )
    save_rejection_statistics(statistics, run.bundle_dir)
