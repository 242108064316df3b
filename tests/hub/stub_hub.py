"""A Hub on localhost: what huggingface_hub asks for when a model repository is made, committed to and read.

Repositories have branches and commits, as git has; large files are served from another origin, as the Hub's own are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

LARGE = (".safetensors", ".bin")
"""Files that the Hub keeps outside git, with their SHA-256 as ETag."""


@dataclass
class StubRepo:
    """A repository: the commit of every branch, and the files of every commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    """Status and error code by which everything is refused, such as (403, "GatedRepo")."""

    def commit(self, files: dict[str, bytes | None], branch: str = "main") -> str:
        """Adds files, or removes those that are None, and returns the id of the commit."""
        parent = self.branches.get(branch)
        new = self.commits.get(parent or "", {}) | files
        tree = {name: content for name, content in new.items() if content is not None}
        commit = hashlib.sha1(repr((parent, sorted(tree.items()))).encode()).hexdigest()
        self.branches[branch], self.commits[commit] = commit, tree
        return commit

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a commit's id names."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        repo_id, _, rest = path.removeprefix("/api/models/").partition("/commit/")
        if path == "/api/repos/create":
            repo_id = self._repo_id(json.loads(body))
            if repo_id not in self.server.repos:
                self.server.repos[repo_id] = StubRepo()
                self.server.repos[repo_id].commit({".gitattributes": b""})
            self._json({"url": f"{self.server.url}/{repo_id}", "name": repo_id})
        elif path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._json({"files": files})
        elif "/branch/" in path:
            repo_id, _, branch = path.removeprefix("/api/models/").partition("/branch/")
            branches = self.server.repos[repo_id].branches
            status = 409 if branch in branches else 200
            branches.setdefault(branch, branches["main"])
            self._json({}, status)
        elif rest and rest not in self.server.repos[repo_id].branches:
            self._error(404, "RevisionNotFound")
        elif rest:
            values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            files = {value["path"]: base64.b64decode(value["content"]) for value in values}
            commit = self.server.repos[repo_id].commit(files, rest)
            url = f"{self.server.url}/{repo_id}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit, "hookOutput": ""})
        else:
            self._json({"error": f"POST {path} is not stubbed"}, 404)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/large/"):
            _, _, name, digest = path.split("/", 3)
            self._file(self.server.large[digest], name, {"ETag": f'"{digest}"'})
        elif path == "/api/whoami-v2":
            self._json({"name": "user", "type": "user"})
        elif path.startswith("/api/models/"):
            user, name, *kind = path.removeprefix("/api/models/").split("/", 3)
            self._read(f"{user}/{name}", *(kind if len(kind) > 1 else ["revision", "main"]))
        elif "/resolve/" in path:
            repo_id, _, rest = path.removeprefix("/").partition("/resolve/")
            self._read(repo_id, "resolve", rest)
        else:
            self._json({"error": f"GET {path} is not stubbed"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def _read(self, repo_id: str, kind: str, rest: str) -> None:
        """Answers with the description of a commit, the list of its files, or one of them."""
        repo = self.server.repos.get(repo_id)
        if repo is None:
            self._error(404, "RepoNotFound")
            return
        if repo.refusal is not None:
            self._error(*repo.refusal)
            return
        revision, _, name = rest.partition("/") if kind == "resolve" else (rest, "", "")
        commit = repo.find(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
            return
        files = repo.commits[commit]
        if kind == "resolve":
            self._resolve(files.get(name), name, commit)
        elif kind == "tree":
            self._json([{"type": "file", "oid": _blob(c), "size": len(c), "path": n} for n, c in files.items()])
        else:
            info = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": [{"rfilename": n} for n in files]}
            # The Hub reads these from the card.
            header = yaml.safe_load(files.get("README.md", b"---\n{}\n---").decode().split("---")[1])
            self._json(info | {key: header[key] for key in ("pipeline_tag", "library_name") if key in header})

    def _resolve(self, content: bytes | None, name: str, commit: str) -> None:
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._error(404, "EntryNotFound", headers)
        elif name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self.server.large[digest] = content
            # Another host than that of the Hub: huggingface_hub must not send its token there.
            place = f"http://localhost:{self.server.server_port}/large/{name.rpartition('/')[2]}/{digest}"
            headers |= {"Location": place, "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._send(b"", 302, headers)
        else:
            self._file(content, name.rpartition("/")[2], headers | {"ETag": f'"{_blob(content)}"'})

    def _file(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults and self.command == "GET" else None
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted is not None:
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(content[start:], status, headers, None if fault is None else fault(content[start:]))

    @staticmethod
    def _repo_id(body: dict[str, str]) -> str:
        return f"{body.get('organization') or 'user'}/{body['name']}"

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._json({"error": code}, status, (headers or {}) | {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, headers or {})

    def _send(self, content: bytes, status: int, headers: dict[str, str], sent: bytes | None = None) -> None:
        """Announces the content and sends it, or `sent` in its place; then closes the connection."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content)), "Connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else sent)

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(f"{self.command} {unquote(self.path)}")


class StubHub(ThreadingHTTPServer):
    """The server; it keeps its address and its repositories when it is stopped and started again.

    `faults` maps a file's name to what happens to its next downloads: functions from the bytes to those that are sent
    instead. Fewer bytes than were announced are a connection that breaks.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, StubRepo] = {}
        self.large: dict[str, bytes] = {}
        self.cards: list[str] = []
        self.requests: list[str] = []
        self.faults: dict[str, list[Callable[[bytes], bytes]]] = {}

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch or a commit."""
        repo = self.repos[repo_id]
        return repo.commits[repo.find(revision) or ""]

    def commit(self, repo_id: str, files: dict[str, bytes | None], branch: str = "main") -> str:
        """Commits files by hand, into a repository that may be new."""
        return self.repos.setdefault(repo_id, StubRepo()).commit(files, branch)


def serving(hub: StubHub) -> Iterator[StubHub]:
    """Serves until it is closed."""
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


def _blob(content: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
