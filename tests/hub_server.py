"""A Hub on this machine for tests: repositories, a server of them, a proxy that damages what it answers, clients."""

import fnmatch
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
CONFIG = """\
[basic]
host = "{host}"
port = {port}
repos-path = "{directory}/repos"
mirrors-path = ["{mirror}"]

[accessibility]
offline = true
"""


def server_script() -> Path | None:
    """The console script of olah, the server of the tests, if it is installed."""
    script = shutil.which("olah-cli", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(script) if script else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


# Repositories


def commit_repository(
    mirror, repository, files, branch="main", tag=None, lfs=(".safetensors", ".bin"), message="files"
):
    """Commit files to `<mirror>/models/<repository>`, which is made if need be, and return the hash of the commit.

    Args:
        files: name -> content, a path to copy, or None to remove the file.
        branch: where to; a new one starts from the branch of the commit before.
        tag: name of a tag to put on the commit.
        lfs: endings of names that are kept as LFS does: a pointer in the tree, the content beside it.
    """
    directory = Path(mirror) / "models" / repository
    if not directory.exists():
        directory.mkdir(parents=True)
        _git(directory, "init", "--quiet", f"--initial-branch={branch}")
        for key, value in {"user.name": "A", "user.email": "a@example.org", "commit.gpgsign": "false"}.items():
            _git(directory, "config", key, value)
    elif branch not in _git(directory, "branch", "--format=%(refname:short)").split():
        _git(directory, "checkout", "--quiet", "-b", branch)
    else:
        _git(directory, "checkout", "--quiet", branch)
    for name, content in files.items():
        target = directory / name
        if content is None:
            target.unlink()
            continue
        content = content.read_bytes() if isinstance(content, Path) else content
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_store_object(directory, content) if name.endswith(tuple(lfs)) else content)
    _git(directory, "add", "--all")
    _git(directory, "commit", "--quiet", "--allow-empty", "--message", message)
    if tag:
        _git(directory, "tag", tag)
    return _git(directory, "rev-parse", "HEAD").strip()


def object_path(mirror, repository, content: bytes) -> Path:
    """Where a repository keeps this content if LFS has it."""
    digest = hashlib.sha256(content).hexdigest()
    return Path(mirror) / "models" / repository / ".git/lfs/objects" / digest[:2] / digest[2:4] / digest


def _store_object(directory: Path, content: bytes) -> bytes:
    path = object_path(directory.parents[2], f"{directory.parent.name}/{directory.name}", content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (path.name.encode(), len(content))


def _git(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run from a git hook
        environment.pop(name, None)
    command = ["git", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True, text=True).stdout


# The server


class HubServer:
    """olah, serving the git repositories of a mirror directory on a port that stays the same over restarts."""

    def __init__(self, mirror, directory):
        self.directory = Path(directory)
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._process = None
        self.directory.mkdir(parents=True, exist_ok=True)
        config = CONFIG.format(host=HOST, port=self.port, directory=self.directory.as_posix(), mirror=mirror)
        (self.directory / "config.toml").write_text(config)

    def start(self, timeout=60):
        command = [str(server_script()), "--config", "config.toml", "--log-path", "logs"]
        log = self.directory / "output.txt"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=output, stderr=output, start_new_session=True
            )
        end = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        return self

    def stop(self):
        """Kill it and its children."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process = None

    def _answers(self):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{self.url}/api/models/no/repository", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


# The proxy


class DamagingProxy:
    """Passes requests on to a server, counts them, and damages the answers to those whose path fits a pattern.

    Patterns are those of the shell, over the whole path (`*/org/name/*/config.json`). The first that fits is taken.

    The server answers 401 to whatever is missing; the proxy turns that into what huggingface.co says.
    """

    def __init__(self, upstream):
        self.upstream = upstream.removeprefix("http://")
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.requests = Counter()  # (method, path) -> number
        self._rules = []
        self._server = None

    def change(self, pattern, function):
        """Give `function(body)` instead of the file."""
        self._rules.append((pattern, "GET", lambda handler, answer: handler.send(*answer[:2], function(answer[2]))))

    def flip(self, pattern):
        """Turn over the bits of a byte near the end; size and headers stay."""
        self.change(pattern, lambda body: body[:-9] + bytes([body[-9] ^ 255]) + body[-8:])

    def cut(self, pattern, size, times=None):
        """Announce the whole file, send `size` bytes of it, close the connection: always, or the first `times`."""
        left = [times]

        def answer_part(handler, answer):
            if left[0] is not None:
                left[0] -= 1
            handler.send(*answer, limit=size if left[0] is None or left[0] >= 0 else None)

        self._rules.append((pattern, "GET", answer_part))

    def die(self, pattern, size):
        """Send `size` bytes of the file, and listen no more."""

        def answer_and_die(handler, answer):
            self.stop()
            handler.send(*answer, limit=size)

        self._rules.append((pattern, "GET", answer_and_die))

    def clear(self):
        self._rules.clear()

    def start(self):
        proxy = self

        class Handler(_ProxyHandler):
            def answer(self):
                path = self.path.partition("?")[0]
                proxy.requests[self.command, path] += 1
                answer = proxy.as_the_hub(path, proxy.ask(self))
                for pattern, method, rule in proxy._rules:
                    if method == self.command and fnmatch.fnmatchcase(path, pattern):
                        return rule(self, answer)
                return self.send(*answer)

            do_GET = do_HEAD = do_POST = answer

        self._server = ThreadingHTTPServer((HOST, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.socket.close()

    def ask(self, handler):
        """Status, headers and body of the server's answer."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        return self._request(handler.command, handler.path, body, dict(handler.headers))

    def as_the_hub(self, path, answer):
        """The answer, or that of huggingface.co to a missing revision or file."""
        place = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/(?:revision|tree|resolve)/([^/]+)(?:/.*)?", path)
        if answer[0] < 400 or place is None:
            return answer
        repository, revision = place.groups()
        if self._request("GET", f"/api/models/{repository}/refs")[0] != 200:
            return answer
        status, _, body = self._request("GET", f"/api/models/{repository}/revision/{revision}")
        if status != 200:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, b""
        headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return 404, {**headers, "X-Repo-Commit": json.loads(body)["sha"]}, b""

    def _request(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            dropped = ("transfer-encoding", "connection", "date", "server")
            kept = {key: value for key, value in response.getheaders() if key.lower() not in dropped}
            return response.status, kept, response.read()
        finally:
            connection.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class _ProxyHandler(BaseHTTPRequestHandler):
    def send(self, status, headers, body, limit=None):
        if self.command != "HEAD":
            headers = {key: value for key, value in headers.items() if key.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(body[:limit])
        except ConnectionError:  # the client was killed or has enough
            pass

    def log_message(self, *_):
        pass


# Clients


def client_environment(server_url, cache, **extra) -> dict[str, str]:
    """Environment of a client that knows this server and this cache, no token and nothing of the user's."""
    cache = Path(cache)
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PYTHONPATH": os.pathsep.join(path),
        "HOME": str(cache / "home"),
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_CACHE": str(cache / "hf" / "hub"),
        "TORCH_HOME": str(cache / "torch"),
        "HF_ENDPOINT": server_url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def run_client(code, server_url, cache, timeout=240, **extra) -> subprocess.CompletedProcess:
    """Run Python code in a fresh process: the Hub's client reads its settings when it is imported."""
    Path(cache).mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=client_environment(server_url, cache, **extra),
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def evaluate(expressions, server_url, cache, **extra) -> dict:
    """Evaluate Python expressions in one fresh process, one after the other; what `attempt` says of each by its key."""
    code = (
        "import json\nimport minmax_entropy as mme\nfrom hub_server import attempt\n"
        f"results = {{key: attempt(lambda: eval(code)) for key, code in {expressions!r}.items()}}\n"
        "print(json.dumps(results))"
    )
    process = run_client(code, server_url, cache, **extra)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def attempt(function) -> dict:
    """A description of the model that `function` makes, or of the error it raises; JSON can hold it."""
    try:
        return describe(function())
    except Exception as error:
        return {"error": [kind.__name__ for kind in type(error).__mro__], "message": str(error)}


def describe(model) -> dict:
    """Weights (a hash for each tensor), outputs and mode of a model."""
    import torch

    training = model.training
    images = torch.randn(2, model.in_chans, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.eval()(images)
    model.train(training)
    return {
        "weights": {key: tensor_hash(value) for key, value in model.state_dict().items()},
        "logits": output.logits.tolist(),
        "mask": output.mask.mean((1, 2, 3)).tolist(),
        "training": training,
        "class_names": model.class_names,
    }


def tensor_hash(tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
