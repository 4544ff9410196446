"""A small server that speaks as much of the Hub's interface as publishing and loading need, in memory."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import yaml


@dataclass
class Repo:
    """Files of a repository, and how often it was committed to."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: int = 0
    settings: dict = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.commits}{sorted(self.files)}".encode()).hexdigest()

    def oid(self, path: str) -> str:
        """As git names a blob, and LFS a file."""
        content = self.files[path]
        if path in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """
    Context manager; `repos` by "models/USER/NAME" or "spaces/USER/NAME", `requests` in order. With `cut_after` the
    server ends the connection of a download after so many bytes, and answers the next one with an error; `sent` counts
    the bytes of each file.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_after: int | None = None
        self.was_cut = False
        self.sent: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()


class HubRequest(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append(f"{method} {path}")
        body = self.read_body()
        routes = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate),
            ("POST", r"/api/(models|spaces)/([^/]+/[^/]+)/preupload/[^/]+", self.preupload),
            ("POST", r"/api/(models|spaces)/([^/]+/[^/]+)/commit/[^/]+", self.commit),
            ("GET", r"/api/(models|spaces)/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", self.tree),
            ("GET", r"/api/(models|spaces)/([^/]+/[^/]+)(?:/revision/[^/]+)?", self.info),
            ("POST", r"/(?:(spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/upload/(\w+)", self.upload),
            ("POST", r"/verify", self.verify),
            ("GET|HEAD", r"/(?:(spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ]
        for methods, pattern, handler in routes:
            match = re.fullmatch(pattern, path)
            if match and method in methods.split("|"):
                return handler(body, *match.groups())
        return self.fail(404, "RepoNotFound", f"{method} {path} is not known here")

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status, Content_Type="application/json")

    def fail(self, status: int, code: str, message: str) -> None:
        self.send(json.dumps({"error": message}).encode(), status, X_Error_Code=code, X_Error_Message=message)

    def repo(self, kind: str | None, repo_id: str) -> Repo | None:
        return self.server.repos.get(f"{kind or 'models'}/{repo_id}")

    # Publishing ------------------------------------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        given = json.loads(body)
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            return self.fail(401, "Unauthorized", "no token")
        key = f"{given.get('type', 'model')}s/{given['organization']}/{given['name']}"
        url = f"{self.server.url}/{given['organization']}/{given['name']}"
        if key in self.server.repos:
            return self.send_json({"error": "the repository exists already", "url": url}, 409)
        self.server.repos[key] = Repo(settings=given)
        return self.send_json({"url": url})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        errors = [] if "license" in metadata else [{"message": "license is missing"}]
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, kind: str, repo_id: str) -> None:
        repo, files = self.repo(kind, repo_id), []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith((".safetensors", ".png", ".jpg")) else "regular"
            oid = repo.oid(path) if path in repo.files else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": files})

    def batch(self, body: bytes, kind: str | None, repo_id: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.url}/upload/{one['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.server.url}/verify"}}
            objects.append({**one, "actions": actions} if one["oid"] not in self.server.uploads else one)
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "BadContent", "the content does not have this sha256")
        self.server.uploads[oid] = body
        return self.send(b"")

    def verify(self, body: bytes) -> None:
        given = json.loads(body)
        content = self.server.uploads.get(given["oid"], b"")
        self.send(b"", 200 if len(content) == given["size"] else 404)

    def commit(self, body: bytes, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
                repo.large.discard(value["path"])
            elif operation["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.uploads[value["oid"]]
                repo.large.add(value["path"])
            elif operation["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.commits += 1
        url = f"{self.server.url}/{repo_id}/commit/{repo.sha}"
        self.send_json({"success": True, "commitOid": repo.sha, "commitUrl": url})

    # Loading ---------------------------------------------------------------------------------------------------------

    def info(self, body: bytes, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        if repo is None:
            return self.fail(404, "RepoNotFound", f"there is no {repo_id}")
        siblings = [{"rfilename": path} for path in sorted(repo.files)]
        return self.send_json({"id": repo_id, "sha": repo.sha, "siblings": siblings, "private": False, "tags": []})

    def tree(self, body: bytes, kind: str, repo_id: str, folder: str | None) -> None:
        repo = self.repo(kind, repo_id)
        paths = [path for path in sorted(repo.files) if not folder or path.startswith(f"{folder}/")]
        if folder and not paths:
            return self.fail(404, "EntryNotFound", f"there is no {folder}")
        entries = [
            {"type": "file", "path": path, "size": len(repo.files[path]), "oid": repo.oid(path)} for path in paths
        ]
        return self.send_json(entries)

    def resolve(self, body: bytes, kind: str | None, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(kind, repo_id)
        if repo is None:
            return self.fail(404, "RepoNotFound", f"there is no {repo_id}")
        if path not in repo.files:
            return self.fail(404, "EntryNotFound", f"there is no {path}")
        content, status = repo.files[path], 200
        headers = {"ETag": f'"{repo.oid(path)}"', "X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        if self.command == "HEAD":
            return self.send(content, status, **headers)
        if self.server.was_cut:
            self.server.was_cut = False
            return self.fail(503, "Unavailable", "the server is overloaded")
        cut = self.server.cut_after
        self.server.sent[path] += len(content[:cut])
        if cut is None or cut >= len(content):
            return self.send(content, status, **headers)
        self.send(content[:cut], status, **headers, **{"Content-Length": str(len(content))})
        self.server.was_cut = self.close_connection = True
        return None
