from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import torch
import yaml

from hq_tokenizers import HQGeneratorModel, RQPriorConfig, RQPriorModel, SQVAEConfig, SQVAEModel

COMMIT = "0" * 40


@pytest.fixture(scope="session")
def generator() -> HQGeneratorModel:
    torch.manual_seed(0)
    tokenizer = SQVAEModel(
        SQVAEConfig(image_size=8, num_channels=1, hidden_size=8, num_downsampling=1, codebook_size=16, codebook_dim=4)
    ).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_depth_layers": 1, "num_attention_heads": 2}
    layout = tokenizer.code_layout().to_dict()
    prior = RQPriorModel(RQPriorConfig(code_layout=layout, num_classes=3, initializer_range=0.5, **sizes)).eval()
    return HQGeneratorModel.from_sub_models(tokenizer, prior, {0: "cat", 1: "dog", 2: "frog"})


class HubStub(BaseHTTPRequestHandler):
    """The few answers of the Hub that creating, uploading to and reading a model repository needs, kept in memory."""

    protocol_version = "HTTP/1.1"
    server: StubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            repo = self._repo_id(json.loads(body))
            self.server.repos.setdefault(repo, {})
            self._json({"url": f"{self.server.url}/{repo}", "name": repo})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json(
                {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
            )
        else:
            self._json({"error": f"POST {self.path} is not stubbed"}, 404)

    def do_GET(self) -> None:
        self._read(with_body=True)

    def do_HEAD(self) -> None:
        self._read(with_body=False)

    def _read(self, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        if "/resolve/" in path:
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            content = self.server.repos.get(repo, {}).get(rest.partition("/")[2])
            if content is None:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self._send(content, 200, etag, with_body)
        elif path.startswith("/api/models/"):
            repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if repo not in self.server.repos:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            files = [
                {"type": "file", "oid": "0", "size": len(c), "path": n} for n, c in self.server.repos[repo].items()
            ]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": f["path"]} for f in files]}
            # The Hub reads these from the card.
            header = yaml.safe_load(self.server.repos[repo].get("README.md", b"---\n{}\n---").decode().split("---")[1])
            info |= {name: header[name] for name in ("pipeline_tag", "library_name") if name in header}
            self._json(files if "/tree/" in path else info)
        elif path == "/api/whoami-v2":
            self._json({"name": "user", "type": "user"})
        else:
            self._json({"error": f"GET {path} is not stubbed"}, 404)

    @staticmethod
    def _repo_id(body: dict) -> str:
        return f"{body.get('organization') or 'user'}/{body['name']}"

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, headers or {}, self.command != "HEAD")

    def _send(self, content: bytes, status: int, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Stays silent."""


class StubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubStub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cards: list[str] = []


@pytest.fixture
def hub() -> Iterator[StubServer]:
    server = StubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
