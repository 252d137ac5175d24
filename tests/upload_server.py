"""An endpoint of the Hub for uploads, for tests: it answers the client's calls, and keeps a record of them.

What is committed goes into the git repositories of a mirror directory, which `HubServer` serves.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server import HOST, commit_repository, free_port

# The steps of an upload, in the order of the client's calls: name, method, path.
STEPS = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("branch", "POST", r"/api/models/(?P<repository>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)"),
    ("validate-yaml", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", r"/api/models/(?P<repository>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    ("batch", "POST", r"/(?P<repository>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("object", "PUT", r"/(?P<repository>[^/]+/[^/]+)/objects/(?P<oid>[0-9a-f]{64})"),
    ("verify", "POST", r"/(?P<repository>[^/]+/[^/]+)\.git/info/lfs/objects/verify"),
    ("commit", "POST", r"/api/models/(?P<repository>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    ("tree", "GET", r"/api/models/(?P<repository>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?"),
]
WITHOUT_TOKEN = ("validate-yaml", "object")  # the address of an object is a signed one


class UploadServer:
    """Takes uploads to models.

    Attributes:
        url: where it listens.
        requests: what was asked, in order: `step`, `method`, `path`, `query`, `headers` (keys in lower case), `body`
            (JSON, lines of JSON as a list, or bytes), `status` of the answer.
        repositories: name -> what `create` was asked, the last `commit`, and `files` by branch (name -> content).
    """

    def __init__(self, mirror, token):
        self.mirror = mirror
        self.token = token
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.requests = []
        self.repositories = {}
        self._objects = {}
        self._failures = {}
        self._server = None

    def fail(self, step, status, repository, message="refused"):
        """From now on answer a step of a repository with this status."""
        self._failures[step, repository] = (status, message)

    def of(self, step, repository=None):
        """The requests of a step."""
        place = f"/{repository}" if repository else ""
        return [request for request in self.requests if request.step == step and place in request.path]

    # The answers: status and what is sent as JSON

    def answer(self, request, match):
        repository = _new_name(request.body) if request.step == "create" else match.get("repository")
        if (request.step, repository) in self._failures:
            status, message = self._failures[request.step, repository]
            return status, {"error": message}
        if request.step not in WITHOUT_TOKEN and request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if "repository" in match and repository not in self.repositories:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        return getattr(self, f"_{request.step.replace('-', '_')}")(request, **match)

    def _whoami(self, request):
        return 200, {"type": "user", "name": "user", "orgs": [{"name": "org"}]}

    def _create(self, request):
        name = _new_name(request.body)
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = SimpleNamespace(create=request.body, commit=None, files={"main": {}})
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def _branch(self, request, repository, revision):
        files = self.repositories[repository].files
        if revision in files:
            return 409, {"error": f"Reference already exists: {revision}"}
        files[revision] = dict(files["main"])
        return 200, {}

    def _validate_yaml(self, request):
        front = re.match(r"---\n(.*?)\n---\n", request.body["content"], flags=re.DOTALL)
        return 200, {"errors": [] if front else [{"message": "no metadata"}], "warnings": []}

    def _preupload(self, request, repository, revision):
        if unquote(revision) not in self.repositories[repository].files:
            return 404, {"error": f"Invalid rev id: {revision}", "code": "RevisionNotFound"}

        def mode(name):
            return "lfs" if name.endswith(".safetensors") else "regular"

        files = [file["path"] for file in request.body["files"]]
        return 200, {"files": [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in files]}

    def _batch(self, request, repository):
        def actions(oid):
            upload = {"href": f"{self.url}/{repository}/objects/{oid}", "header": {}}
            return {"upload": upload, "verify": {"href": f"{self.url}/{repository}.git/info/lfs/objects/verify"}}

        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in request.body["objects"]]
        for wanted in objects:
            if (repository, wanted["oid"]) not in self._objects:
                wanted["actions"] = actions(wanted["oid"])
        return 200, {"transfer": "basic", "objects": objects}

    def _object(self, request, repository, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            return 400, {"error": "the content has another hash"}
        self._objects[repository, oid] = request.body
        return 200, {}

    def _verify(self, request, repository):
        stored = self._objects.get((repository, request.body["oid"]))
        return (200, {}) if stored is not None and len(stored) == request.body["size"] else (404, {"error": "missing"})

    def _commit(self, request, repository, revision):
        branch = "pull-request-1" if request.query.get("create_pr") else unquote(revision)
        target = self.repositories[repository]
        files = dict(target.files.get(branch, target.files["main"]))
        before = set(files)
        for line in request.body:
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if (repository, value["oid"]) not in self._objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = self._objects[repository, value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            else:
                return 400, {"error": f"unknown operation {line['key']}"}
        changes = {**files, **dict.fromkeys(before - set(files))}
        commit = commit_repository(self.mirror, repository, changes, branch, message=header["summary"])
        target.files[branch] = files
        target.commit = SimpleNamespace(hash=commit, branch=branch, **header)
        answer = {"commitUrl": f"{self.url}/{repository}/commit/{commit}", "commitOid": commit, "success": True}
        if request.query.get("create_pr"):
            answer["pullRequestUrl"] = f"{self.url}/{repository}/discussions/1"
        return 200, answer

    def _info(self, request, repository, revision=None):
        target = self.repositories[repository]
        names = target.files.get(unquote(revision or "main"))
        if names is None:
            return 404, {"error": f"Invalid rev id: {revision}", "code": "RevisionNotFound"}
        sha = target.commit.hash if target.commit else "0" * 40
        return 200, {"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in names]}

    def _tree(self, request, repository, revision):
        files = self.repositories[repository].files.get(unquote(revision), {})

        def oid(content):
            return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

        return 200, [
            {"type": "file", "path": name, "size": len(content), "oid": oid(content)} for name, content in files.items()
        ]

    # Start and end

    def start(self):
        server = self

        class Handler(_Handler):
            upload_server = server

        self._server = ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        self._server.shutdown()
        self._server.socket.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def _new_name(body):
    return f"{body['organization'] or 'user'}/{body['name']}"


class _Handler(BaseHTTPRequestHandler):
    def handle_request(self):
        place = urlsplit(self.path)
        request = SimpleNamespace(
            step=None,
            method=self.command,
            path=place.path,
            query={key: values[-1] for key, values in parse_qs(place.query).items()},
            headers={key.lower(): value for key, value in self.headers.items()},
        )
        request.body = self._body()
        status, content = 404, {"error": f"unknown address {self.path}"}
        for step, method, pattern in STEPS:
            match = re.fullmatch(pattern, place.path)
            if match and method == self.command:
                request.step = step
                named = {key: value for key, value in match.groupdict().items() if value is not None}
                status, content = self.upload_server.answer(request, named)
                break
        request.status = status
        self.upload_server.requests.append(request)
        self._send(status, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        if "ndjson" in kind:
            return [json.loads(line) for line in body.splitlines()]
        return json.loads(body) if "json" in kind else body

    def _send(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
            self.send_header("X-Error-Code", content.get("code", ""))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
