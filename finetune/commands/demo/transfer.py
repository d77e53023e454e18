"""Transfer experiment: a backbone trained on some classes is fine-tuned on few images of others.

The question of the tutorials on transfer learning: what do features of one task give on another, by
number of images and by how much of the network is trained? Every cell of the table is a run of
``fit``, whose folder stays.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.commands.demo.class_ranges import parse_transfer
from finetune.commands.demo.transfer_figure import draw_transfer_figure
from finetune.commands.demo.transfer_images import choose_sizes, select_images, split_test
from finetune.commands.demo.transfer_result import TransferResult, TransferRow, TransferSpec
from finetune.commands.distinct_messages import DistinctMessageReporter
from finetune.commands.fit.fit import fit
from finetune.commands.fit.single_run import FitResult
from finetune.commands.prepare_data import build_table_options
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.data.scan import scan
from finetune.errors import ConfigError, RunFolderError
from finetune.models.backbone import check_backbone_name
from finetune.system import run_folder
from finetune.system.files import write_text
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count, format_csv, format_duration, format_percent

METHODS: Mapping[str, Mapping[str, Any]] = {
    "from scratch": {},
    "frozen features": {"unfreeze": {"name": "linear_probe"}},
    "last group": {"unfreeze": {"name": "milestones", "params": {"depths": {0: 2}}}},
    "all groups": {"unfreeze": {"name": "all"}},
}
"""Methods of the table to their config: the first has random weights, the others the source's."""

SHARED_AUGMENTATION: Mapping[str, Any] = {
    "name": "light", "hflip": "off", "vflip": "off", "min_crop_scale": 0.8,
}  # fmt: skip
"""Augmentation of all runs: methods differ in nothing else, and mirrored digits are no digits."""

_EPOCH_KEYS = (
    "optim.", "lr_schedule.", "loss.params", "model.drop_rate", "trainer.epochs",
    "trainer.early_stopping", "trainer.gradient_clip",
)  # fmt: skip
"""Keys of ``TransferSpec.settings`` that frozen features cannot use: their head has no epochs."""

_OWN_KEYS = (
    "model.weights", "model.backbone", "unfreeze.", "data.path", "data.task", "data.label_columns",
    "data.test_fraction", "cross_validation.", "output", "resume",
)  # fmt: skip
"""Keys that the experiment sets, or that it cannot use."""

_TABLE_KEYS = (
    "data.splits", "data.group_by", "data.image_column", "data.label_column", "data.group_column",
)  # fmt: skip
"""Keys that find the images; those of the runs are listed in CSVs."""

_STATE_FILE = "transfer.json"


def run_transfer(
    spec: TransferSpec, output: Path, *, reporter: Reporter | None = None
) -> TransferResult:
    """Train a backbone on the source classes and transfer it to the target classes.

    A stopped experiment continues in the same folder: finished runs are read and a stopped run is
    resumed.

    Args:
        spec: Images, classes and settings.
        output: Folder of the experiment, new or that of the same experiment.
        reporter: Receiver of one note per run, and of warnings.

    Raises:
        FinetuneError: The classes or images do not suit, or a run fails.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    _check_settings(spec)
    check_backbone_name(spec.backbone)
    config = build_config({}, assignments=spec.settings)
    scanned = scan(
        spec.data,
        splits=config.data.split_setting,
        tables=build_table_options(config),
        reporter=reporter,
    )
    classes = parse_transfer(spec.transfer, sorted({sample.label for sample in scanned.samples}))
    pool, test = split_test(scanned.root, scanned.samples, classes, spec.seed)
    _open_folder(output, spec)
    reporter.note(
        f"{format_count(len(pool), 'training image')} and {format_count(len(test), 'test image')} "
        f"of {len(classes.source) + len(classes.target)} classes"
    )
    runs = _Runs(spec, output, pool, test, classes.target, reporter)
    source = runs.fit_source(classes.source)
    rows = runs.fit_target(classes.target, weights=str(source.run_dir / "bundle"))
    result = TransferResult(
        folder=output,
        classes=classes,
        rows=rows,
        num_test_images=sum(sample.label in classes.target for sample in test),
        source_accuracy=float(source.metrics["test"]["accuracy"] or 0.0),
        seconds=time.monotonic() - start,
    )
    write_text(output / "transfer.csv", result.format_table())
    write_text(output / "transfer.svg", draw_transfer_figure(result.to_json()))
    return result


class _Runs:
    """Runs of an experiment, each on a CSV of its images."""

    def __init__(
        self,
        spec: TransferSpec,
        folder: Path,
        pool: Sequence[Sample],
        test: Sequence[Sample],
        target: Sequence[str],
        reporter: Reporter,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._pool = pool
        self._test = test
        self._reporter = reporter
        self._quiet = DistinctMessageReporter(reporter, warnings_only=True)
        self._sizes = choose_sizes(spec.images_per_class, pool, target)
        self._done = 0

    @property
    def _total(self) -> int:
        return 1 + len(self._sizes) * len(METHODS)

    def fit_source(self, classes: Sequence[str]) -> FitResult:
        """Train the backbone from scratch on all images of the source classes."""
        data = self._write_csv("source", classes, None)
        return self._fit(
            data, "source", "source classes, from scratch", weights="random", method="from scratch"
        )

    def fit_target(self, classes: Sequence[str], *, weights: str) -> list[TransferRow]:
        """Run every method on every number of images of the target classes."""
        rows = []
        for size in self._sizes:
            name = "all" if size is None else str(size)
            data = self._write_csv(f"target-{name}", classes, size)
            chosen = select_images(self._pool, classes, size, self._spec.seed)
            largest = max(sum(s.label == label for s in chosen) for label in classes)
            for method in METHODS:
                result = self._fit(
                    data,
                    f"target-{name}-{method.replace(' ', '-')}",
                    f"{name} images per class, {method}",
                    weights="random" if method == "from scratch" else weights,
                    method=method,
                )
                evaluation = result.evaluations["test"]
                low, high = evaluation["accuracy_interval"]
                rows.append(
                    TransferRow(
                        method=method,
                        images_per_class=largest,
                        num_images=len(chosen),
                        metrics=dict(result.metrics["test"]),
                        interval=(low, high),
                        seconds=round(result.seconds, 1),
                        run_dir=str(result.run_dir),
                    )
                )
        return rows

    def _write_csv(self, name: str, classes: Sequence[str], size: int | None) -> Path:
        """Write the images of some classes, at most ``size`` of each for training."""
        chosen = select_images(self._pool, classes, size, self._spec.seed)
        parts = [(sample, Split.TRAIN) for sample in chosen]
        parts += [(sample, Split.TEST) for sample in self._test if sample.label in classes]
        rows = [(sample.path, sample.label, part.value, sample.group) for sample, part in parts]
        file = self._folder / f"{name}.csv"
        write_text(file, format_csv(("path", "label", "split", "group"), rows))
        return file

    def _fit(self, data: Path, name: str, title: str, *, weights: str, method: str) -> FitResult:
        """Train or resume a run and note its test accuracy."""
        config = _build_run_config(
            self._spec, method, weights=weights, data=data, output=self._folder / name
        )
        result = fit(config, reporter=self._quiet)
        self._done += 1
        accuracy = format_percent(float(result.metrics["test"]["accuracy"] or 0.0))
        self._reporter.note(
            f"[{self._done}/{self._total}] {title}: test accuracy {accuracy} "
            f"({format_duration(result.seconds)})"
        )
        return result


def _check_settings(spec: TransferSpec) -> None:
    """Check the settings of all methods before the first run.

    Raises:
        ConfigError: A setting is one that the experiment makes itself, or does not suit a method.
    """
    for key in spec.settings:
        if key.startswith(_OWN_KEYS):
            raise ConfigError(
                f"{key} cannot be set in a transfer experiment, which sets it for each run. Leave "
                f"it out."
            )
    for method in METHODS:
        _build_run_config(spec, method, weights="random", data=spec.data, output=Path())


def _build_run_config(
    spec: TransferSpec, method: str, *, weights: str, data: Path, output: Path
) -> Config:
    """Return the config of a run."""
    settings = {
        key: value
        for key, value in spec.settings.items()
        if not key.startswith(_TABLE_KEYS)
        and (method != "frozen features" or not key.startswith(_EPOCH_KEYS))
    }
    tree = {
        "model": {"backbone": spec.backbone, "weights": weights},
        "augment": SHARED_AUGMENTATION,
        **METHODS[method],
    }
    paths = {"data.path": str(data), "resume": "auto", "output": str(output)}
    return build_config(tree, assignments={**settings, **paths})


def _open_folder(folder: Path, spec: TransferSpec) -> None:
    """Create the folder, or check that it is that of the same experiment.

    Raises:
        RunFolderError: The folder holds something else.
        StorageError: The folder cannot be written.
    """
    state = folder / _STATE_FILE
    if not state.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder} is not empty and holds no transfer experiment. Choose another --output."
            )
        run_folder.check_unused(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(state, json.dumps(spec.to_json(), indent=2, ensure_ascii=False) + "\n")
        return
    try:
        stored = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{state} is damaged: {error}. Choose another --output.") from error
    current = spec.to_json()
    if stored != current:
        names = sorted(key for key in current if stored.get(key) != current[key])
        raise RunFolderError(
            f"{folder} holds an experiment with other settings ({', '.join(names)}). Choose "
            f"another --output, or repeat its command to continue it."
        )
