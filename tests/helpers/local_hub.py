# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A small Hub for tests: repositories in memory, blobs in a folder, the routes that `huggingface_hub` asks for.

    with LocalHub(folder) as hub:                     # serves on a free port of this machine
        subprocess.run([...], env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "any", "HF_HUB_DISABLE_XET": "1"})
        hub.listing("org/name")                       # what a user finds there

`HF_ENDPOINT` is read when `huggingface_hub` is imported, so whoever talks to this Hub is a process of its own. Large
files go through LFS; xet is not spoken. `hub.cut = "uploads"` breaks every upload of a large file off in the middle,
`"commits"` every commit, until it is `None` again; a visitor says the same by `POST /_cut/uploads`, `/_cut/nothing`.
Every token is good except `hf_wrong`, which nobody has, and `hf_reader`, which may not write.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".parquet", ".arrow", ".h5", ".onnx", ".zip", ".jpg", ".png")
LFS_THRESHOLD = 10 << 20
DATE = "2026-01-01T00:00:00.000Z"


class LocalHub:
    """
    Args:
        root: an empty folder for the files' contents.
        user: whom every token belongs to.

    Attributes:
        url: what `HF_ENDPOINT` has to be.
        repos: `{name: {"commits": [...], "refs": {branch: id}, "tags": {tag: id}, "private": bool}}`.
        requests: method and path of everything that was asked, in order.
        unhandled: those of them that no route knows; a test may insist that there are none.
        cut: "uploads" or "commits", to break the connection in the middle of each of them.
    """

    def __init__(self, root: Path | str, user: str = "tester"):
        self.root, self.user = Path(root), user
        self.repos, self.requests, self.unhandled = {}, [], []
        self.cut = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Another host, as on the real Hub: a HEAD request must stop at the redirection to it.
        self.files_url = self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listing(self, name: str, revision: str = "main") -> list[str]:
        """The files of a repository, without the `.gitattributes` that every one is born with."""
        return sorted(set(self.find(self.repos[name], revision)["files"]) - {".gitattributes"})

    def contents(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The same with their bytes."""
        files = self.find(self.repos[name], revision)["files"]
        return {
            path: self.blob(files[path].get("sha256") or files[path]["oid"]).read_bytes()
            for path in self.listing(name, revision)
        }

    def titles(self, name: str) -> list[str]:
        """The messages of all commits, the oldest first."""
        return [commit["title"] for commit in self.repos[name]["commits"]]

    def blob(self, oid: str) -> Path:
        return self.root / oid

    def create(self, name: str, private: bool) -> None:
        attributes = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % s.encode() for s in LFS_SUFFIXES)
        oid = _git_id(attributes)
        self.blob(oid).write_bytes(attributes)
        repo = self.repos[name] = {"commits": [], "refs": {}, "tags": {}, "private": private}
        self.commit(repo, "main", "initial commit", {".gitattributes": {"oid": oid, "size": len(attributes)}}, None)

    def commit(self, repo: dict, branch: str, title: str, files: dict, parent: str | None) -> str:
        identity = json.dumps([title, files, parent, time.time_ns()], sort_keys=True)
        oid = hashlib.sha1(identity.encode()).hexdigest()
        repo["commits"].append({"oid": oid, "title": title, "files": files, "parent": parent})
        repo["refs"][branch] = oid
        return oid

    def find(self, repo: dict, revision: str) -> dict | None:
        """The commit that a branch, a tag or an id names."""
        oid = repo["refs"].get(revision) or repo["tags"].get(revision) or revision
        return next((commit for commit in repo["commits"] if commit["oid"] == oid), None)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_errors(content: str) -> list[str]:
    """What the Hub has against a card's metadata, as far as it documents its rules."""
    match = re.match(r"---\n(.*?\n)---(\n|$)", content, re.DOTALL)
    data = yaml.safe_load(match[1]) if match else {}
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    errors = []

    def check(name: str, pattern: str, *, required: bool = False) -> None:
        values = data.get(name)
        for value in values if isinstance(values, list) else [values]:
            if required if value is None else not (isinstance(value, str) and re.fullmatch(pattern, value)):
                errors.append(f'"{name}" must match {pattern}, not {value!r}')

    repository = r"[\w.-]+(/[\w.-]+)?"
    rules = {"language": r"[a-z]{2,3}(-\w+)?", "license": r"[a-z0-9.-]+", "tags": r".+", "pipeline_tag": r"[a-z0-9-]+"}
    for name, pattern in (
        rules | {"library_name": r"[\w.-]+", "datasets": repository, "base_model": repository}
    ).items():
        check(name, pattern)
    check("license_name", r"[a-z0-9.-]+", required=data.get("license") == "other")
    check("license_link", r"LICENSE(\.md)?|https?://\S+", required=data.get("license") == "other")
    for entry in data.get("model-index") or []:
        if not entry.get("name"):
            errors.append('"model-index[0].name" is required')
        for result in entry["results"]:
            given = [result["task"].get("type"), *(result["dataset"].get(name) for name in ("type", "name"))]
            given += [metric.get(name) for metric in result["metrics"] for name in ("type", "value")]
            if None in given or not result["metrics"]:
                errors.append('"model-index[0].results" needs task, dataset and metrics')
    return errors


class _ConnectionCut(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    def handle_any(self):
        url = urlsplit(self.path)
        try:
            data = self.read_body(url.path)
        except _ConnectionCut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token == "hf_wrong":
                return self.refuse(401, "Unauthorized", "Invalid credentials in Authorization header")
            if token == "hf_reader" and re.search(r"/repos/create|/commit/|/preupload/|/branch/", url.path):
                return self.refuse(403, "Forbidden", "You don't have the rights to write here.")
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and method == ("GET" if self.command == "HEAD" else self.command):
                    return answer(self, data, **{k: v and unquote(v) for k, v in match.groupdict().items()})
            self.hub.unhandled.append((self.command, self.path))
            return self.refuse(404, "NotFound", f"no route {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self, path: str) -> bytes:
        kind = "uploads" if self.command == "PUT" else "commits" if "/commit/" in path else None
        cut = kind is not None and kind == self.hub.cut
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if cut:
                    raise _ConnectionCut
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if cut:
            self.rfile.read(length // 2)
            raise _ConnectionCut
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

    def refuse(self, code: int, kind: str, message: str):
        self.reply(code, {"error": message}, {"X-Error-Code": kind, "X-Error-Message": message})

    def look_up(self, name: str, revision: str = "main") -> tuple[dict | None, dict | None]:
        """Repository and commit, or two `None` after having said what is missing."""
        repo = self.hub.repos.get(name)
        commit = self.hub.find(repo, revision) if repo is not None else None
        if repo is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return (None, None) if commit is None else (repo, commit)

    def set_cut(self, data, kind):
        self.hub.cut = None if kind == "nothing" else kind
        self.reply(200, {})

    def whoami(self, data):
        if not self.headers.get("Authorization"):
            return self.refuse(401, "Unauthorized", "Invalid credentials")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        self.reply(200, {"type": "user", "id": "1", "name": self.hub.user, "orgs": [], "auth": token})

    def create_repo(self, data):
        asked = json.loads(data)
        if not self.headers.get("Authorization"):
            return self.refuse(401, "Unauthorized", "Invalid username or password.")
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self.reply(409, {"error": "exists", "url": url}, {"X-Error-Message": "exists"})
        self.hub.create(name, asked.get("private") or asked.get("visibility") == "private")
        self.reply(200, {"url": url, "name": name, "id": name})

    def validate_card(self, data):
        errors = [{"message": error} for error in card_errors(json.loads(data)["content"])]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def info(self, data, name, revision="main"):
        repo, commit = self.look_up(name, revision)
        if commit:
            about = {"_id": "0", "id": name, "modelId": name, "sha": commit["oid"], "private": repo["private"]}
            about |= {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            about |= {"author": name.split("/")[0], "lastModified": DATE, "createdAt": DATE}
            about["siblings"] = [{"rfilename": path} for path in sorted(commit["files"])]
            self.reply(200, about)

    @staticmethod
    def entry(path: str, file: dict) -> dict:
        entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
        if file.get("sha256"):
            entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 134}
        return entry

    def tree(self, data, name, revision, folder=None):
        _, commit = self.look_up(name, revision)
        if not commit:
            return None
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], {}
        for path, file in sorted(commit["files"].items()):
            if path.startswith(prefix):
                *parents, _ = path.removeprefix(prefix).split("/")
                for depth in range(1, (len(parents) if recursive else min(1, len(parents))) + 1):
                    parent = prefix + "/".join(parents[:depth])
                    folders[parent] = {"type": "directory", "path": parent, "oid": _git_id(parent.encode()), "size": 0}
                if recursive or not parents:
                    entries.append(self.entry(path, file))
        if folder and not entries and not folders:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self.reply(200, [*folders.values(), *entries])

    def paths_info(self, data, name, revision):
        _, commit = self.look_up(name, revision)
        if commit:
            asked = json.loads(data)["paths"] if data[:1] == b"{" else parse_qs(data.decode())["paths"]
            self.reply(200, [self.entry(p, commit["files"][p]) for p in asked if p in commit["files"]])

    def preupload(self, data, name, revision):
        _, commit = self.look_up(name, revision)
        if commit:
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
                upload, verify = f"{self.hub.url}/_lfs/{item['oid']}", f"{self.hub.url}/_lfs/verify"
                objects[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        self.reply(200, {"transfer": "basic", "objects": objects}, kind)

    def lfs_put(self, data, oid):
        if hashlib.sha256(data).hexdigest() != oid:
            return self.refuse(400, "BadOid", "sha256 mismatch")
        self.hub.blob(oid).write_bytes(data)
        self.reply(200, headers={"ETag": f'"{oid}"'})

    def lfs_verify(self, data):
        item = json.loads(data)
        blob = self.hub.blob(item["oid"])
        self.reply(200 if blob.exists() and blob.stat().st_size == item["size"] else 404, {})

    def make_commit(self, data, name, revision):
        repo, commit = self.look_up(name, revision)
        if not commit:
            return None
        files, title, parent = dict(commit["files"]), "", None
        for line in data.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title, parent = value["summary"], value.get("parentCommit")
            elif kind == "file":
                raw = base64.b64decode(value["content"])
                self.hub.blob(_git_id(raw)).write_bytes(raw)
                files[value["path"]] = {"oid": _git_id(raw), "size": len(raw)}
            elif kind == "lfsFile":
                sha256 = value["oid"]
                if not self.hub.blob(sha256).exists():
                    return self.refuse(400, "LfsMissing", f"Your push referenced unknown LFS file {sha256}")
                files[value["path"]] = {"oid": _git_id(sha256.encode()), "sha256": sha256, "size": value["size"]}
            elif kind == "deletedFile":
                files.pop(value["path"], None)
            elif kind == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
        if parent and not commit["oid"].startswith(parent):
            return self.refuse(412, "Precondition", "A commit has happened since. Please refresh and try again.")
        answer, branch = {}, revision
        if self.query.get("create_pr") == ["1"]:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo["refs"])
            branch, answer = f"refs/pr/{number}", {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        oid = self.hub.commit(repo, branch, title, files, commit["oid"])
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.reply(200, answer | {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def branch(self, data, name, branch):
        repo, commit = self.look_up(name)
        if commit and branch in repo["refs"]:
            self.refuse(409, "RefExists", "Reference already exists")
        elif commit:
            repo["refs"][branch] = commit["oid"]
            self.reply(200, {})

    def tag(self, data, name, revision):
        repo, commit = self.look_up(name, revision)
        if commit:
            repo["tags"][json.loads(data)["tag"]] = commit["oid"]
            self.reply(200, {})

    def refs(self, data, name):
        repo, commit = self.look_up(name)
        if commit:

            def rows(kind: str, refs: dict) -> list[dict]:
                return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

            branches, tags = rows("heads", repo["refs"]), rows("tags", repo["tags"])
            self.reply(200, {"branches": branches, "tags": tags, "converts": []})

    def file(self, data, name, revision, path):
        _, commit = self.look_up(name, revision)
        if not commit:
            return None
        headers = {"X-Repo-Commit": commit["oid"]}
        file = commit["files"].get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.reply(404, {"error": "Entry not found"}, headers)
        headers["ETag"] = f'"{file["oid"]}"'
        if not file.get("sha256"):
            return self.serve(self.hub.blob(file["oid"]), headers)
        headers |= {"X-Linked-Etag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
        self.reply(302, None, headers | {"Location": f"{self.hub.files_url}/_files/{file['sha256']}"})

    def large_file(self, data, oid):
        self.serve(self.hub.blob(oid), {"ETag": f'"{oid}"'})

    def serve(self, path: Path, headers: dict):
        data = path.read_bytes()
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.command != "GET":
            return self.reply(200, headers=headers, data=data)
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return self.reply(416, None, headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.reply(206, headers=headers, data=data[start : end + 1])


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", r"/_cut/(?P<kind>uploads|commits|nothing)", _Handler.set_cut),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", rf"/api/models/{NAME}", _Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/{REVISION}", _Handler.info),
    ("GET", rf"/api/models/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/models/{NAME}/paths-info/{REVISION}", _Handler.paths_info),
    ("POST", rf"/api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/{REVISION}", _Handler.make_commit),
    ("POST", rf"/api/models/{NAME}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"/api/models/{NAME}/tag/{REVISION}", _Handler.tag),
    ("GET", rf"/api/models/{NAME}/refs", _Handler.refs),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", r"/_lfs/verify", _Handler.lfs_verify),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET", r"/_files/(?P<oid>[0-9a-f]{64})", _Handler.large_file),
    ("GET", rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", _Handler.file),
]
