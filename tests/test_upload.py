"""Uploads to a Hub: the real client against an endpoint on this machine that records what it is asked."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from hub_server import HubServer, describe, evaluate, run_client, server_script
from upload_server import UploadServer

import minmax_entropy as mme

pytestmark = [
    pytest.mark.skipif(server_script() is None, reason="the server is not installed: pip install olah"),
    pytest.mark.xdist_group("test_upload"),  # one server for all of them
]

TOKEN = "hf_test"
NAMES = ["a", "b", "c"]
UPLOAD = dict(
    token=TOKEN,
    private=True,
    commit_message="A first model",
    create_pr=False,
    metrics={"f1_foreground": 0.7},
    license="apache-2.0",
    class_names=NAMES,
)
REFUSED = {  # step -> status
    "create": 500,
    "preupload": 403,
    "batch": 403,
    "object": 403,
    "commit": 500,
}
CODE = """
import json
import minmax_entropy as mme
from hub_server import attempt, describe

model = mme.create_model({source!r}).train()
before = describe(model)
results = {{"address": str(model.push_to_hub("org/name", **{upload!r}))}}


def push(name, **keywords):
    def upload():
        model.push_to_hub(name, **{{**{upload!r}, **keywords}})
        return model

    return attempt(upload)


for step in {refused!r}:
    results[step] = push(f"org/{{step}}")
push("org/twice", max_shard_size="200KB")
push("org/twice")
results["token"] = push("org/other", token="hf_wrong")
results["unchanged"] = describe(model) == before
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """One client, that uploads a model once with success and is refused several times."""
    directory = tmp_path_factory.mktemp("upload")
    torch.manual_seed(0)
    model = mme.create_model("wsl_test_resnet", num_classes=3)
    source = f"local-dir:{model.save_pretrained(directory / 'model')}"
    code = CODE.format(source=source, upload=UPLOAD, refused=list(REFUSED))
    with UploadServer(directory / "mirror", TOKEN) as server:
        for step, status in REFUSED.items():
            server.fail(step, status, f"org/{step}")
        process = run_client(code, server.url, directory / "cache")
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    return SimpleNamespace(directory=directory, model=model, server=server, results=results)


def test_requests(uploaded):
    """What the Hub is told: who uploads, to where, and what."""
    server = uploaded.server
    repository = server.repositories["org/name"]
    assert (repository.create["organization"], repository.create["name"]) == ("org", "name")
    assert repository.create.get("visibility") == "private" or repository.create.get("private") is True
    (commit,) = server.of("commit", "org/name")
    assert commit.headers["authorization"] == f"Bearer {TOKEN}"
    assert commit.path.endswith("/commit/main") and "create_pr" not in commit.query
    assert repository.commit.summary == "A first model"
    assert uploaded.results["address"] == f"{server.url}/org/name/commit/{repository.commit.hash}"
    kinds = {line["value"]["path"]: line["key"] for line in commit.body if line["key"] != "header"}
    assert kinds == {"README.md": "file", "config.json": "file", "model.safetensors": "lfsFile"}
    (weights,) = server.of("object", "org/name")
    assert weights.path.endswith(hashlib.sha256(weights.body).hexdigest())
    assert "authorization" not in weights.headers, "the token is not for the storage"


def test_files(uploaded):
    files = uploaded.server.repositories["org/name"].files["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    config = json.loads(files["config.json"])
    assert config["library_name"] == "minmax_entropy" and TOKEN not in files["config.json"].decode()
    _, front, text = files["README.md"].decode().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "apache-2.0" and front["library_name"] == "minmax_entropy"
    assert "org/name" in text and TOKEN not in text
    assert all(name in text for name in NAMES)
    assert "| F1+ % | 70.0 |" in text


def test_a_second_upload_leaves_no_weights_of_the_first(uploaded):
    first, _ = uploaded.server.of("commit", "org/twice")
    assert sum(line["key"] == "lfsFile" for line in first.body) > 1
    assert set(uploaded.server.repositories["org/twice"].files["main"]) == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_the_upload_is_loaded_again(uploaded):
    directory = uploaded.directory
    with HubServer(directory / "mirror", directory / "server") as server:
        expression = 'mme.WSLModel.from_pretrained("org/name")'
        result = evaluate({"it": expression}, server.url, directory / "another cache")["it"]
    assert "error" not in result, result
    expected = describe(uploaded.model.eval())
    assert result["weights"] == expected["weights"]
    assert result["class_names"] == NAMES
    torch.testing.assert_close(torch.tensor(result["logits"]), torch.tensor(expected["logits"]))
    torch.testing.assert_close(torch.tensor(result["mask"]), torch.tensor(expected["mask"]))


@pytest.mark.parametrize("step", REFUSED)
def test_refused(uploaded, step):
    """An OSError that names the repository and what the server said; nothing was committed."""
    result = uploaded.results[step]
    assert "OSError" in result.get("error", ()), result
    assert f"org/{step}" in result["message"] and str(REFUSED[step]) in result["message"]
    assert REFUSED[step] in [request.status for request in uploaded.server.of(step)], "it was refused at this step"
    repository = uploaded.server.repositories.get(f"org/{step}")
    assert repository is None or repository.commit is None


def test_wrong_token(uploaded):
    result = uploaded.results["token"]
    assert "OSError" in result.get("error", ()), result
    assert "org/other" in result["message"] and "401" in result["message"]
    assert "hf_wrong" not in result["message"]
    assert "org/other" not in uploaded.server.repositories


def test_the_model_stays_as_it_is(uploaded):
    assert uploaded.results["unchanged"]
