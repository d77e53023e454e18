"""Access to the hub: token, rights and the repository as it is, before a model is prepared."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from finetune.commands.push.pushed_record import RECORD_FILE, read_record
from finetune.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_OWN_TAG = "finetune-vision"
_MODEL_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")
_CARD = "finetune.json"
_TIMEOUT = 30.0
"""Seconds that the hub may take for an answer."""


@dataclass(frozen=True, slots=True)
class StoredRepository:
    """Repository that exists on the hub.

    Attributes:
        is_private: Whether others cannot see it.
        files: Paths of its files in the branch, or of ``main`` where the branch does not exist.
        recorded: Paths that the last push has recorded as its own.
    """

    is_private: bool
    files: tuple[str, ...]
    recorded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Client of the hub with a token that was accepted.

    Attributes:
        api: Client.
        user: Name of the user of the token.
        token: The token, which no message contains.
        stored: Repository as it is; None if it is to be created.
    """

    api: "HfApi"
    user: str
    token: str
    stored: StoredRepository | None

    def __repr__(self) -> str:
        """Return the access without its token."""
        return f"HubAccess(user={self.user!r}, stored={self.stored!r})"


def open_hub(repository: str, *, is_private: bool, revision: str | None = None) -> HubAccess:
    """Return access to a repository that the token of this machine may write to.

    The token is that of HF_TOKEN or of ``hf auth login``; the hub is that of HF_ENDPOINT.

    Args:
        repository: Name, as user/name.
        is_private: Whether it has to be private.
        revision: Branch; None for the default one.

    Raises:
        HubError: There is no token, no network or no right to write, or the repository holds
            another model or is public.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, and a model cannot be pushed offline. Unset it.")
    endpoint = constants.ENDPOINT
    token = get_token()
    if token is None:
        raise HubError(
            f"There is no token for {endpoint}. Create one that may write at "
            f"{endpoint}/settings/tokens, and log in with 'hf auth login', or set HF_TOKEN to it."
        )
    api = HfApi(endpoint=endpoint, token=token, library_name=_OWN_TAG)
    with translate_hub_errors(repository, token):
        user = api.whoami()
        _check_rights(user, repository, endpoint)
        stored = _find_repository(api, repository, revision)
    if stored is not None:
        _check_stored(stored, repository, is_private=is_private)
    return HubAccess(api, str(user["name"]), token, stored)


def look_up_repository(repository: str, *, revision: str | None = None) -> StoredRepository | None:
    """Return a repository as it is, where it can be read; None if it does not exist.

    A token is used if there is one.

    Args:
        repository: Name, as user/name.
        revision: Branch; None for the default one.

    Raises:
        HubError: The hub is not reachable or refuses, the repository is not visible, or it holds
            another model.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, and the hub was not asked.")
    token = get_token()
    api = HfApi(endpoint=constants.ENDPOINT, token=token or False, library_name=_OWN_TAG)
    with translate_hub_errors(repository, token or ""):
        stored = _find_repository(api, repository, revision)
    if stored is None and token is None:
        raise HubError(f"{repository} does not exist, or is private and there is no token.")
    return stored


def _check_rights(user: Mapping[str, Any], repository: str, endpoint: str) -> None:
    """Check that a token may write to the namespace of a repository.

    Raises:
        HubError: It may not.
    """
    name, namespace = str(user["name"]), repository.partition("/")[0]
    access = (user.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise HubError(
            f"The token of '{name}' may only read. Create one that may write at "
            f"{endpoint}/settings/tokens, and log in with 'hf auth login', or set HF_TOKEN to it."
        )
    roles = {str(one["name"]): one.get("roleInOrg") for one in user.get("orgs") or ()}
    if namespace.lower() == name.lower():
        return
    match = next((org for org in roles if org.lower() == namespace.lower()), None)
    if match is None:
        own = ", ".join([name, *roles])
        raise HubError(
            f"'{name}', the user of the token, is not '{namespace}' and not a member of such an "
            f"organisation. Push to a repository of {own}, as in {name}/"
            f"{repository.partition('/')[2]}."
        )
    if roles[match] == "read":
        raise HubError(
            f"'{name}' may only read in the organisation '{match}'. Ask its administrators for "
            f"the right to write, or push to {name}/{repository.partition('/')[2]}."
        )


def _find_repository(
    api: "HfApi", repository: str, revision: str | None
) -> StoredRepository | None:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repository, revision=revision, timeout=_TIMEOUT)
    except RevisionNotFoundError:
        info, revision = api.model_info(repository, timeout=_TIMEOUT), None
    except RepositoryNotFoundError:
        return None
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    is_own = _CARD in files or RECORD_FILE in files or _OWN_TAG in (info.tags or ())
    foreign = [file for file in files if file.endswith(_MODEL_SUFFIXES)]
    if foreign and not is_own:
        raise HubError(
            f"{repository} exists and holds a model that finetune did not push ({foreign[0]}). "
            f"Choose another name, or remove its files there first."
        )
    recorded: tuple[str, ...] = ()
    if RECORD_FILE in files:
        recorded = _download_record(api, repository, info.sha or revision)
    return StoredRepository(bool(info.private), files, recorded)


def _download_record(api: "HfApi", repository: str, revision: str | None) -> tuple[str, ...]:
    """Return the paths that the last push of a repository has recorded."""
    with tempfile.TemporaryDirectory(prefix="finetune-push-") as folder:
        return read_record(
            Path(api.hf_hub_download(repository, RECORD_FILE, revision=revision, local_dir=folder))
        )


def _check_stored(stored: StoredRepository, repository: str, *, is_private: bool) -> None:
    if is_private and not stored.is_private:
        raise HubError(
            f"{repository} exists and is public, which --private does not change. Make it private "
            f"in its settings on the hub, or choose another name."
        )


@contextmanager
def translate_hub_errors(repository: str, token: str) -> Iterator[None]:
    """Raise errors of the hub's client within the block as messages with a remedy.

    Args:
        repository: Name, as user/name.
        token: Token, which is removed from messages.

    Raises:
        HubError: The hub refuses, is not reachable, or does not answer.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # of httpx2, httpx or requests, by the release of huggingface_hub
    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]

    try:
        yield
    except HubError:
        raise
    except HfHubHTTPError as error:
        raise HubError(_hide(_explain_response(error, repository), token)) from None
    except (transport_error, ConnectionError, TimeoutError, OfflineModeIsEnabled) as error:
        raise HubError(_hide(_explain_connection(error), token)) from None
    except (RuntimeError, ValueError) as error:  # of hf_xet, or of an answer that is none
        reason = _get_first_line(error)
        raise HubError(
            _hide(f"The upload to {repository} failed: {reason}. Try again.", token)
        ) from None


def _explain_connection(error: Exception) -> str:
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).netloc
    reason = _get_first_line(error)
    setting = "HF_ENDPOINT and " if "HF_ENDPOINT" in os.environ else ""
    return (
        f"{host} is not reachable from this machine: {reason}. Check the network, {setting}"
        f"HTTPS_PROXY, and push again."
    )


def _explain_response(error: Any, repository: str) -> str:
    """Return a message on an answer of the hub that is an error."""
    status = getattr(error.response, "status_code", 0)
    said = getattr(error, "server_message", None) or _get_first_line(error)
    if status == 401:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "'hf auth login'"
        return (
            f"The hub does not accept the token of {source} ({said}). Create one that may write, "
            f"and log in again."
        )
    if status == 403:
        return (
            f"The token may not write to {repository} ({said}). Give it the right to write to "
            f"this repository, or use another one."
        )
    if status == 429:
        return f"The hub refuses more requests for now ({said}). Push again in some minutes."
    if status >= 500:
        return f"The hub fails with status {status} ({said}). Push again later."
    return f"The hub refuses {repository} with status {status}: {said}."


def _get_first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [repr(error)])[0][:200].rstrip(".")


def _hide(text: str, token: str) -> str:
    return text.replace(token, "***") if token else text
