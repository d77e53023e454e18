"""Paths of the files in a run folder."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from finetune.types import Split


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of the files in a run folder.

    Attributes:
        path: Path of the run folder.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """Resolved config."""
        return self.path / "config.yaml"

    @property
    def measured_path(self) -> Path:
        """Settings that the run has measured, with reasons."""
        return self.path / "measured.json"

    @property
    def stages_path(self) -> Path:
        """Results of heads on earlier stages of the backbone."""
        return self.path / "stages.json"

    @property
    def manifest_path(self) -> Path:
        """Manifest: label and split of each image."""
        return self.path / "manifest.csv"

    @property
    def rejected_path(self) -> Path:
        """Rejected files with reasons."""
        return self.path / "rejected.csv"

    @property
    def audit_json_path(self) -> Path:
        """Audit of the dataset before the first epoch, as JSON."""
        return self.path / "audit.json"

    @property
    def audit_csv_path(self) -> Path:
        """Audit of the dataset with one row per finding."""
        return self.path / "audit.csv"

    @property
    def metrics_path(self) -> Path:
        """Metrics with one row per epoch."""
        return self.path / "metrics.csv"

    @property
    def diagnosis_path(self) -> Path:
        """Findings on the training, the data and the network."""
        return self.path / "diagnosis.json"

    @property
    def network_path(self) -> Path:
        """Statistics of the network's layers before and after training."""
        return self.path / "network.json"

    @property
    def report_path(self) -> Path:
        """Page with everything that is known of the run."""
        return self.path / "report.html"

    @property
    def sessions_path(self) -> Path:
        """Hardware, versions and times of each process that trained the run."""
        return self.path / "sessions.json"

    def get_predictions_path(self, split: Split) -> Path:
        """Return the file of the final model's probabilities of a split, in manifest order."""
        return self.path / f"{split.value}_predictions.npz"

    @property
    def console_log_path(self) -> Path:
        """What the run printed after its console was closed; absent if it never was."""
        return self.path / "console.log"

    @property
    def lr_find_csv_path(self) -> Path:
        """Points of a learning-rate range test: rate, loss and smoothed loss."""
        return self.path / "lr_find.csv"

    @property
    def lr_find_svg_path(self) -> Path:
        """Curve of a learning-rate range test."""
        return self.path / "lr_find.svg"

    @property
    def best_checkpoint_path(self) -> Path:
        """Checkpoint of the best epoch by the monitored metric."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def start_checkpoint_path(self) -> Path:
        """Checkpoint of the network with the probe's head, as the first epoch starts from it."""
        return self.path / "checkpoints" / "start.ckpt"

    @property
    def last_checkpoint_path(self) -> Path:
        """Most recent checkpoint, written at the end or in the middle of an epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def probe_predictions_path(self) -> Path:
        """Out-of-fold logits of the training images by the linear probe."""
        return self.path / "checkpoints" / "probe_predictions.npz"

    @property
    def held_out_path(self) -> Path:
        """Class probabilities of the validation images of a fold of a cross-validation."""
        return self.path / "checkpoints" / "held_out.npz"

    @property
    def bundle_dir(self) -> Path:
        """Bundle of the finished model."""
        return self.path / "bundle"

    @property
    def done_marker_path(self) -> Path:
        """Marker with the number of epochs of a finished run; absent until then."""
        return self.path / ".done"

    @property
    def folds_csv_path(self) -> Path:
        """Fold of each image of a cross-validation."""
        return self.path / "folds.csv"

    @property
    def cross_validation_path(self) -> Path:
        """Metrics of a cross-validation; absent until all folds are complete."""
        return self.path / "cross_validation.json"

    @property
    def out_of_fold_path(self) -> Path:
        """Predictions of each image by the fold that holds it out."""
        return self.path / "out_of_fold.csv"

    @property
    def cross_validation_run(self) -> "RunFolder":
        """Run of the cross-validation that this run is a part of; else this run."""
        folder = self.path.parent.parent if self.path.parent.name == "folds" else self.path.parent
        is_part = self.path.parent.name == "folds" or self.path.name == "refit"
        outer = RunFolder(folder)
        return outer if is_part and outer.folds_csv_path.is_file() else self

    @property
    def resume_command(self) -> str:
        """Command line that resumes the run, quoted for a shell.

        A part of a cross-validation is resumed with the others.
        """
        return shlex.join(["finetune", "fit", "--resume", str(self.cross_validation_run.path)])

    @property
    def wandb_id_path(self) -> Path:
        """Id of the W&B run."""
        return self.path / "wandb_id.txt"

    @property
    def wandb_epochs_path(self) -> Path:
        """Epochs that W&B has, and its first free step; written when it last finished cleanly."""
        return self.path / ".wandb_epochs"

    @property
    def tensorboard_dir(self) -> Path:
        """Event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def mlflow_id_path(self) -> Path:
        """Id of the MLflow run."""
        return self.path / "mlflow_id.txt"


def find_whole_folder(folder: Path) -> Path:
    """Return the folder of the run, study or cross-validation that a folder is a part of.

    That is the run of a bundle or of checkpoints, the study of a trial, and the cross-validation of
    a fold; else the folder itself.
    """
    folder = folder.absolute()
    if folder.name in ("bundle", "checkpoints") and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    study = folder.parent.parent
    if folder.parent.name == "trials" and (study / "study.json").is_file():
        return study
    return RunFolder(folder).cross_validation_run.path
