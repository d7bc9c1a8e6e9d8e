"""A hub on this machine: enough of the Hugging Face hub's HTTP protocol for the real
``huggingface_hub`` to download from it and upload to it, with faults on demand.

Large files (``*.safetensors``) are kept as on the hub, as LFS objects on another host:
``resolve`` redirects to them, and a client must not send its token there.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_reader"
Request = namedtuple("Request", "method path headers")


@dataclass
class Repo:
    """A repository: commits are dicts from path to content."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        files = {**before, **files}
        names = "".join(f"{name} {_oid(x)}\n" for name, x in sorted(files.items()))
        commit = hashlib.sha1(names.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


def _oid(content: bytes) -> str:
    """Of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf"))


class Hub(ThreadingHTTPServer):
    """Serves ``repos`` and logs ``requests``.

    Args:
        cut_after (int): bytes of a large file after which the connection is closed,
            once for each file; ``None`` for never.
        stall_after (int): bytes of a large file after which no more come; ``None`` for
            never. ``stalled`` is set when it happens.
        fail (dict): pattern of a path -> HTTP status that is answered.
        silent (Event): when set, requests are not answered.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.cut_after: int | None = None
        self.cut: set[str] = set()
        self.stall_after: int | None = None
        self.stalled = threading.Event()
        self.fail: dict[str, int] = {}
        self.silent = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def handle_error(self, *_):
        """Clients that leave in the middle are what is tested."""

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.silent.clear()
        self.stall_after = None
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add(self, name: str, folder: Path | dict[str, bytes], **options) -> str:
        """Publishes a folder's files; returns the commit."""
        if isinstance(folder, Path):
            files = [path for path in folder.rglob("*") if path.is_file()]
            folder = {str(p.relative_to(folder)): p.read_bytes() for p in files}
        branch = options.pop("branch", "main")
        repo = self.repos.setdefault(name, Repo(**options))
        self.objects.update({_sha256(x): x for x in folder.values()})
        return repo.commit(folder, branch)

    def downloaded(self) -> list[str]:
        """Names of the files whose content was asked for."""
        names = []
        for request in self.requests:
            if request.method != "GET":
                continue
            if match := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", request.path):
                names.append(match[1])
            elif request.path.startswith("/cdn/"):
                names.append(self.name_of(request.path.removeprefix("/cdn/")))
        return names

    def name_of(self, sha256: str) -> str:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for name, content in files.items():
                    if _sha256(content) == sha256:
                        return name
        raise KeyError(sha256)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(Request(self.command, path, dict(self.headers)))
        body = self._body()
        while self.server.silent.is_set():
            time.sleep(0.1)
        for pattern, status in self.server.fail.items():
            if re.search(pattern, path):
                return self._error(status, "InternalError", "out of order")
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, body, *match.groups())
        self._error(404, "EntryNotFound", f"no route {path}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200, **headers):
        content = json.dumps(value).encode()
        self._send(status, content, Content_Type="application/json", **headers)

    def _error(self, status: int, code: str, message: str):
        headers = {"X_Error_Code": code, "X_Error_Message": message}
        self._json({"error": message}, status, **headers)

    # Reading.

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; answers and gives None if there is none."""
        repo, token = self.server.repos.get(name), self._token()
        if token not in (None, TOKEN):
            self._json({"error": "Invalid credentials in Authorization header"}, 401)
        elif repo is None or (repo.private and token is None):
            # The hub tells strangers nothing.
            status = 401 if token is None else 404
            self._error(status, "RepoNotFound", "Repository not found")
        elif (commit := repo.branches.get(revision, revision)) not in repo.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit, repo.commits[commit]
        return None

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def model_info(self, body, name, revision="main"):
        if found := self._files(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self._json({"id": name, "sha": found[0], "siblings": siblings})

    def tree(self, body, name, revision):
        if found := self._files(name, revision):
            self._json([_entry(path, x) for path, x in found[1].items()])

    def resolve(self, body, name, revision, path):
        if not (found := self._files(name, revision)):
            return
        commit, files = found
        if self.server.repos[name].gated and self._token() is None:
            return self._error(401, "GatedRepo", "Access to this model is restricted")
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        content = files[path]
        if not _is_large(path):
            etag = f'"{_oid(content)}"'
            headers = {"X_Repo_Commit": commit, "ETag": etag, **_disposition(path)}
            return self._send(200, content, **headers)
        self._send(
            302,
            b"",
            Location=f"{self.server.cdn}/{_sha256(content)}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{_sha256(content)}"',
            X_Linked_Size=str(len(content)),
        )

    def cdn(self, body, sha256):
        if "Authorization" in self.headers:
            return self._error(400, "BadRequest", "a token was sent to a strange host")
        content, start = self.server.objects[sha256], 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        disposition = _disposition(self.server.name_of(sha256))
        self.send_header("Content-Disposition", *disposition.values())
        if start:
            end = f"{start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {end}")
        self.end_headers()
        stop = len(content)
        if self.server.cut_after is not None and sha256 not in self.server.cut:
            self.server.cut.add(sha256)
            stop = min(stop, start + self.server.cut_after)
        self._pour(content[start:stop])
        if stop < len(content):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _pour(self, content: bytes, step: int = 1 << 16):
        for start in range(0, len(content), step):
            while (stall := self.server.stall_after) is not None and start >= stall:
                self.server.stalled.set()
                time.sleep(0.05)
            try:
                self.wfile.write(content[start : start + step])
            except OSError:  # the client has gone
                self.close_connection = True
                return

    # Writing.

    def _may_write(self) -> bool:
        if self._token() == TOKEN:
            return True
        self._error(403, "Forbidden", "this token cannot write")
        return False

    def create(self, body):
        if self._may_write():
            wanted = json.loads(body)
            owner = wanted.get("organization") or "reader"
            name = f"{owner}/{wanted['name']}"
            if name in self.server.repos:
                return self._json({"error": "exists", "url": ""}, 409)
            self.server.add(name, {})
            self._json({"url": f"{self.server.url}/{name}"})

    def whoami(self, body):
        self._json({"name": "reader", "type": "user", "orgs": []})

    def validate_yaml(self, body):
        text = json.loads(body)["content"]
        if not text.startswith("---\n"):
            return self._json({"errors": [{"message": "no front matter"}]}, 400)
        self._json({"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        if self._may_write():
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if _is_large(path) else "regular" for path in asked}
            files = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in modes.items()
            ]
            self._json({"files": files})

    def lfs_batch(self, body, name):
        if self._may_write():
            objects = [
                {
                    **wanted,
                    "actions": {
                        "upload": {"href": f"{self.server.cdn}/{wanted['oid']}"}
                    },
                }
                for wanted in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

    def put(self, body, sha256):
        if _sha256(body) != sha256:
            return self._error(400, "BadRequest", "not what was announced")
        self.server.objects[sha256] = body
        self._send(200, b"")

    def commit(self, body, name, revision):
        if self._may_write():
            files = {}
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            oid = self.server.repos[name].commit(files, revision)
            url = f"{self.server.url}/{name}/commit/{oid}"
            self._json({"commitUrl": url, "commitOid": oid})

    def cdn_or_put(self, body, sha256):
        (self.put if self.command == "PUT" else self.cdn)(body, sha256)


def _disposition(path: str) -> dict[str, str]:
    """The name that a progress bar shows."""
    return {"Content_Disposition": f'inline; filename="{Path(path).name}";'}


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
    if _is_large(path):
        size = len(content)
        entry["lfs"] = {"oid": _sha256(content), "size": size, "pointerSize": 134}
    return entry


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    (f"/api/models/{NAME}/revision/(.+)", Handler.model_info),
    (f"/api/models/{NAME}", Handler.model_info),
    (f"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    (f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"/cdn/(\w+)", Handler.cdn_or_put),
    ("/api/repos/create", Handler.create),
    ("/api/whoami-v2", Handler.whoami),
    ("/api/validate-yaml", Handler.validate_yaml),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
]
