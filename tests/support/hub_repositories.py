"""Local hub that repositories are created on and pushed to, by the protocol of huggingface.co."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import ModelCard as HubCard

TOKEN = "hf_secretsecretsecret"
KNOWN_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0")


@dataclass
class Repository:
    """Repository of the server.

    Attributes:
        private: Whether it is private.
        branches: Content of each file by its path, by branch.
        commits: First lines of the messages of commits.
    """

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the default branch."""
        return self.branches["main"]

    def compute_commit(self, branch: str) -> str:
        """Return the commit of a branch: a digest of its name and files."""
        digest = hashlib.sha1(branch.encode())
        for path, content in sorted(self.branches[branch].items()):
            digest.update(path.encode() + b"\0" + hashlib.sha1(content).digest())
        return digest.hexdigest()

    def find_branch(self, revision: str) -> str | None:
        """Return the branch of a name or a commit; None if there is none."""
        if revision in self.branches:
            return revision
        matches = (name for name in self.branches if self.compute_commit(name) == revision)
        return next(matches, None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "WritableHub"

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""

    def _handle(self) -> None:
        hub, path = self.server, unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append(f"{self.command} {path}")
        if hub.failure is not None and self.command == "POST" and "/commit/" in path:
            return self._refuse(hub.failure, "made to fail")
        if self.command == "PUT":
            return self._store(path.rpartition("/")[2], body)
        if path.startswith("/api/") or ".git/" in path:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._refuse(401, "Invalid username or password.")
            return self._answer_api(path, body)
        return self._send_file(path)

    def _answer_api(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/whoami-v2":
            return self._send(hub.user)
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._send(self._plan_upload(json.loads(body)))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        if match is None:
            return self._refuse(404, f"no such address: {path}")
        name, verb, rest = match.groups()
        repository = hub.repositories.get(name)
        if repository is None:
            return self._refuse(404, "Repository not found", code="RepoNotFound")
        if self.command == "POST" and name in hub.read_only:
            return self._refuse(403, "You don't have the rights to write to it.")
        branch = rest or "main"
        if verb == "branch":
            return self._create_branch(repository, branch)
        found = repository.find_branch(branch)
        if found is None:
            return self._refuse(404, "Invalid rev id", code="RevisionNotFound")
        return self._answer_branch(verb, name, found, body)

    def _create_branch(self, repository: Repository, branch: str) -> None:
        if branch in repository.branches:
            return self._refuse(409, "Reference already exists")
        repository.branches[branch] = dict(repository.files)
        return self._send({})

    def _answer_branch(self, verb: str | None, name: str, branch: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        files = repository.branches[branch]
        if verb == "preupload":
            return self._send({"files": [*map(_choose_mode, json.loads(body)["files"])]})
        if verb == "commit":
            return self._commit(name, files, body)
        if verb == "tree":
            return self._send(
                [{"type": "file", "path": p, "size": len(files[p]), "oid": "0"} for p in files]
            )
        return self._send(_describe(name, repository, branch))

    def _validate(self, readme: str) -> None:
        """Answer whether a README has a head that the hub accepts, by its own library."""
        try:
            head = read_page_head(readme)
            assert head["license"] in (*KNOWN_LICENSES, "other"), "unknown licence"
            assert head["license"] != "other" or head["license_name"], "licence without a name"
            assert head["pipeline_tag"] == "image-classification", "another task"
        except (AssertionError, KeyError, ValueError) as error:
            message = {"errors": [{"message": str(error)}]}
            return self._respond(400, json.dumps(message).encode(), {})
        return self._send({"warnings": [{"message": text} for text in self.server.head_warnings]})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            return self._refuse(409, "You already created this model repo")
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.repositories[name] = Repository(is_private)
        return self._send({"url": f"{self.server.url}/{name}", "id": name})

    def _plan_upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert wanted["hash_algo"] == "sha256"
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            for one in wanted["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "the content has another digest")
        self.server.objects[oid] = body
        return self._send({})

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.repositories[name].commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(body).hexdigest()
        self._send(
            {
                "commitOid": commit,
                "commitUrl": f"{self.server.url}/{name}/commit/{commit}",
                "success": True,
            }
        )

    def _send_file(self, path: str) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = None if match is None else self.server.repositories.get(match[1])
        branch = None if match is None or repository is None else repository.find_branch(match[2])
        if match is None or repository is None or branch is None:
            return self._refuse(404, "Revision not found", code="RevisionNotFound")
        content = repository.branches[branch].get(match[3])
        if content is None:
            return self._refuse(404, "Entry not found", code="EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": repository.compute_commit(branch), "ETag": f'"{digest}"'}
        return self._respond(200, content, headers)

    def _refuse(self, status: int, message: str, *, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._respond(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, tree: Any) -> None:
        self._respond(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def _respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _choose_mode(file: dict[str, Any]) -> dict[str, Any]:
    """Return how a file is uploaded: as the hub does, weights by LFS and text in the commit."""
    is_large = file["path"].endswith((".safetensors", ".onnx", ".onnx.data"))
    mode = "lfs" if is_large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _describe(name: str, repository: Repository, branch: str) -> dict[str, Any]:
    files = repository.branches[branch]
    head = files.get("README.md", b"").decode().split("---\n", 2)
    tags = re.findall(r"^- (\S+)$", head[1], re.MULTILINE) if len(head) == 3 else []
    return {
        "_id": "0",
        "id": name,
        "sha": repository.compute_commit(branch),
        "private": repository.private,
        "siblings": [{"rfilename": path} for path in files],
        "tags": tags,
    }


def read_page_head(readme: str) -> dict[str, Any]:
    """Return the head of a README as the hub's own library reads it.

    Raises:
        ValueError: It has no valid head.
    """
    data: Any = HubCard(readme, ignore_metadata_errors=False).data
    head: dict[str, Any] = data.to_dict()
    return head


class WritableHub(ThreadingHTTPServer):
    """Server of ``serve_writable_hub``.

    Attributes:
        repositories: Repositories by their names.
        user: Answer to whose token it is.
        read_only: Names of repositories that the token may not write to.
        failure: Status that commits fail with; None for none.
        objects: Uploaded large files by their digests.
        requests: Method and path of each request.
        head_warnings: What it says of the head of every README.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.user: dict[str, Any] = {
            "type": "user",
            "name": "me",
            "orgs": [
                {"name": "Lab", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"},
            ],
            "auth": {"accessToken": {"displayName": "t", "role": "write"}},
        }  # fmt: skip
        self.read_only: set[str] = set()
        self.failure: int | None = None
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.head_warnings: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_writable_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """Serve an empty hub within the block, to which the client of this process is redirected.

    The client has read its environment already. It transfers by LFS, not by Xet, whose protocol
    only the real hub has.
    """
    from huggingface_hub import constants

    hub = WritableHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        there = getattr(constants, name)
        monkeypatch.setattr(constants, name, there.replace("https://huggingface.co", hub.url))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
