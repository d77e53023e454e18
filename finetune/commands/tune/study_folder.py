"""Folder of a study: its files, and the settings that all of its processes share."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from finetune.commands.stored_run import check_stored_code
from finetune.commands.tune.hold_out import HoldOut
from finetune.commands.tune.space.search_space import SearchDimension, read_space_file
from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.config.load import (
    build_config,
    diff_from_defaults,
    dump_config,
    read_config_file,
)
from finetune.config.schema import Config
from finetune.data.manifest import Manifest, format_manifest, read_manifest
from finetune.errors import RunFolderError
from finetune.lookup import suggest_path
from finetune.system.files import write_folder_atomically, write_text
from finetune.system.given_paths import exists
from finetune.types import Reporter
from finetune.units import format_count

_VERSION = 1


@dataclass(frozen=True, slots=True)
class StudySettings:
    """Settings of a study that its processes share.

    Attributes:
        num_trials: Number of trials that was asked for last.
        seed: Seed of the draws.
        monitor: Validation metric by which trials are judged.
        judged_by: Metric of the run, ``trainer.monitor``.
        hold_out: Origin of the images on which the gain is reported.
        test_fraction: Fraction of the images that was drawn for it; 0 for other origins.
        data: Data path as given.
        overrides: Settings that the user gave, by dotted key.
        defaults: Value of each searched key with the default settings; None if it is measured.
    """

    num_trials: int
    seed: int
    monitor: str
    judged_by: str
    hold_out: HoldOut
    test_fraction: float
    data: str
    overrides: Mapping[str, Any]
    defaults: Mapping[str, Any]

    @property
    def maximize(self) -> bool:
        """Whether the metric is better when it is higher."""
        return not self.monitor.endswith("loss")


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Paths of the files in the folder of a study.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def settings_path(self) -> Path:
        """Settings of the study."""
        return self.path / "study.json"

    @property
    def base_config_path(self) -> Path:
        """Config of the default trial, which the others change."""
        return self.path / "base.yaml"

    @property
    def space_path(self) -> Path:
        """Search space, as a file for ``--space``."""
        return self.path / "space.yaml"

    @property
    def manifest_path(self) -> Path:
        """Images with their splits, the hold-out among them as test split."""
        return self.path / "manifest.csv"

    @property
    def database_path(self) -> Path:
        """Optuna's database."""
        return self.path / "study.db"

    @property
    def trials_csv_path(self) -> Path:
        """Table of the trials."""
        return self.path / "trials.csv"

    @property
    def result_path(self) -> Path:
        """Result as JSON."""
        return self.path / "tune.json"

    @property
    def best_config_path(self) -> Path:
        """Config of the best trial, for ``fit --config``."""
        return self.path / "best.yaml"

    @property
    def resume_command(self) -> str:
        """Command line that continues the study, quoted for a shell."""
        return shlex.join(["finetune", "tune", "--resume", str(self.path)])

    @contextmanager
    def suggest_resume(self, reporter: Reporter) -> Iterator[None]:
        """Show the command that continues the study if the block is interrupted."""
        try:
            yield
        except KeyboardInterrupt:
            reporter.finish()
            reporter.note(f"Stopped. Continue with: {self.resume_command}")
            raise

    def get_trial_dir(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.path / "trials" / f"{number:03}"

    def get_worker_log_path(self, number: int) -> Path:
        """Return the file with what a worker process prints."""
        return self.path / f"worker-{number}.log"

    def read_settings(self) -> StudySettings:
        """Return the settings of the study.

        Raises:
            RunFolderError: The file is damaged, or from a newer release.
        """
        try:
            tree = json.loads(self.settings_path.read_text(encoding="utf-8"))
            version = tree.pop("version")
            if version == _VERSION:
                return StudySettings(**tree)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFolderError(
                f"{self.settings_path} is damaged: {error}. Start a new study without --resume."
            ) from error
        raise RunFolderError(
            f"{self.settings_path} has the format {version}, and this release reads {_VERSION}. "
            f"Use the release that wrote it."
        )

    def write_settings(self, settings: StudySettings) -> None:
        """Write the settings of the study."""
        tree = {"version": _VERSION, **asdict(settings)}
        write_text(self.settings_path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

    def read_base_config(self) -> Config:
        """Return the config of the default trial."""
        path = self.base_config_path
        tree = read_config_file(path)
        check_stored_code(self.path, tree)
        config = build_config(tree, source_name=str(path))
        # the file has every key: those with their defaults count as not set, as at the beginning
        return build_config({}, assignments=diff_from_defaults(config))

    def read_manifest(self, root: Path) -> Manifest:
        """Return the images with their splits; their paths are relative to ``root``."""
        return read_manifest(self.manifest_path, root=root)

    def open_queue(self, settings: StudySettings) -> TrialQueue:
        """Return the trials of the study."""
        return TrialQueue(
            self.path,
            self.read_space(),
            maximize=settings.maximize,
            seed=settings.seed,
        )

    def keep_started_trials(self, settings: StudySettings, reporter: Reporter) -> StudySettings:
        """Return the settings with at least as many trials as have begun; note if that is more."""
        with closing(self.open_queue(settings)) as queue:
            num_started = queue.count_started()
        if settings.num_trials >= num_started:
            return settings
        reporter.note(
            f"--trials {settings.num_trials} begins none: the study has "
            f"{format_count(num_started, 'trial')} already. Give a larger number to go on."
        )
        return replace(settings, num_trials=num_started)

    def read_space(self) -> list[SearchDimension]:
        """Return the dimensions of the search."""
        dimensions = read_space_file(self.space_path)
        for dimension in dimensions:
            for choice in dimension.choices:
                check_stored_code(self.path, {dimension.key: choice})
        return dimensions


def create_study(
    path: Path,
    settings: StudySettings,
    *,
    config: Config,
    manifest: Manifest,
    space: Sequence[SearchDimension],
) -> StudyFolder:
    """Create the folder of a study, with the default settings as its first trial.

    Raises:
        StorageError: The disk is full or not writable.
    """
    with write_folder_atomically(path) as temporary:
        draft = StudyFolder(temporary)
        write_text(draft.base_config_path, dump_config(config))
        write_text(draft.manifest_path, format_manifest(manifest))
        tree = {dimension.key: dimension.to_json() for dimension in space}
        write_text(draft.space_path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        queue = TrialQueue(temporary, space, maximize=settings.maximize, seed=settings.seed)
        queue.enqueue_default(settings.defaults)
        queue.close()
        draft.write_settings(settings)
    return StudyFolder(path)


def open_study(path: Path) -> StudyFolder:
    """Return the folder of a study.

    Raises:
        RunFolderError: The path is not such a folder.
    """
    study = StudyFolder(path.expanduser())
    is_here = exists(study.path)
    if is_here and study.settings_path.is_file() and study.database_path.is_file():
        return study
    hint = "" if is_here else suggest_path(path)
    problem = "does not exist" if not is_here else "is not the folder of a study"
    raise RunFolderError(
        f"{path} {problem}.{hint} Give a folder that finetune tune has "
        f"created, for example runs/20260101-120000-tune-resnet50-photos."
    )
