"""A small Hugging Face hub on 127.0.0.1 with faults that a test can choose."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers import hub_uploads

BRANCH = "main"
LARGE = (".safetensors", ".parquet")  # listed with their SHA-256, like large files of the hub; others with Git's hash


class Hub:
    """Serves repositories inside a `with` block.

    Attributes:
        repos: {("models" or "datasets", name): (revision, {path: bytes})}. Each repository has the branch `BRANCH`.
        history: the same by (kind, name, revision), for the earlier commits of `hf upload`.
        large: {SHA-256: bytes} of the large files that were uploaded.
        faults: {name: function of (request handler, kind of request, path)}. The function answers the request and
            returns True, or it returns a false value and the hub answers. Kinds are "info", "tree", "head" and "get".
        seen: counter of requests by (name, kind, path).
        headers: the headers of each "get", in order.
    """

    def __init__(self) -> None:
        self.repos, self.history, self.large, self.faults, self.seen, self.headers = {}, {}, {}, {}, Counter(), []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def do_POST(self):
                hub_uploads.answer(hub, self)

            do_PUT = do_POST

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, name: str, revision: str, files: dict[str, bytes], fault: Callable | None = None) -> None:
        """Serve `files`, {path: bytes}, as a repository."""
        self.repos[kind, name] = (revision, files)
        if fault:
            self.faults[name] = fault

    def commit(self, kind: str, name: str, revision: str, files: dict[str, bytes]) -> None:
        """Add a commit that writes these files. The earlier ones stay available by their revision."""
        before, kept = self.repos[kind, name]
        self.history[kind, name, before] = kept
        self.repos[kind, name] = (revision, kept | files)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request as the hub does, or by the fault of its repository."""
        path = request.path.split("?")[0].strip("/")
        parts = path.split("/")
        if parts[0] == "api" and len(parts) < 4:
            refuse(request, 404, "EntryNotFound")  # what the client can do without
            return
        if parts[0] == "api":  # api/models/OWNER/NAME, then nothing, revision/REVISION or tree/REVISION
            kind, name, file = parts[1], "/".join(parts[2:4]), None
            asked, revision = parts[4:6] or ("revision", BRANCH)
            asked = {"revision": "info", "tree": "tree"}[asked]
        else:  # OWNER/NAME/resolve/REVISION/FILE, datasets/OWNER/NAME/resolve/REVISION/FILE
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            asked = "head" if request.command == "HEAD" else "get"
        self.seen[name, asked, file] += 1
        if asked == "get":
            self.headers.append(request.headers)
        fault = self.faults.get(name)
        if fault and fault(request, asked, file):
            return
        if (kind, name) not in self.repos:
            refuse(request, 401 if request.headers.get("authorization") is None else 404, "RepoNotFound")
            return
        commit, files = self.repos[kind, name]
        if (kind, name, revision) in self.history:
            commit, files = revision, self.history[kind, name, revision]
        if revision not in (commit, BRANCH):
            refuse(request, 404, "RevisionNotFound")
        elif asked == "info":
            siblings = [{"rfilename": path} for path in files]
            info = {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            send(request, json.dumps(info | {"cardData": hub_uploads.read_card_data(files.get("README.md", b""))}))
        elif asked == "tree":
            send(request, json.dumps([entry(path, content) for path, content in files.items()]))
        elif file not in files:
            refuse(request, 404, "EntryNotFound")
        else:
            send_file(request, commit, file, files[file])


def entry(path: str, content: bytes) -> dict:
    """A file in the hub's listing."""
    item = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LARGE):
        item["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return item


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send(request: BaseHTTPRequestHandler, content: bytes | str, status: int = 200, **headers: object) -> None:
    """Answer with `content` as the body."""
    content = content.encode() if isinstance(content, str) else content
    request.send_response(status)
    for name, value in {"Content-Length": len(content), **headers}.items():
        request.send_header(name.replace("_", "-"), str(value))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def refuse(request: BaseHTTPRequestHandler, status: int, code: str, message: str = "no", **headers: object) -> None:
    """Answer with an error in the hub's form."""
    send(request, json.dumps({"error": message}), status, X_Error_Code=code, X_Error_Message=message, **headers)


def send_file(
    request: BaseHTTPRequestHandler,
    revision: str,
    path: str,
    content: bytes,
    body: bytes | None = None,
    cut: int | None = None,
) -> None:
    """Answer with a file, or with the range of it that was requested.

    Args:
        body: bytes sent in place of `content`.
        cut: number of bytes after which the connection is closed.
    """
    etag = sha256(content) if path.endswith(LARGE) else git_hash(content)
    body = content if body is None else body
    start = int(request.headers.get("Range", "bytes=0-")[len("bytes=") :].split("-")[0])
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": revision, "X-Linked-Size": len(content), "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    request.send_response(206 if start else 200)
    for name, value in {"Content-Length": len(body) - start, **headers}.items():
        request.send_header(name, str(value))
    request.end_headers()
    if request.command == "HEAD":
        return
    request.wfile.write(body[start:][:cut])
    if cut is not None:
        request.wfile.flush()
        time.sleep(0.1)
        request.connection.close()
        request.close_connection = True
