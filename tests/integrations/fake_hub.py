"""A hub on this machine: as much of its HTTP interface as fetching and pushing a repository takes, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api


@dataclass
class FakeHub:
    """Repositories as lists of commits, each all files by path; `main` is the last.

    Attributes:
        requests: method and path of everything that was asked.
        down: answer with 503 from now on.
    """

    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    down: bool = False
    endpoint: str = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit; returns its name."""
        commits = self.repositories.setdefault(repository, [])
        commits.append((commits[-1] if commits else {}) | files)
        return self._name(repository, len(commits) - 1)

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[repository][-1]

    def _name(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def _revision(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories.get(repository, [])
        for number in range(len(commits)):
            last = number == len(commits) - 1
            if revision == self._name(repository, number) or (last and revision == "main"):
                return self._name(repository, number), commits[number]
        return None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        self.requests.append(f"{method} {path}")
        if self.down:
            return 503, {}, b""
        parts = [unquote(each) for each in urlsplit(path).path.strip("/").split("/")]
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "validate-yaml"]:
            return _json({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            if repository not in self.repositories:
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            return self._of_repository(repository, rest, body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return 404, {}, b""

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        name = f"{asked['organization']}/{asked['name']}"
        self.repositories.setdefault(name, [{}])
        return _json({"url": f"{self.endpoint}/{name}", "name": name, "id": "0" * 24})

    def _of_repository(self, repository: str, rest: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            return _json(
                {"files": [{"path": e["path"], "uploadMode": "regular", "shouldIgnore": False} for e in asked]}
            )
        if rest[:1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = self.commit(repository, files)
            return _json(
                {"commitUrl": f"{self.endpoint}/{repository}/commit/{name}", "commitOid": name, "success": True}
            )
        found = self._revision(repository, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        name, files = found
        if rest[:1] == ["tree"]:
            return _json([_entry(path, content) for path, content in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return _json({"_id": "0", "id": repository, "sha": name, "private": False, "tags": [], "siblings": siblings})

    def _file(self, repository: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        found = self._revision(repository, revision)
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        name, files = found
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": name}, b""
        content = files[path]
        return 200, {"X-Repo-Commit": name, "ETag": f'"{_blob(content)}"'}, content


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}


def _json(data: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub, at `hub.endpoint` on this machine's own interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
            status, headers, content = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = _do

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def log_message(self, *ignored: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def talk_to(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, cache: Any) -> None:
    """Point huggingface_hub at it, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert hub.endpoint == huggingface_hub.constants.ENDPOINT
