"""Runs of the members of an ensemble: which images each was trained on, and which all share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.audit.leakage import find_rows_without_leaks
from finetune.commands.image_matching import Match, match_images, report_training_images
from finetune.commands.run_images import RunImages, read_run_images, read_run_of_part
from finetune.commands.stored_run import check_files_exist
from finetune.errors import ConfigError
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count


@dataclass(frozen=True, slots=True)
class MemberRun:
    """Member of an ensemble, with the run that it is from.

    Attributes:
        path: Model path as given.
        run: Images of the run; None if the model does not lie in a run folder.
    """

    path: Path
    run: RunImages | None


@dataclass(frozen=True, slots=True)
class SharedImages:
    """Validation images that several runs share.

    Attributes:
        root: Folder that the paths of the samples are relative to.
        samples: Images, which no run was trained on and none has as test images.
    """

    root: Path
    samples: Sequence[Sample]


def read_member_runs(paths: Sequence[Path]) -> list[MemberRun]:
    """Return the runs of models: of a run folder, or of the one that a model lies in.

    Raises:
        DataError: A manifest is damaged.
        RunFolderError: A run folder is damaged.
    """
    return [MemberRun(path, read_run_images(path) or read_run_of_part(path)) for path in paths]


def count_training_images(
    root: Path,
    samples: Sequence[Sample],
    members: Sequence[MemberRun],
    *,
    known_matches: Sequence[Match] = (),
    known_path: Path | None = None,
    held_out_by: str = "",
    reporter: Reporter,
) -> int | None:
    """Return the number of images that any member was trained on, and warn of them.

    Args:
        root: Folder that the paths of the samples are relative to.
        samples: Evaluated images.
        members: Members of the ensemble, or the one model.
        known_matches: Relation of the images to the run of one member, if it is known.
        known_path: Path of that member.
        held_out_by: Name of the run whose held-out images these are; "" for other images.
        reporter: Receives warnings.

    Returns:
        The number; None if no member lies in a run folder.

    Raises:
        ConfigError: A run was trained on held-out images of another one.
    """
    unknown = [str(member.path) for member in members if member.run is None]
    if len(unknown) < len(members) and unknown:
        reporter.warn(
            f"whether the evaluated images are training images of {', '.join(unknown)} is unknown: "
            f"it does not lie in a run folder"
        )
    trained: set[int] = set()
    for member in members:
        if member.run is None:
            continue
        matches = (
            known_matches
            if known_matches and member.path == known_path
            else match_images(root, samples, member.run.manifest, reporter=reporter)
        )
        rows = [row for row, match in enumerate(matches) if match.is_training_image]
        if held_out_by and rows and str(member.path) != held_out_by:
            raise ConfigError(
                _describe_leak(samples, rows, owner=held_out_by, other=str(member.path))
                + " Metrics of an ensemble need images that no member was trained on: train all "
                "runs with the same split, or evaluate on other images, which you name last."
            )
        name = "the model" if len(members) == 1 else str(member.path)
        report_training_images(matches, reporter, model=name)
        trained.update(rows)
    return None if len(unknown) == len(members) else len(trained)


def find_shared_validation_images(
    members: Sequence[MemberRun], *, option: str, reporter: Reporter
) -> SharedImages:
    """Return the validation images that all runs share; none has a duplicate in training.

    Args:
        members: Members of an ensemble.
        option: Option that needs them, for messages.
        reporter: Receives progress.

    Raises:
        ConfigError: A member is not in a run folder, validation images of a run are training images
            of another one, or there are none that all share.
        DataError: Images of the first run are missing.
    """
    runs: list[RunImages] = []
    for member in members:
        if member.run is None:
            raise ConfigError(
                f"{option} needs the validation images of every run, but {member.path} does not "
                f"lie in a run folder. Give the run folder instead, or leave out {option}."
            )
        runs.append(member.run)
    first, manifest = members[0], runs[0].manifest
    samples = manifest.get_samples(Split.VAL)
    check_files_exist(manifest, samples)
    clean = find_rows_without_leaks(manifest, manifest.resolve_paths(samples))
    if clean is not None:
        samples = [samples[row] for row in clean]
    shared = set(range(len(samples)))
    for member, run in zip(members[1:], runs[1:], strict=True):
        matches = match_images(manifest.root, samples, run.manifest, reporter=reporter)
        leaked = [row for row, match in enumerate(matches) if match.is_training_image]
        if leaked:
            raise ConfigError(
                _describe_leak(
                    samples, leaked, owner=str(first.path), other=str(member.path), split="val"
                )
                + f" {option} needs validation images that no run was trained on: train all runs "
                f"with the same split, or leave out {option}."
            )
        shared &= {
            row
            for row, match in enumerate(matches)
            if match.original is not None and match.original.split is Split.VAL
        }
    if not shared:
        raise ConfigError(
            f"{option}: the runs share no validation image. Train them with the same split of the "
            f"same images, or leave out {option}."
        )
    return SharedImages(manifest.root, [samples[row] for row in sorted(shared)])


def _describe_leak(
    samples: Sequence[Sample], rows: Sequence[int], *, owner: str, other: str, split: str = ""
) -> str:
    """Return the sentence on held-out images of a run that another one was trained on."""
    images = format_count(len(samples), f"{split} image" if split else "held-out image")
    return (
        f"{len(rows):,} of {images} of {owner} {'is a' if len(rows) == 1 else 'are'} training "
        f"{'image' if len(rows) == 1 else 'images'} of {other} (first {samples[rows[0]].path})."
    )
