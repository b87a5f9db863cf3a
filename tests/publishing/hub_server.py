"""A small Hugging Face Hub for tests, on 127.0.0.1: the endpoints that publishing and downloading use, with state.

Commits are real: they have trees, git blob ids, parents that are checked (412), LFS objects that must have been
uploaded and hash to their name, and tags. There is no Xet. Written against huggingface_hub 2.4.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_testWriteToken0123456789"
READ_TOKEN = "hf_testReadToken0123456789"
FINE_TOKEN = "hf_testFineToken0123456789"  # may write to what is acme's, and to one repository of its own
USER = "tester"
_LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
_LFS_FROM = 5_000_000  # bytes; larger files are LFS whatever their name
_TREE_PAGE = 5  # entries; small, so that clients have to follow the pages


class Refused(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class Blob:
    """One file of a tree; LFS files are known to the Hub by sha256, plain ones by git's blob id."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def git_id(self) -> str:
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The files at the head, less the one that every new repository has."""
        return {path: blob.data for path, blob in self.head.tree.items() if path != ".gitattributes"}

    def add(self, message: str, tree: dict[str, Blob]) -> Commit:
        commit = Commit(uuid.uuid4().hex + "0" * 8, self.head.oid if self.commits else None, message, tree)
        self.commits.append(commit)
        return commit


class HubServer:
    """The state behind the server, for tests to look into and to meddle with."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # by sha256
        self.requests: list[tuple[str, str]] = []  # method and path
        self.before_commit: Callable[[], None] | None = None  # called once, when the next commit arrives
        self.before_tag: Callable[[], object] | None = None  # called once, when the next tag is to be made
        self.before_untag: Callable[[], object] | None = None  # and when the next one is to be deleted
        self.failing: dict[str, int] = {}  # status to answer with, by regular expression on "METHOD path"
        self.lock = threading.RLock()

    def commit_as_somebody_else(self, repo_id: str, path: str, data: bytes) -> None:
        repo = self.repos[repo_id]
        repo.add(f"Add {path}", {**repo.head.tree, path: Blob(data, lfs=False)})

    # Each answers (status, headers, body) and is called under the lock, with the repository's id where there is one.

    def whoami(self, token: str) -> Any:
        access: dict[str, Any] = {"role": {TOKEN: "write", READ_TOKEN: "read", FINE_TOKEN: "fineGrained"}[token]}
        if token == FINE_TOKEN:
            scopes = {"acme": ["repo.content.read", "repo.write"], USER: ["repo.content.read"]}
            scopes[f"{USER}/capitals"] = ["repo.write"]
            scoped = [{"entity": {"name": name}, "permissions": permissions} for name, permissions in scopes.items()]
            access["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [{"name": "acme", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
        return {"type": "user", "name": USER, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}}

    def create(self, asked: dict[str, Any]) -> Any:
        namespace = asked.get("organization") or USER
        if namespace not in (USER, "acme"):
            raise Refused(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
        repo_id = f"{namespace}/{asked['name']}"
        url = f"{self.endpoint}/{repo_id}"
        if repo_id in self.repos:
            raise Refused(409, "You already created this model repo", body={"error": "exists", "url": url})
        repo = self.repos[repo_id] = Repo(private=asked.get("visibility") == "private", commits=[])
        repo.add("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)})
        return {"url": url, "name": repo_id}

    def preupload(self, repo: Repo, asked: dict[str, Any]) -> Any:
        ignored = repo.head.tree.get(".gitignore", Blob(b"", lfs=False)).data.decode().split()
        answers = []
        for file in asked["files"]:
            there = repo.head.tree.get(file["path"])
            lfs = file["path"].endswith(_LFS_SUFFIXES) or file["size"] >= _LFS_FROM
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": file["path"] in ignored,
                    "oid": None if there is None else there.sha256 if there.lfs else there.git_id,
                }
            )
        return {"files": answers}

    def lfs_batch(self, asked: dict[str, Any]) -> Any:
        objects = []
        for entry in asked["objects"]:
            oid, size = entry["oid"], entry["size"]
            upload = {"href": f"{self.endpoint}/lfs/{oid}"}
            verify = {"href": f"{self.endpoint}/lfs/{oid}/verify"}
            actions = {} if oid in self.lfs else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": oid, "size": size, **actions})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str, data: bytes) -> Any:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "the content does not have the hash that it is named after")
        self.lfs[oid] = data
        return {}

    def lfs_verify(self, oid: str, asked: dict[str, Any]) -> Any:
        if len(self.lfs.get(oid, b"")) != asked["size"]:
            raise Refused(404, "LFS object not found")
        return {}

    def commit(self, repo_id: str, repo: Repo, lines: list[dict[str, Any]]) -> Any:
        if self.before_commit is not None:
            meddle, self.before_commit = self.before_commit, None
            meddle()
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head.oid) != repo.head.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.head.tree)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.lfs:
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                tree[value["path"]] = Blob(self.lfs[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", code="EntryNotFound")
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        made = repo.add(header["summary"], tree)
        return {"success": True, "commitOid": made.oid, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{made.oid}"}

    def tag(self, repo: Repo, revision: str, asked: dict[str, Any]) -> Any:
        if self.before_tag is not None:
            meddle, self.before_tag = self.before_tag, None
            meddle()
        if asked["tag"] in repo.tags:
            raise Refused(409, "Tag already exists")
        repo.tags[asked["tag"]] = self.at(repo, revision).oid
        return {}

    def untag(self, repo: Repo, tag: str) -> Any:
        if self.before_untag is not None:
            meddle, self.before_untag = self.before_untag, None
            meddle()
        if repo.tags.pop(tag, None) is None:
            raise Refused(404, "Tag not found", code="RevisionNotFound")
        return {}

    def refs(self, repo: Repo) -> Any:
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
        return {"branches": [main], "converts": [], "tags": tags}

    def at(self, repo: Repo, revision: str) -> Commit:
        oid = repo.head.oid if revision == "main" else repo.tags.get(revision, revision)
        found = next((commit for commit in repo.commits if commit.oid == oid), None)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return found

    def info(self, repo_id: str, repo: Repo, commit: Commit) -> Any:
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        card = commit.tree.get("README.md", Blob(b"", lfs=False)).data.decode()
        return {
            "cardData": front_matter(card) or {},
            "_id": "0" * 24,
            "id": repo_id,
            "sha": commit.oid,
            "private": repo.private,
            "tags": [],
            "siblings": siblings,
        }

    def tree(self, commit: Commit) -> list[dict[str, Any]]:
        folders = {str(parent) for path in commit.tree for parent in Path(path).parents} - {"."}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders
        ]
        for path, blob in commit.tree.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.git_id, "size": len(blob.data)}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
            entries.append(entry)
        return sorted(entries, key=lambda entry: str(entry["path"]))

    def validate_yaml(self, asked: dict[str, Any]) -> Any:
        errors = card_errors(asked["content"])
        if errors:
            raise Refused(
                400, "Invalid YAML", body={"errors": [{"message": error} for error in errors], "warnings": []}
            )
        return {"errors": [], "warnings": []}


def front_matter(card: str) -> Any:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(found.group(1)) if found else None


def card_errors(card: str) -> list[str]:
    """What the Hub would find wrong in the front matter, as far as a local server can know it."""
    try:
        data = front_matter(card)
        if data is None:
            return ["no front matter"]
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    errors = []
    base = data.get("base_model")
    if base is not None and not re.fullmatch(r"([\w.-]+/)?[\w.-]+", str(base)):
        errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    for model in data.get("model-index", []):
        for result in model["results"]:
            if not (result["task"].get("type") and result["dataset"].get("type") and result["dataset"].get("name")):
                errors.append('"model-index[0].results[0]" lacks a task type or a dataset')
            if not all(isinstance(metric.get("value"), int | float | str) for metric in result["metrics"]):
                errors.append('"model-index[0].results[0].metrics[0].value" is required')
    if not isinstance(data.get("license", ""), str | list):
        errors.append('"license" must be a string')
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            with self.hub.lock:
                self.hub.requests.append((self.command, path))
                for pattern, status in self.hub.failing.items():
                    if re.search(pattern, f"{self.command} {path}"):
                        raise Refused(status, "told to fail")
                answer, headers = self._answer(path, body)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps(refused.body or {"error": refused.message}).encode(), headers)
            return
        self._send(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self, path: str, body: bytes) -> tuple[Any, dict[str, str]]:
        hub = self.hub
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})(/verify)?", path):
            # Where the Hub sends uploads is storage with signed addresses: there no token is asked for.
            oid, verify = found.groups()
            return (hub.lfs_verify(oid, json.loads(body)) if verify else hub.lfs_put(oid, body)), {}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":  # anybody may ask
            return hub.validate_yaml(json.loads(body)), {}
        if token not in (TOKEN, READ_TOKEN, FINE_TOKEN):
            raise Refused(401, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return hub.whoami(token), {}
        if self.command in ("POST", "DELETE") and token == READ_TOKEN:
            raise Refused(403, "This token may only read")
        if path == "/api/repos/create":
            return hub.create(json.loads(body)), {}
        return self._answer_for_repo(path, body)

    def _answer_for_repo(self, path: str, body: bytes) -> tuple[Any, dict[str, str]]:
        hub = self.hub
        found = re.fullmatch(
            r"/(?:api/models/|(?:api/)?datasets/)?([^/]+/[^/]+?)(\.git/info/lfs/objects/batch|/.*)?", path
        )
        if found is None or found.group(1) not in hub.repos:
            raise Refused(404, "Repository not found", code="RepoNotFound")
        repo_id, rest = found.group(1), found.group(2) or ""
        repo = hub.repos[repo_id]
        if rest.startswith(".git"):
            return hub.lfs_batch(json.loads(body)), {}
        verb, _, revision = rest.lstrip("/").partition("/")
        if verb == "resolve":
            revision, _, name = revision.partition("/")
            return self._file(hub.at(repo, revision), name)
        match self.command, verb:
            case "POST", "preupload":
                return hub.preupload(repo, json.loads(body)), {}
            case "POST", "commit":
                return hub.commit(repo_id, repo, [json.loads(line) for line in body.splitlines()]), {}
            case "POST", "tag":
                return hub.tag(repo, revision, json.loads(body)), {}
            case "DELETE", "tag":
                return hub.untag(repo, revision), {}
            case "GET", "" | "revision":
                return hub.info(repo_id, repo, hub.at(repo, revision or "main")), {}
            case "GET", "auth-check":
                return {}, {}
            case "GET", "refs":
                return hub.refs(repo), {}
            case "GET", "tree":
                revision, _, folder = revision.partition("/")
                entries = hub.tree(hub.at(repo, revision))
                if folder and folder not in {entry["path"] for entry in entries}:
                    raise Refused(404, f"{folder} does not exist", code="EntryNotFound")
                return self._tree_page([entry for entry in entries if entry["path"].startswith(folder)])
        raise Refused(404, f"this test server does not know {self.command} {path}")

    def _tree_page(self, entries: list[dict[str, Any]]) -> tuple[Any, dict[str, str]]:
        cursor = re.search(r"cursor=(\d+)", urlsplit(self.path).query)
        start = int(cursor.group(1)) if cursor else 0
        end = start + _TREE_PAGE
        if end >= len(entries):
            return entries[start:], {}
        following = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=True&expand=False&cursor={end}"
        return entries[start:end], {"Link": f'<{following}>; rel="next"'}

    def _file(self, commit: Commit, name: str) -> tuple[Any, dict[str, str]]:
        if name not in commit.tree:
            raise Refused(404, "Entry not found", code="EntryNotFound")
        blob = commit.tree[name]
        etag = blob.sha256 if blob.lfs else blob.git_id
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"'}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(blob.data))}
        return blob.data, headers


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run an empty Hub on a free port of 127.0.0.1; `TOKEN` may write, `READ_TOKEN` may read."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
