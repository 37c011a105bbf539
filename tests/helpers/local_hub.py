"""A small Hub for tests: repositories in memory, blobs in a folder, and the routes that `huggingface_hub` calls.

    with LocalHub(folder) as hub:                     # serves on a free port of this machine
        subprocess.run([...], env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HUB_DISABLE_XET": "1"})
        hub.listing("org/name")                       # the files of a repository

`huggingface_hub` reads `HF_ENDPOINT` when it is imported, so a client of this Hub must be another process. Large files
use LFS; xet is not supported. `hub.cut = "uploads"` interrupts every upload of a large file in the middle, `"commits"`
every commit, until it is `None` again; clients set it with `POST /_cut/uploads` or `/_cut/nothing`. All tokens are
valid except `hf_wrong`, which is unknown, and `hf_reader`, which may not write.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".parquet", ".arrow", ".h5", ".onnx", ".zip", ".jpg", ".png")
LFS_THRESHOLD = 10 << 20
USER = "tester"


class LocalHub:
    """A Hub with file contents in the folder `root`. `unhandled` lists the requests without a route."""

    def __init__(self, root: Path | str):
        self.root, self.repos, self.unhandled, self.cut = Path(root), {}, [], None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Another host, as on the real Hub: a HEAD request must not follow the redirect to it.
        self.files_url = self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listing(self, name: str, revision: str = "main") -> list[str]:
        return sorted(self.find(self.repos[name], revision)["files"])

    def contents(self, name: str, revision: str = "main") -> dict[str, bytes]:
        files = self.find(self.repos[name], revision)["files"]
        return {path: self.blob(file.get("sha256") or file["oid"]).read_bytes() for path, file in files.items()}

    def titles(self, name: str) -> list[str]:
        """Returns the messages of all commits, oldest first."""
        return [commit["title"] for commit in self.repos[name]["commits"]]

    def blob(self, oid: str) -> Path:
        return self.root / oid

    def store(self, data: bytes) -> dict:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.blob(oid).write_bytes(data)
        return {"oid": oid, "size": len(data)}

    def commit(self, repo: dict, branch: str, title: str, files: dict) -> str:
        repo["refs"][branch] = secrets.token_hex(20)
        repo["commits"].append({"oid": repo["refs"][branch], "title": title, "files": files})
        return repo["refs"][branch]

    def find(self, repo: dict, revision: str) -> dict | None:
        """Returns the commit of a branch or an id."""
        oid = repo["refs"].get(revision, revision)
        return next((commit for commit in repo["commits"] if commit["oid"] == oid), None)


def card_errors(content: str) -> list[str]:
    """Returns the violations of the Hub's documented rules in a card's metadata."""
    match = re.match(r"---\n(.*?\n)---(\n|$)", content, re.DOTALL)
    data = yaml.safe_load(match[1]) if match else {}
    name, repository, other = r"[a-z0-9.-]+", r"[\w.-]+(/[\w.-]+)?", data.get("license") == "other"
    rules = {"language": r"[a-z]{2,3}(-\w+)?", "license": name, "tags": r".+", "pipeline_tag": r"[a-z0-9-]+"}
    rules |= {"library_name": r"[\w.-]+", "datasets": repository, "base_model": repository}
    rules |= {"license_name": name, "license_link": r"LICENSE(\.md)?|https?://\S+"}
    errors = []
    for field, pattern in rules.items():
        values = data.get(field)
        for value in values if isinstance(values, list) else [values]:
            is_optional = not (other and field in ("license_name", "license_link"))
            if not (is_optional if value is None else isinstance(value, str) and re.fullmatch(pattern, value)):
                errors.append(f'"{field}" must match {pattern}, not {value!r}')
    return errors


class _Refused(Exception):
    """Status, error code and message of a response."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def handle_any(self):
        url = urlsplit(self.path)
        try:
            data = self.read_body(url.path)
            self.query = parse_qs(url.query)
            with self.hub.lock:
                self.route(url.path, data)
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        except _Refused as refusal:
            code, kind, message = refusal.args
            self.reply(code, {"error": message}, {"X-Error-Code": kind, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def route(self, path: str, data: bytes):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "hf_wrong":
            raise _Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
        if token == "hf_reader" and re.search(r"/repos/create|/commit/|/preupload/|/branch/", path):
            raise _Refused(403, "Forbidden", "You don't have the rights to write here.")
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                return answer(self, data, **{k: v and unquote(v) for k, v in match.groupdict().items()})
        self.hub.unhandled.append((self.command, self.path))
        raise _Refused(404, "NotFound", f"no route {self.command} {path}")

    def read_body(self, path: str) -> bytes:
        kind = "uploads" if self.command == "PUT" else "commits" if "/commit/" in path else None
        length = int(self.headers.get("Content-Length") or 0)
        if kind is not None and kind == self.hub.cut:
            self.rfile.read(length // 2)
            raise ConnectionAbortedError
        return self.rfile.read(length)

    def reply(self, code=200, content=None, headers=None, data=None):
        body = data if data is not None else b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (defaults | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def look_up(self, name: str, revision: str = "main") -> tuple[dict, dict]:
        """Returns repository and commit."""
        if name not in self.hub.repos:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        commit = self.hub.find(self.hub.repos[name], revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.hub.repos[name], commit

    def set_cut(self, data, kind):
        self.hub.cut = None if kind == "nothing" else kind
        self.reply(200, {})

    def whoami(self, data):
        if not self.headers.get("Authorization"):
            raise _Refused(401, "Unauthorized", "Invalid credentials")
        self.reply(200, {"type": "user", "name": USER, "orgs": []})

    def create_repo(self, data):
        asked = json.loads(data)
        if not self.headers.get("Authorization"):
            raise _Refused(401, "Unauthorized", "Invalid username or password.")
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self.reply(409, {"error": "exists", "url": url})
        is_private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = {"commits": [], "refs": {}, "private": is_private}
        self.hub.commit(self.hub.repos[name], "main", "initial commit", {})
        self.reply(200, {"url": url, "name": name, "id": name})

    def validate_card(self, data):
        errors = [{"message": error} for error in card_errors(json.loads(data)["content"])]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def info(self, data, name, revision="main"):
        repo, commit = self.look_up(name, revision)
        about = {"id": name, "sha": commit["oid"], "private": repo["private"], "tags": []}
        self.reply(200, about | {"siblings": [{"rfilename": path} for path in sorted(commit["files"])]})

    @staticmethod
    def entry(path: str, file: dict) -> dict:
        lfs = {"lfs": {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}} if file.get("sha256") else {}
        return {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]} | lfs

    def tree(self, data, name, revision, folder=""):
        _, commit = self.look_up(name, revision)
        entries = [self.entry(*item) for item in sorted(commit["files"].items()) if item[0].startswith(folder or "")]
        self.reply(200, entries)

    def preupload(self, data, name, revision):
        _, commit = self.look_up(name, revision)
        files = []
        for file in json.loads(data)["files"]:
            large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_THRESHOLD
            old = commit["files"].get(file["path"], {})
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular"})
            files[-1] |= {"shouldIgnore": False, "oid": old.get("sha256") or old.get("oid")}
        self.reply(200, {"files": files})

    def lfs_batch(self, data, name):
        objects = []
        for item in json.loads(data)["objects"]:
            objects.append({"oid": item["oid"], "size": item["size"]})
            if not self.hub.blob(item["oid"]).exists():
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{item['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, data, oid):
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Refused(400, "BadOid", "sha256 mismatch")
        self.hub.blob(oid).write_bytes(data)
        self.reply(200, headers={"ETag": f'"{oid}"'})

    def make_commit(self, data, name, revision):
        repo, commit = self.look_up(name, revision)
        files, title = dict(commit["files"]), ""
        for line in data.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
            elif kind == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if not self.hub.blob(value["oid"]).exists():
                    raise _Refused(400, "LfsMissing", f"Your push referenced unknown LFS file {value['oid']}")
                pointer = self.hub.store(value["oid"].encode())
                files[value["path"]] = pointer | {"sha256": value["oid"], "size": value["size"]}
            elif kind == "deletedFile":
                files.pop(value["path"], None)
        answer, branch = {}, revision
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo["refs"])
            branch, answer = f"refs/pr/{number}", {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        oid = self.hub.commit(repo, branch, title, files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.reply(200, answer | {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def branch(self, data, name, branch):
        repo, commit = self.look_up(name)
        if branch in repo["refs"]:
            raise _Refused(409, "RefExists", "Reference already exists")
        repo["refs"][branch] = commit["oid"]
        self.reply(200, {})

    def file(self, data, name, revision, path):
        _, commit = self.look_up(name, revision)
        headers = {"X-Repo-Commit": commit["oid"]}
        file = commit["files"].get(path)
        if file is None:
            return self.reply(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{file["oid"]}"'
        if not file.get("sha256"):
            return self.reply(headers=headers, data=self.hub.blob(file["oid"]).read_bytes())
        headers |= {"X-Linked-Etag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
        self.reply(302, None, headers | {"Location": f"{self.hub.files_url}/_files/{file['sha256']}"})

    def large_file(self, data, oid):
        self.reply(headers={"ETag": f'"{oid}"'}, data=self.hub.blob(oid).read_bytes())


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", r"/_cut/(?P<kind>uploads|commits|nothing)", _Handler.set_cut),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", rf"/api/models/{NAME}", _Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/{REVISION}", _Handler.info),
    ("GET", rf"/api/models/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/{REVISION}", _Handler.make_commit),
    ("POST", rf"/api/models/{NAME}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET", r"/_files/(?P<oid>[0-9a-f]{64})", _Handler.large_file),
    ("GET", rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", _Handler.file),
]
