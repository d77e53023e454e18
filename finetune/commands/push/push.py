"""Upload of a model to the Hugging Face hub, with its page; nothing but safetensors and ONNX."""

import glob
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.push.hub_access import (
    HubAccess,
    StoredRepository,
    look_up_repository,
    open_hub,
    translate_hub_errors,
)
from finetune.commands.push.pushed_folder import (
    PushedFolder,
    build_pushed_folder,
    list_files,
    order_formats,
)
from finetune.commands.push.pushed_record import find_stale_files
from finetune.commands.push.repository_name import check_license, check_repository, check_revision
from finetune.errors import HubError
from finetune.types import Reporter, StrPath
from finetune.units import format_bytes

_SOURCES = {"random": "random numbers", "file": "a file", "hub": "the hub"}


@dataclass(frozen=True, slots=True)
class PushResult:
    """Result of ``push``.

    Attributes:
        repository: Name, as user/name.
        url: Address of the model; None for a dry run.
        commit: Commit of the upload; None for a dry run.
        files: Size in bytes of each uploaded file by its path.
        is_new: Whether the repository was created; None for a dry run.
        license: Licence of the model as in its front matter; None if it is unknown.
        base_model: Repository of the backbone's weights; None if it is unknown.
        head: Front matter of the README, in YAML.
        removed: Files of earlier pushes that are no longer part of the model, which were removed,
            or, for a dry run, would be; None for a dry run that could not ask the hub.
    """

    repository: str
    url: str | None
    commit: str | None
    files: Mapping[str, int]
    is_new: bool | None
    license: str | None
    base_model: str | None
    head: str
    removed: tuple[str, ...] | None = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "repository": self.repository,
            "url": self.url,
            "commit": self.commit,
            "files": dict(self.files),
            "is_new": self.is_new,
            "license": self.license,
            "base_model": self.base_model,
            "head": self.head,
            "removed": None if self.removed is None else list(self.removed),
        }


def push(
    model: StrPath,
    repository: str,
    *,
    format: str | Sequence[str] = "timm",  # noqa: A002 as the option is named
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,  # noqa: A002 as the option is named
    images: StrPath | None = None,
    prior: str | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> PushResult:
    """Export a model and upload it to the Hugging Face hub, with a README of its numbers.

    The token is that of HF_TOKEN or of ``hf auth login``; HF_ENDPOINT names another hub. Rights and
    the repository are checked before the model is exported.

    Args:
        model: Run folder, bundle folder or checkpoint.
        repository: Repository as user/name; it is created if it does not exist.
        format: "timm", "huggingface" or "onnx", or several; ONNX beside another is in ``onnx/``.
        private: Whether a new repository is private.
        revision: Branch, which is created if it does not exist; None for the default one.
        license: Licence of the model, such as "mit"; None for that of the backbone's weights.
        images: Images for the parity check of the export; None takes those of the run.
        prior: Target class prior, as for ``export``.
        dry_run: Whether to upload nothing, and to need neither a token nor a network; with them,
            the files of an earlier push that would be removed are looked up.
        reporter: Receiver of progress and notes.

    Raises:
        ConfigError: An argument is invalid.
        HubError: There is no token, no network or no right, or the hub refuses.
        FinetuneError: The model cannot be exported.
    """
    reporter = reporter or Reporter()
    check_repository(repository)
    check_revision(revision)
    check_license(license)
    formats = order_formats([format] if isinstance(format, str) else format)
    access = None
    if not dry_run:
        access = open_hub(repository, is_private=private, revision=revision)
    with tempfile.TemporaryDirectory(prefix="finetune-push-") as temporary:
        folder = build_pushed_folder(
            Path(model),
            Path(temporary) / "model",
            repository=repository,
            formats=formats,
            own_license=license,
            images=None if images is None else Path(images),
            prior=prior,
            reporter=reporter,
        )
        _warn_of_licence(folder, license, reporter)
        if access is None:
            return _build_result(
                repository,
                folder,
                license,
                removed=_preview_removed(repository, revision, folder, reporter),
            )
        removed = _find_removed(access.stored, repository, folder, reporter)
        url, commit = _upload(
            access,
            folder,
            repository=repository,
            is_private=private,
            revision=revision,
            removed=removed,
            reporter=reporter,
        )
        return _build_result(
            repository,
            folder,
            license,
            url=url,
            commit=commit,
            is_new=access.stored is None,
            removed=removed,
        )


def _build_result(
    repository: str,
    folder: PushedFolder,
    own_license: str | None,
    *,
    url: str | None = None,
    commit: str | None = None,
    is_new: bool | None = None,
    removed: tuple[str, ...] | None = (),
) -> PushResult:
    return PushResult(
        repository,
        url,
        commit,
        dict(folder.files),
        is_new,
        own_license or folder.origin.license,
        folder.origin.base_model,
        head=folder.readme.split("---\n", 2)[1],
        removed=removed,
    )


def _find_removed(
    stored: StoredRepository | None, repository: str, folder: PushedFolder, reporter: Reporter
) -> tuple[str, ...]:
    """Return the files of earlier pushes to remove; warn of other files of models, which stay."""
    if stored is None:
        return ()
    stale = find_stale_files(stored.files, stored.recorded, tuple(folder.files))
    if stale.unrecorded:
        reporter.warn(
            f"{repository} has files of a model that are no part of this one, and they stay: "
            f"{', '.join(stale.unrecorded)}. No push has recorded them; if they are not needed, "
            f"remove them on the hub"
        )
    return stale.removed


def _preview_removed(
    repository: str, revision: str | None, folder: PushedFolder, reporter: Reporter
) -> tuple[str, ...] | None:
    """Return the files that a push would remove; None where the hub does not tell."""
    try:
        stored = look_up_repository(repository, revision=revision)
    except HubError as error:
        reporter.note(f"Which files of an earlier push this one would remove is not known: {error}")
        return None
    return _find_removed(stored, repository, folder, reporter)


def _warn_of_licence(folder: PushedFolder, own_license: str | None, reporter: Reporter) -> None:
    origin = folder.origin
    if origin.is_non_commercial:
        reporter.warn(f"{origin.describe_restriction()}; its README says so")
    elif origin.license is None and own_license is None:
        what = "no licence is known" if origin.kind == "random" else "their licence is unknown"
        reporter.warn(
            f"the backbone's weights came from {_SOURCES[origin.kind]}, and {what}: the README has "
            f"'license: other'. State that of the model with --license, as in --license mit"
        )


def _upload(
    access: HubAccess,
    folder: PushedFolder,
    *,
    repository: str,
    is_private: bool,
    revision: str | None,
    removed: Sequence[str],
    reporter: Reporter,
) -> tuple[str, str]:
    """Create the repository if need be, and upload the folder; return its address and commit."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    api, stored = access.api, access.stored
    size = format_bytes(sum(folder.files.values()))
    reporter.start(f"uploading {size}", 1)
    disable_progress_bars()
    try:
        with translate_hub_errors(repository, access.token):
            if stored is None:
                api.create_repo(repository, private=is_private, exist_ok=True)
            if revision not in (None, constants.DEFAULT_REVISION):
                api.create_branch(repository, branch=str(revision), exist_ok=True)
            assert list_files(folder.path) == dict(folder.files), "changed since it was checked"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                commit = api.upload_folder(
                    repo_id=repository,
                    folder_path=folder.path,
                    revision=revision,
                    commit_message="Push a model with finetune",
                    delete_patterns=[glob.escape(file) for file in removed] or None,
                )
    finally:
        enable_progress_bars()
        reporter.finish()
    for warning in caught:
        if "README" in str(warning.message):  # the answer of the hub on the head
            reporter.warn(" ".join(str(warning.message).split()))
    tree = "" if revision is None else f"/tree/{revision}"
    return f"{constants.ENDPOINT}/{repository}{tree}", str(commit.oid)
