"""Names of repositories, revisions and licences, checked before anything else is done."""

import re

from finetune.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9_-])?")


def check_repository(repository: str) -> None:
    """Check the name of a repository.

    Raises:
        ConfigError: It is not user/name; the message says what is wrong.
    """
    reason = _explain_repository(repository)
    if reason is not None:
        raise ConfigError(
            f"'{repository}' is no repository of the hub: {reason}. Give user/name or "
            f"organisation/name."
        )


def _explain_repository(repository: str) -> str | None:
    """Return what is wrong with the name of a repository; None for a valid one."""
    if "://" in repository:
        return "it is an address"
    if repository.count("/") != 1:
        return "it has no user" if "/" not in repository else "it has more than one '/'"
    if len(repository) > 96:
        return f"it has {len(repository)} characters, and at most 96 are allowed"
    for part in repository.split("/"):
        if not _NAME.fullmatch(part):
            return (
                f"'{part}' has other characters than letters, digits, '-', '_' and '.', or begins "
                f"or ends with one of these"
            )
    if "--" in repository or ".." in repository:
        return "it contains '--' or '..'"
    return "it ends with '.git'" if repository.endswith(".git") else None


def check_license(name: str | None) -> None:
    """Check the name of a licence.

    Raises:
        ConfigError: It cannot be one.
    """
    if name is not None and not _LICENSE.fullmatch(name):
        raise ConfigError(
            f"--license '{name}' is no name of a licence. Give one as the hub writes it, such as "
            f"apache-2.0, mit or cc-by-4.0."
        )


def check_revision(revision: str | None) -> None:
    """Check the name of a branch.

    Raises:
        ConfigError: It cannot be one.
    """
    if revision is None:
        return
    is_valid = _REVISION.fullmatch(revision) and ".." not in revision and "//" not in revision
    if not is_valid or revision.endswith(".lock"):
        raise ConfigError(
            f"--revision '{revision}' cannot be a branch. Use letters, digits, '-', '_', '.' and "
            f"'/'."
        )
