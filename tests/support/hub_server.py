"""A small Hub on loopback: what `huggingface_hub` asks of one to make, fill and read model repositories."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_loopback"
USER = "tester"


class Hub:
    """The repositories: by id, branch and path the bytes of a file.

    Attributes:
        failures: statuses to answer next, by a part of the address; "cut" closes the connection instead.
        requests: how many there were, by method and address without the repository.
        private: ids of private repositories.
        read_only: ids of repositories that nobody may create.
        tags: by id and tag the commit.
    """

    def __init__(self):
        self.repos = {}
        self.commits = {}
        self.private = set()
        self.read_only = set()
        self.tags = {}
        self.objects = {}
        self.failures = {}
        self.requests = Counter()
        self.lock = threading.Lock()

    def files(self, repo, revision="main"):
        """The files of a branch, a tag or a commit."""
        revision = self.tags.get((repo, revision), revision)
        for branch, files in self.repos[repo].items():
            if revision in (branch, self.commits.get((repo, branch))):
                return files
        return None

    def commit(self, repo, branch):
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repos[repo][branch].items())
        self.commits[repo, branch] = hashlib.sha1(json.dumps([branch, content]).encode()).hexdigest()
        return self.commits[repo, branch]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, message):
        codes = {404: "RepoNotFound", 401: "Unauthorized", 403: "Forbidden"}
        self.answer({"error": message}, status, X_Error_Message=message, X_Error_Code=codes.get(status, "Error"))

    def handle_any(self):
        size = int(self.headers.get("Content-Length") or 0)
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.requests[f"{self.command} {path}"] += 1
        for part, statuses in self.hub.failures.items():
            if part in f"{self.command} {path}" and statuses:
                status = statuses.pop(0)
                if status == "cut":
                    # In the middle of what is being uploaded.
                    self.rfile.read(min(size, 64))
                    self.connection.close()
                    self.close_connection = True
                    return
                self.rfile.read(size)
                self.fail(status, f"told to answer {status}")
                return
        body = self.rfile.read(size)
        with self.hub.lock:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match is not None and self.command in method.split("|"):
                    action(self, body, parse_qs(address.query), *match.groups())
                    return
        self.fail(404, f"no such address: {self.command} {path}")

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def authorised(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.fail(401, "Invalid username or password.")
        return False

    def readable(self, repo):
        if repo not in self.hub.repos:
            self.fail(404, "Repository not found")
            return False
        if repo in self.hub.private:
            return self.authorised()
        return True

    # Accounts and repositories

    def whoami(self, body, query):
        if self.authorised():
            self.answer({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body, query):
        if not self.authorised():
            return
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if repo in self.hub.read_only:
            self.fail(403, "You have no right to create this model repo")
            return
        address = {"url": f"http://{self.headers['Host']}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repos:
            self.answer({**address, "error": "You already created this model repo"}, 409)
            return
        self.hub.repos[repo] = {"main": {".gitattributes": b""}}
        self.hub.commit(repo, "main")
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.answer(address)

    def branch(self, body, query, repo, branch):
        if not self.authorised():
            return
        if branch in self.hub.repos[repo]:
            self.fail(409, "Reference already exists")
            return
        self.hub.repos[repo][branch] = dict(self.hub.repos[repo]["main"])
        self.hub.commit(repo, branch)
        self.answer({})

    def tag(self, body, query, repo, revision):
        if self.authorised():
            self.hub.tags[repo, json.loads(body)["tag"]] = self.hub.commits.get((repo, revision), revision)
            self.answer({})

    def info(self, body, query, repo, revision=None):
        if not self.readable(repo):
            return
        files = self.hub.files(repo, revision or "main")
        if files is None:
            self.answer(
                {"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound", X_Error_Message="no revision"
            )
            return
        sha = next(
            value
            for (name, _), value in self.hub.commits.items()
            if name == repo and self.hub.files(repo, value) is files
        )
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.answer(
            {
                "_id": "1",
                "id": repo,
                "modelId": repo,
                "sha": sha,
                "siblings": siblings,
                "tags": [],
                "private": repo in self.hub.private,
                "downloads": 0,
                "likes": 0,
            }
        )

    # Uploads

    def preupload(self, body, query, repo, revision):
        if self.authorised():
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})

    def lfs_batch(self, body, query, repo):
        if self.authorised():
            host = self.headers["Host"]
            objects = [
                {**item, "actions": {"upload": {"href": f"http://{host}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})

    def store(self, body, query, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer()

    def commit(self, body, query, repo, revision):
        if not self.authorised():
            return
        if revision not in self.hub.repos[repo]:
            self.answer(
                {"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound", X_Error_Message="no revision"
            )
            return
        files = dict(self.hub.repos[repo][revision])
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repos[repo][revision] = files
        oid = self.hub.commit(repo, revision)
        self.answer(
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{oid}",
                "hookOutput": "",
            }
        )

    def validate(self, body, query):
        text = json.loads(body)["content"]
        errors = card_errors(text)
        self.answer({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    # Downloads

    def tree(self, body, query, repo, revision, folder=None):
        if not self.readable(repo):
            return
        prefix = f"{folder}/" if folder else ""
        files = {path: data for path, data in self.hub.files(repo, revision).items() if path.startswith(prefix)}
        if not files:
            self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message=f"{folder} does not exist")
            return
        self.answer(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(files.items())
            ]
        )

    def resolve(self, body, query, repo, revision, path):
        if not self.readable(repo):
            return
        files = self.hub.files(repo, revision)
        if files is None or path not in files:
            code = "RevisionNotFound" if files is None else "EntryNotFound"
            self.answer(b"", 404, X_Error_Code=code, X_Error_Message=f"{path} does not exist")
            return
        sha = next(
            value
            for (name, _), value in self.hub.commits.items()
            if name == repo and self.hub.files(repo, value) is files
        )
        data = files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.answer(data, ETag=etag, X_Repo_Commit=sha, Accept_Ranges="none")


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", Handler.branch),
    ("POST", rf"/api/models/{REPO}/tag/(.+)", Handler.tag),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", Handler.commit),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", Handler.info),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/objects/(\w+)", Handler.store),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET|HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


def card_errors(text):
    """What the Hub would say is wrong with a model card's metadata; the rules that are known of it."""
    match = re.match(r"\s*---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return ["there are no metadata"]
    data = yaml.safe_load(match.group(1))
    errors = []
    if not isinstance(data, dict):
        return ["the metadata are no mapping"]
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            errors.append(
                f'"base_model[0]" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
            )
    if data.get("base_model_relation") not in (None, "finetune", "adapter", "merge", "quantized"):
        errors.append("base_model_relation is not valid")
    if not all(isinstance(tag, str) and tag for tag in data.get("tags") or []):
        errors.append("tags are no strings")
    for model in data.get("model-index") or []:
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" must be a string')
        for result in model.get("results", []):
            for part, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
                errors += [
                    f"{part}.{key} is required" for key in keys if not isinstance(result.get(part, {}).get(key), str)
                ]
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), (int, float)):
                    errors.append(f"metric {metric} is not valid")
    return errors


@contextmanager
def serve():
    """A Hub and its address, on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
