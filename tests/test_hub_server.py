"""Weights from a Hub: the real client, in fresh processes, against a server on this machine."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from hub_server import (
    DamagingProxy,
    HubServer,
    commit_repository,
    describe,
    evaluate,
    object_path,
    server_script,
    tensor_hash,
)
from timm.models import save_for_hf

import minmax_entropy as mme

pytestmark = [
    pytest.mark.skipif(server_script() is None, reason="the server is not installed: pip install olah"),
    pytest.mark.xdist_group("test_hub_server"),  # one server for all of them
]

K = 3
NAMES = ["a", "b", "c"]
BACKBONE = "timm/test_resnet.r160_in1k"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LOAD = 'mme.create_model("hf-hub:{}")'


def create(seed):
    torch.manual_seed(seed)
    model = mme.create_model("wsl_test_resnet", num_classes=K)
    model.class_names = NAMES
    return model


def files_of(directory):
    return {path.name: path for path in Path(directory).iterdir()}


def same_model(result, model):
    """The client got the weights of the model, all of them and exactly, and the same comes out of it."""
    assert "error" not in result, result
    expected = describe(model)
    assert result["weights"] == expected["weights"]
    assert result["class_names"] == NAMES
    torch.testing.assert_close(torch.tensor(result["logits"]), torch.tensor(expected["logits"]))
    torch.testing.assert_close(torch.tensor(result["mask"]), torch.tensor(expected["mask"]))


def failed(result, kind, *words):
    """The client got an error of this class, whose message has all of the words."""
    assert kind in result.get("error", ()), result
    for word in words:
        assert word.lower() in result["message"].lower(), (word, result["message"])


def cached(cache, repository, kind="snapshots"):
    """Names of the files that the cache holds of a repository (`blobs`: those with the content)."""
    directory = Path(cache) / "hf" / "hub" / f"models--{repository.replace('/', '--')}" / kind
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server, a proxy before it, and what their repositories hold."""
    directory = tmp_path_factory.mktemp("hub")
    mirror = directory / "mirror"
    models, commits = {}, {}

    for seed, (key, where) in enumerate(
        {"first": {"tag": "v1"}, "second": {}, "dev": {"branch": "dev"}, "main": {}}.items()
    ):
        models[key] = create(seed)
        target = models[key].save_pretrained(directory / "models" / key, class_names=NAMES)
        commits[key] = commit_repository(mirror, "org/name", files_of(target), **where)
    good = files_of(directory / "models" / "main")
    for name in ("flipped", "tampered", "short", "cut", "once", "dying", "never", "later", "twice"):
        commit_repository(mirror, f"org/{name}", good)
    commit_repository(mirror, "org/no-config", {WEIGHTS: good[WEIGHTS]}, tag="v1")
    commit_repository(mirror, "org/no-weights", {CONFIG: good[CONFIG]}, tag="v1")
    weights = good[WEIGHTS].read_bytes()
    object_path(mirror, "org/tampered", weights).write_bytes(weights[:-1] + bytes([weights[-1] ^ 255]))

    torch.manual_seed(5)
    backbone = timm.create_model("test_resnet")
    save_for_hf(backbone, directory / "backbone", safe_serialization=True)
    commit_repository(mirror, BACKBONE, files_of(directory / "backbone"))
    proof, pickled = directory / "proof", directory / "pickled.bin"
    torch.save({"cls_token": Attack(proof)}, pickled)
    torch.load(pickled, weights_only=False)["cls_token"].close()
    assert proof.exists(), "the attack works on those who unpickle it"
    proof.unlink()
    config = {"architecture": "test_vit", "num_classes": 1000}
    files = {CONFIG: json.dumps(config).encode(), "pytorch_model.bin": pickled}
    commit_repository(mirror, "timm/test_vit.r160_in1k", files)

    with HubServer(mirror, directory / "server") as server, DamagingProxy(server.url) as proxy:
        yield SimpleNamespace(
            directory=directory,
            mirror=mirror,
            server=server,
            proxy=proxy,
            models=models,
            commits=commits,
            backbone=backbone,
            proof=proof,
        )


@pytest.fixture(scope="module")
def loaded(hub):
    """What a client with an empty cache loads."""
    cache, other = hub.directory / "cache", hub.directory / "other cache"
    pretrained = 'mme.create_model("wsl_test_resnet{}", pretrained=True, num_classes=3{})'
    class_method = f'mme.WSLModel.from_pretrained("org/name", revision="dev", cache_dir={str(other)!r}{{}})'
    expressions = {
        "backbone": pretrained.format("", ""),
        "backbone of a tag": pretrained.format(".r160_in1k", ""),
        "gray backbone": pretrained.format("", ", in_chans=1"),
        "main": LOAD.format("org/name"),
        "dev": LOAD.format("org/name@dev"),
        "first": LOAD.format("org/name@v1"),
        "second": LOAD.format(f"org/name@{hub.commits['second']}"),
        "class method": class_method.format(""),
        "class method, local": class_method.format(", local_files_only=True"),
        "class method, tag": f'mme.WSLModel.from_pretrained("org/name", revision="v1", cache_dir={str(other)!r})',
    }
    before = hub.proxy.requests.copy()
    results = evaluate(expressions, hub.proxy.url, cache)
    return SimpleNamespace(
        cache=cache, other=other, results=results, expressions=expressions, requests=hub.proxy.requests - before
    )


# Weights of a backbone


@pytest.mark.parametrize("key", ["backbone", "backbone of a tag"])
def test_backbone(hub, loaded, key):
    result = loaded.results[key]
    assert "error" not in result, result
    for name, value in hub.backbone.state_dict().items():
        if not name.startswith("fc."):
            assert result["weights"][f"backbone.net.{name}"] == tensor_hash(value), name


def test_backbone_of_other_channels(hub, loaded):
    result = loaded.results["gray backbone"]
    assert "error" not in result, result
    state = hub.backbone.state_dict()
    first = "conv1.0.weight"
    assert result["weights"][f"backbone.net.{first}"] == tensor_hash(state.pop(first).sum(dim=1, keepdim=True))
    for name, value in state.items():
        if not name.startswith("fc."):
            assert result["weights"][f"backbone.net.{name}"] == tensor_hash(value), name


def test_heads_of_a_backbone_start_afresh(loaded):
    heads = [
        loaded.results[key]["weights"]["localizer.to_modalities.weight"] for key in ("backbone", "backbone of a tag")
    ]
    assert heads[0] != heads[1]


# Weights of a whole model


@pytest.mark.parametrize("key", ["main", "dev", "first", "second"])
def test_revisions(hub, loaded, key):
    same_model(loaded.results[key], hub.models[key])
    assert loaded.results[key]["training"], "create_model gives a model in training mode"


def test_the_revisions_differ(hub):
    assert len({describe(model)["weights"]["localizer.to_modalities.weight"] for model in hub.models.values()}) == 4


@pytest.mark.parametrize(
    ("key", "model"), [("class method", "dev"), ("class method, local", "dev"), ("class method, tag", "first")]
)
def test_class_method(hub, loaded, key, model):
    same_model(loaded.results[key], hub.models[model])
    assert not loaded.results[key]["training"], "from_pretrained gives a model in evaluation mode"


def test_only_what_is_needed_is_cached(loaded):
    assert set(cached(loaded.cache, "org/name")) == {CONFIG, WEIGHTS}
    assert set(cached(loaded.cache, BACKBONE)) == {WEIGHTS}
    assert len(list(loaded.other.iterdir())) > 0


@pytest.fixture(scope="module")
def sharded(hub):
    model = create(6)
    target = hub.directory / "models" / "sharded"
    model.save_pretrained(target, class_names=NAMES, max_shard_size="100KB")
    files = files_of(target)
    commit_repository(hub.mirror, "org/sharded", files)
    commit_repository(
        hub.mirror, "org/lost-shard", {name: files[name] for name in sorted(files) if "00002-" not in name}
    )
    cache = hub.directory / "cache of shards"
    keys = ("org/sharded", "org/lost-shard")
    results = evaluate({key: LOAD.format(key) for key in keys}, hub.proxy.url, cache)
    return SimpleNamespace(model=model, files=files, cache=cache, results=results)


def test_shards(sharded):
    assert INDEX in sharded.files and WEIGHTS not in sharded.files
    assert len(sharded.files) > 4, "several shards"
    same_model(sharded.results["org/sharded"], sharded.model)
    assert set(cached(sharded.cache, "org/sharded")) == set(sharded.files) - {"README.md"}


def test_a_shard_is_missing(sharded):
    failed(sharded.results["org/lost-shard"], "FileNotFoundError", "org/lost-shard", "model-00002-of-")


# Second loads


def same_results(again, first, keys):
    """The same weights; the heads of a mere backbone are new each time."""
    for key in keys:
        assert "error" not in again[key], again[key]
        fresh = ("localizer.", "classifier.") if key == "backbone" else ()
        for name, value in first[key]["weights"].items():
            assert again[key]["weights"][name] == value or name.startswith(fresh), (key, name)


def test_second_load(hub, loaded):
    keys = ("backbone", "main", "first")
    before = hub.proxy.requests.copy()
    again = evaluate({key: loaded.expressions[key] for key in keys}, hub.proxy.url, loaded.cache)
    requests = hub.proxy.requests - before
    same_results(again, loaded.results, keys)
    print(f"{requests.total()} requests of a second load:", *sorted(requests.items()), sep="\n  ")
    assert not [path for method, path in requests if method == "GET" and path.endswith((CONFIG, WEIGHTS))]
    assert requests.total() <= 6


def test_offline(hub, loaded):
    keys = ("backbone", "main", "dev", "first", "second")
    expressions = {key: loaded.expressions[key] for key in keys}
    expressions["not cached"] = LOAD.format("org/never")
    expressions["other revision"] = LOAD.format("org/name@v2")
    expressions["class method"] = 'mme.WSLModel.from_pretrained("org/never", local_files_only=True)'
    before = hub.proxy.requests.total()
    again = evaluate(expressions, hub.proxy.url, loaded.cache, HF_HUB_OFFLINE="1")
    same_results(again, loaded.results, keys)
    failed(again["not cached"], "FileNotFoundError", "org/never", "offline")
    failed(again["other revision"], "FileNotFoundError", "org/name", "v2", "offline")
    failed(again["class method"], "FileNotFoundError", "org/never", "cache")
    assert hub.proxy.requests.total() == before


def test_the_server_goes_and_comes_back(hub, loaded):
    """What is cached is loaded; all else is an error that says which server is gone, and is no obstacle later."""
    keys = ("backbone", "main", "first", "second")
    expressions = {key: loaded.expressions[key] for key in keys}
    later = LOAD.format("org/later")
    hub.server.stop()
    try:
        again = evaluate({**expressions, "not cached": later}, hub.server.url, loaded.cache)
    finally:
        hub.server.start()
    same_results(again, loaded.results, keys)
    failed(again["not cached"], "ConnectionError", hub.server.url, "org/later")
    same_model(evaluate({"it": later}, hub.server.url, loaded.cache)["it"], hub.models["main"])


def test_two_processes_at_once(hub):
    cache = hub.directory / "shared cache"

    def load(_):
        return evaluate({"it": LOAD.format("org/twice")}, hub.proxy.url, cache)["it"]

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(load, range(2)):
            same_model(result, hub.models["main"])
    assert not [name for name in cached(cache, "org/twice", "blobs") if name.endswith(".incomplete")]


# Missing, damaged, dangerous


@pytest.fixture(scope="module")
def damage(hub):
    """Loads that fail: against a proxy that damages answers and dies, and again when it is well."""
    cache = hub.directory / "damaged cache"
    with DamagingProxy(hub.server.url) as proxy:
        proxy.flip(f"*/org/flipped/*/{WEIGHTS}")
        proxy.change(f"*/org/short/*/{WEIGHTS}", lambda body: body[:1000])
        proxy.cut(f"*/org/cut/*/{WEIGHTS}", 1000)
        proxy.cut(f"*/org/once/*/{WEIGHTS}", 1000, times=1)
        proxy.die(f"*/org/dying/*/{WEIGHTS}", 1000)
        expressions = {
            "repository": LOAD.format("org/nothing"),
            "revision": LOAD.format("org/name@v2"),
            "config": LOAD.format("org/no-config@v1"),
            "weights": LOAD.format("org/no-weights@v1"),
            "backbone": 'mme.create_model("wsl_test_efficientnet", pretrained=True, num_classes=3)',
            "pickle": 'mme.create_model("wsl_test_vit", pretrained=True, num_classes=3)',
            **{name: LOAD.format(f"org/{name}") for name in ("flipped", "tampered", "short", "cut", "once", "dying")},
        }
        first = evaluate(expressions, proxy.url, cache)
        names = ("flipped", "tampered", "short", "cut", "dying")
        files = {name: cached(cache, f"org/{name}") for name in names}
        blobs = {name: cached(cache, f"org/{name}", "blobs") for name in names}
        proxy.clear()
        proxy.start()
        healthy = {name: LOAD.format(f"org/{name}") for name in ("flipped", "short", "cut", "once", "dying")}
        second = evaluate(healthy, proxy.url, cache)
        return SimpleNamespace(first=first, second=second, files=files, blobs=blobs, cache=cache)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("repository", ["org/nothing"]),
        ("revision", ["org/name", "v2"]),
        ("config", ["org/no-config", "v1", CONFIG]),
        ("weights", ["org/no-weights", "v1", WEIGHTS]),
    ],
)
def test_missing(damage, key, words):
    failed(damage.first[key], "FileNotFoundError", *words)


def test_missing_for_a_server_that_says_401(hub):
    cache = hub.directory / "empty cache"
    expressions = {key: LOAD.format(f"org/{key}") for key in ("nothing", "name@v2", "no-config", "no-weights")}
    results = evaluate(expressions, hub.server.url, cache)
    failed(results["nothing"], "FileNotFoundError", "org/nothing")
    failed(results["name@v2"], "FileNotFoundError", "org/name", "v2")
    failed(results["no-config"], "FileNotFoundError", "org/no-config", CONFIG)
    failed(results["no-weights"], "FileNotFoundError", "org/no-weights", WEIGHTS)


def test_missing_weights_of_a_backbone(damage):
    failed(damage.first["backbone"], "Exception", "timm/test_efficientnet.r160_in1k")


def test_pickled_code_from_the_hub_is_not_run(hub, damage):
    failed(damage.first["pickle"], "Exception", "weights_only")
    assert cached(damage.cache, "timm/test_vit.r160_in1k") == ["pytorch_model.bin"], "it was downloaded"
    assert not hub.proof.exists()


@pytest.mark.parametrize("key", ["flipped", "tampered"])
def test_other_bytes_than_the_hash_says(damage, key):
    failed(damage.first[key], "ValueError", f"org/{key}", "hash", WEIGHTS)


@pytest.mark.parametrize("key", ["short", "cut", "dying"])
def test_a_download_that_ends_early(hub, damage, key):
    failed(damage.first[key], "OSError", f"org/{key}")
    assert WEIGHTS not in damage.files[key]
    digest = hashlib.sha256((hub.directory / "models" / "main" / WEIGHTS).read_bytes()).hexdigest()
    assert not [name for name in damage.blobs[key] if name.startswith(digest) or name.endswith(".incomplete")]


def test_a_download_that_is_cut_once(hub, damage):
    if "error" in damage.first["once"]:
        failed(damage.first["once"], "OSError", "org/once")
    same_model(damage.second["once"], hub.models["main"])


@pytest.mark.parametrize("key", ["flipped", "short", "cut", "dying"])
def test_a_healthy_server_heals(hub, damage, key):
    same_model(damage.second[key], hub.models["main"])
    assert not [name for name in cached(damage.cache, f"org/{key}", "blobs") if name.endswith(".incomplete")]
