"""Models and checkpoints from strangers: each attack that is known is tried, and refused."""

import builtins
import collections
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import zipfile

import huggingface_hub
import pytest
import safetensors.torch
import torch

import minmax_entropy as mme
from minmax_entropy.hub.card import MARK
from minmax_entropy.hub.config import CONFIG_NAME, LOADING
from minmax_entropy.hub.untrusted import MAX_JSON_BYTES
from minmax_entropy.hub.weights import INDEX_NAME, WEIGHTS_NAME
from minmax_entropy.reference import _STEM, convert_reference_checkpoint, load_reference_checkpoint

pytestmark = pytest.mark.xdist_group("test_security")  # bombs are measured once

K = 3
BIAS = "localizer.to_modalities.bias"
WEIGHT = "localizer.to_modalities.weight"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A saved model: its configuration, weights and both as bytes."""
    torch.manual_seed(0)
    model = mme.create_model("wsl_test_resnet", num_classes=K, preset="paper")
    directory = model.save_pretrained(tmp_path_factory.mktemp("good") / "model", class_names=["a", "b", "c"])
    return {name: (directory / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)}


@pytest.fixture
def saved(files, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def state(files):
    return safetensors.torch.load(files[WEIGHTS_NAME])


def load(directory, **keywords):
    return mme.create_model(f"local-dir:{directory}", **keywords)


def from_checkpoint(path):
    return mme.create_model("wsl_test_resnet", num_classes=K, checkpoint_path=path)


def config_of(directory, change):
    path = directory / CONFIG_NAME
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """No network, no commands."""

    def forbidden(*_, **__):
        pytest.fail("a connection, a download or a command")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, forbidden)
    for name in ("system", "popen"):
        monkeypatch.setattr(os, name, forbidden)


# The configuration

CODE = [
    "os.system",
    "torch.nn.Linear",
    "__import__('os').system('true')",
    "hf-hub:evil/repo",
    "local-dir:/tmp/x",
    "../..",
    "/etc/passwd",
    "a\0b",
    "\u202e\ud800",
]
CONTAINERS = [[1, 2, 3, 4, 5], [[]], {"a": {"b": [1]}}, [None], ["x"] * 3]
KEYWORDS = sorted(mme.WSLModel.config_keywords())
FLAGS = ("shared_backbone", "freeze_backbone", "freeze_bn", "checkpoint_passes", "erasing_normalize_trust")
NUMBERS = [key for key in KEYWORDS if key.endswith(("_weight", "_sigma", "_omega")) or key == "classifier_scale"]
WRONG = {
    **{key: [*CODE, *CONTAINERS] for key in KEYWORDS},
    **{key: [*CODE, *CONTAINERS, 0, -1, 10**18, 1e308, None] for key in FLAGS},
    **{key: [*CODE, *CONTAINERS, -1, -(10**400), 10**400, None] for key in NUMBERS},
    "num_classes": [*CODE, *CONTAINERS, 0, -1, 10**18, 10**400, True, 1.5, None],
    "in_chans": [*CODE, *CONTAINERS, 0, -1, True, 1.5, None],
    "img_size": [*CODE, *CONTAINERS, 0, -1, True, 1.5],
    "erasing_steps": [*CODE, *CONTAINERS, -1, True, 1.5, None],
    "backbone": [*CODE, *CONTAINERS, "", 0, True, None, 1.5, {}],
    "data_config": [],  # of the model; the one that counts stands beside it
}


@pytest.fixture(scope="module")
def backbone():
    with torch.device("meta"):
        return mme.create_backbone("test_resnet")


@pytest.mark.parametrize("key", KEYWORDS)
def test_a_keyword_of_the_wrong_kind(saved, key, backbone, monkeypatch):
    if key not in ("backbone", "backbone_kwargs", "in_chans", "img_size"):
        monkeypatch.setattr("minmax_entropy.wsl.create_backbone", lambda *_, **__: backbone)  # built once
    good = (saved / CONFIG_NAME).read_text()
    accepted = []
    for value in WRONG[key]:
        config_of(saved, lambda config, value=value: config["model"].update({key: value}))
        try:
            load(saved, pretrained=False)
        except ValueError as error:
            assert str(saved / CONFIG_NAME) in str(error)
        else:
            accepted.append(value)
        (saved / CONFIG_NAME).write_text(good)
    assert not accepted


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 10**5])
def test_numbers_that_are_none(saved, value):
    path = saved / CONFIG_NAME
    path.write_text(path.read_text().replace('"mask_sigma": 0.5', f'"mask_sigma": {value}'))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c.update(auto_map="x"), "auto_map"),
        (lambda c: c["model"].update(_target_="os.system"), "_target_"),
        (lambda c: c["model"].update(preset="cam"), "preset"),
        (lambda c: c["model"].update(pretrained=True), "pretrained"),
        (lambda c: c["data_config"].update(evil=1), "evil"),
        (lambda c: c["model"].update(localizer={"name": "wildcat", "evil": 1}), "evil"),
        (lambda c: c["model"].update(localizer={"in_features": 1}), "in_features"),
        (lambda c: c["model"].update(localizer={"name": ["wildcat"]}), "wildcat"),
        (lambda c: c["model"].update(classifier="builtins.eval"), "builtins.eval"),
        (lambda c: c["model"].update(backbone_kwargs={"evil": 1}), "evil"),
        (lambda c: c["model"].update(backbone_kwargs={"neck": "os.system"}), "neck"),
        (lambda c: c["model"].update(backbone_kwargs={"neck": {"name": "fpn", "evil": 1}}), "evil"),
        (lambda c: c["model"].update(backbone_kwargs={"features_only": True}), "features_only"),
        *((lambda c, key=key: c["model"].update(backbone_kwargs={key: "/etc/passwd"}), key) for key in LOADING),
        *(
            (lambda c, key=key: c["model"].update(backbone_kwargs={key: "os.system"}), "os.system")
            for key in ("act_layer", "norm_layer")
        ),
        *(
            (lambda c, name=name: c["model"].update(backbone=name), name.split("/")[0])
            for name in ("test_resnet.../../x", "test_resnet.a:b", "hf_hub:timm/test_resnet", "timm/test_resnet", "os")
        ),
    ],
)
def test_unknown_keys_and_names_are_named(saved, change, name):
    config_of(saved, change)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        load(saved)
    assert name in str(caught.value)


@pytest.mark.parametrize("overrides", [dict(num_classes=5), dict(in_chans=4)])
@pytest.mark.parametrize(
    "kwargs", [{"evil": 1}, {"layers": "x"}, {"checkpoint_path": "/etc/passwd"}, {"num_classes": 3}]
)
def test_a_bad_configuration_is_named_beside_keywords_of_the_caller(saved, overrides, kwargs):
    config_of(saved, lambda config: config["model"].update(backbone_kwargs=kwargs))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(saved, **overrides)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "class_names": [
            "abc",
            {"a": 1, "b": 2, "c": 3},
            [1, 2, 3],
            ["a", "b"],
            ["a", "b", None],
            5,
            ["a", "b", "\ud800"],
        ],
        "metrics": ["x", [1], 5],
        "license": [5, ["x"], {"a": 1}],
        "training_data": [5, {"a": 1}, [1, 2], [None], ["a", {}]],
        "backbone_weights": [5, ["x"], {"a": 1}],
        "data_config": [
            "x",
            [1],
            5,
            {"mean": "x"},
            {"mean": []},
            {"mean": [None] * 3},
            {"std": [0, 0, 0]},
            {"std": [1e-320] * 3},
            {"input_size": [3, 10**9, 10**9]},
            {"input_size": "abc"},
            {"interpolation": 5},
            {"interpolation": "__import__"},
            {"crop_mode": ["x"]},
            {"crop_mode": "evil"},
            {"crop_pct": "x"},
            {"crop_pct": 0},
            {"crop_pct": -1},
            {"resize": "evil"},
            {"resize": ["x"]},
        ],
    }.items(),
)
def test_what_stands_beside_the_model(saved, key, values):
    accepted = []
    for value in values:
        config_of(saved, lambda config, value=value: config.update({key: value}))
        try:
            load(saved)
        except ValueError as error:
            assert key in str(error) or CONFIG_NAME in str(error)
        else:
            accepted.append(value)
    assert not accepted


def not_text(text):
    return {
        "nested": b"[" * 10**6,
        "nested in a key": text.replace(b'"metrics": null', b'"metrics": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "huge": text + b" " * MAX_JSON_BYTES,
        "binary": bytes(range(256)),
        "utf-16": text.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + text,
        "key twice": text.rstrip()[:-1] + b', "library_name": "minmax_entropy"}',
        "keyword twice": text.replace(b'"num_classes": 3', b'"num_classes": 3, "num_classes": 3'),
        "null": b"null",
        "list": b"[]",
    }


@pytest.mark.parametrize("kind", not_text(b""))
def test_files_that_are_no_configuration(saved, files, kind):
    (saved / CONFIG_NAME).write_bytes(not_text(files[CONFIG_NAME])[kind])
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        load(saved)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "loop", "nothing"])
def test_what_is_no_file_is_not_opened(saved, name, kind):
    path = saved / name
    path.unlink()
    make = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "nothing": lambda: path.symlink_to(path.parent / "nothing"),
    }
    make[kind]()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load(saved)


def test_no_other_file_is_opened(saved, tmp_path, monkeypatch):
    opened = []
    real = builtins.open

    def spy(file, *arguments, **keywords):
        opened.append(os.fspath(file) if not isinstance(file, int) else file)
        return real(file, *arguments, **keywords)

    (saved / "pytorch_model.bin").write_bytes(b"evil")
    (saved / "modeling.py").write_text("raise RuntimeError")
    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(io, "open", spy)
    load(saved)
    strange = [path for path in opened if str(tmp_path) in str(path) and not str(path).endswith(CONFIG_NAME)]
    assert not [path for path in strange if not str(path).endswith(WEIGHTS_NAME)]


# Weights


def parts(content):
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(header, data, size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


def changed(**entry):
    return lambda header, data: packed({**header, BIAS: {**header[BIAS], **entry}}, data)


FORGED = {
    "length of 2**64": lambda header, data: packed(header, data, 2**64 - 1),
    "length of a terabyte": lambda header, data: packed(header, data, 2**40),
    "length beyond the file": lambda header, data: packed(header, data, 99 * 10**6),
    "no length": lambda header, data: packed(header, data, 0),
    "beyond the file": changed(data_offsets=[0, 10**15]),
    "overlap": changed(data_offsets=[0, 60]),
    "gap": lambda header, data: packed({key: value for key, value in header.items() if key != BIAS}, data),
    "negative shape": changed(shape=[-15]),
    "two negatives": changed(shape=[-3, -5]),
    "overflow": changed(shape=[2**40, 2**40]),
    "no size": changed(shape=[0], data_offsets=[0, 0]),
    "shape of a float": changed(shape=[15.0]),
    "shape of a text": changed(shape="15"),
    "unknown dtype": changed(dtype="F99"),
    "named dtype": changed(dtype="os.system"),
    "list": lambda header, data: packed(b"[]", data),
    "deep": lambda header, data: packed(b"[" * 10**6, data),
    "pickle": lambda header, data: pickle.dumps({"a": 1}, 2),
    "more data": lambda header, data: packed(header, data + b"xx"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_headers(saved, files, kind):
    (saved / WEIGHTS_NAME).write_bytes(FORGED[kind](*parts(files[WEIGHTS_NAME])))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(saved)


def first_value(tensor, value, dtype=None):
    tensor = tensor.to(dtype or tensor.dtype, copy=True)
    tensor.view(-1)[0] = value
    return tensor


BN = "backbone.net.bn1."
VALUES = {
    "nan": lambda s: {WEIGHT: first_value(s[WEIGHT], NAN)},
    "infinity": lambda s: {WEIGHT: first_value(s[WEIGHT], -INF)},
    "nan in statistics": lambda s: {BN + "running_var": first_value(s[BN + "running_var"], NAN)},
    "infinity in statistics": lambda s: {BN + "running_mean": first_value(s[BN + "running_mean"], INF)},
    "half nan": lambda s: {WEIGHT: first_value(s[WEIGHT], NAN, torch.bfloat16)},
    "complex nan": lambda s: {WEIGHT: first_value(s[WEIGHT], complex(0, NAN), torch.complex64)},
    "too large for the model": lambda s: {WEIGHT: first_value(s[WEIGHT], 1e300, torch.float64)},
    "integers": lambda s: {WEIGHT: s[WEIGHT].int()},
    "bytes": lambda s: {WEIGHT: s[WEIGHT].byte()},
    "booleans": lambda s: {WEIGHT: s[WEIGHT].bool()},
    "complex": lambda s: {WEIGHT: s[WEIGHT].to(torch.complex64)},
    "a counter of floats": lambda s: {BN + "num_batches_tracked": torch.tensor(NAN)},
    "negative variance": lambda s: {BN + "running_var": -s[BN + "running_var"]},
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_values_that_are_no_weights(tmp_path, state, kind, suffix):
    path = tmp_path / f"weights.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)({**state, **VALUES[kind](state)}, path)
    with pytest.raises(ValueError, match="weights") as caught:
        from_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3"])
def test_dtypes_that_torch_does_not_read(saved, files, kind):
    header, data = parts(files[WEIGHTS_NAME])
    shapes = {key: entry for key, entry in header.items() if key != "__metadata__"}
    ordered = sorted(shapes, key=lambda key: shapes[key]["data_offsets"])
    new, body = {}, b""
    for key in ordered:
        begin, end = shapes[key]["data_offsets"]
        content, dtype = data[begin:end], shapes[key]["dtype"]
        if key == WEIGHT:
            bits = {"F4": 4, "F6_E2M3": 6}[kind]
            content, dtype = bytes((end - begin) // 4 * bits // 8), kind
        new[key] = dict(dtype=dtype, shape=shapes[key]["shape"], data_offsets=[len(body), len(body) + len(content)])
        body += content
    (saved / WEIGHTS_NAME).write_bytes(packed(new, body))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(saved)


def test_very_small_values_are_fine(tmp_path, state):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({**state, WEIGHT: torch.full_like(state[WEIGHT], 1e-42)}, path)
    assert from_checkpoint(path).state_dict()[WEIGHT].max() == torch.tensor(1e-42)


@pytest.fixture
def sharded(saved, state):
    (saved / WEIGHTS_NAME).unlink()
    keys = sorted(state)
    names = {key: f"model-{1 + 3 * number // len(keys):05d}-of-00003.safetensors" for number, key in enumerate(keys)}
    for name in set(names.values()):
        safetensors.torch.save_file({key: state[key] for key in keys if names[key] == name}, saved / name)
    (saved / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    load(saved)
    return saved


NAMES = ["../x.safetensors", "/etc/passwd", "model.bin", "pytorch_model.bin", "", "a\0b", 5, None, ["a"], {}]
NAMES += ["model-00001-of-00003.safetensors/../../x", "model-00001-of-00003.safetensors\n", INDEX_NAME]


@pytest.mark.parametrize("name", NAMES)
def test_shards_elsewhere(sharded, name):
    path = sharded / INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"][BIAS] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        load(sharded)


def test_shards_that_are_not_there(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        load(sharded)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**6, "\0"])
def test_an_index_that_is_none(sharded, content):
    (sharded / INDEX_NAME).write_text(content)
    with pytest.raises(ValueError):
        load(sharded)


def test_an_index_of_other_shards(sharded):
    path = sharded / INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00003.safetensors")
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="does not fit the model"):
        load(sharded)


def test_a_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    both = {**safetensors.torch.load_file(second), **safetensors.torch.load_file(first)}
    safetensors.torch.save_file(both, second)
    with pytest.raises(ValueError, match="that another file holds as well"):
        load(sharded)


def test_a_pickle_in_place_of_the_weights(saved, state):
    (saved / WEIGHTS_NAME).unlink()
    torch.save(state, saved / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        load(saved)
    torch.save(state, saved / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read as weights"):
        load(saved)


# Checkpoints of torch.save


class Call:
    """A call when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def marked(tensor, **attributes):
    """A tensor with attributes, which a pickle keeps."""
    for name, value in attributes.items():
        setattr(tensor, name, value)
    return tensor


def marked_dict(state, **attributes):
    state = collections.OrderedDict(state)
    state.__dict__.update(attributes)
    return state


def nan():
    return torch.full((5 * K,), NAN)


PICKLES = {
    "code": lambda s: {**s, "x": Call(os.mkdir, "proof")},
    "code in a key": lambda s: {**s, Call(os.mkdir, "proof"): torch.zeros(1)},
    "eval": lambda s: {**s, "x": Call(eval, "__import__('os').mkdir('proof')")},
    "memory": lambda s: {"state_dict": s, "x": Call(bytearray, 2**20)},
    "number as a key": lambda s: {**s, 5: torch.zeros(1)},
    "tuple as a key": lambda s: {**s, ("a", 1): torch.zeros(1)},
    "nothing as a key": lambda s: {**s, None: torch.zeros(1)},
    "bytes as a key": lambda s: {**s, b"a": torch.zeros(1)},
    "sparse": lambda s: {**s, BIAS: torch.zeros(5 * K).to_sparse()},
    "without values": lambda s: {**s, BIAS: torch.zeros(5 * K, device="meta")},
    "quantized": lambda s: {**s, BIAS: torch.quantize_per_tensor(torch.zeros(5 * K), 1.0, 0, torch.quint8)},
    "numpy": lambda s: {**s, BIAS: torch.zeros(5 * K).numpy()},
    "nested": lambda s: {"state_dict": {"state_dict": s}},
    "list": lambda s: [s],
    "expanded": lambda s: {**s, "x": torch.zeros(1).expand(10**12)},
    "expanded in place": lambda s: {**s, BIAS: torch.zeros(1).expand(10**12)},
    "nan that says it is no float": lambda s: {**s, BIAS: marked(nan(), is_floating_point=set)},
    "nan in a parameter that says so": lambda s: {**s, BIAS: marked(torch.nn.Parameter(nan()), is_floating_point=set)},
    "nan that says it is finite": lambda s: {**s, BIAS: marked(nan(), isfinite=set)},
    "a dictionary that hides its values": lambda s: marked_dict({**s, BIAS: "text"}, values=set),
    "a dictionary that hides its items": lambda s: marked_dict(s, items=set),
    "a dictionary that gives others": lambda s: marked_dict(s, get=set),
}


@pytest.mark.filterwarnings("ignore:.*quantiz.*", "ignore:torch.quantize")
@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("as_zip", [True, False])
def test_pickles(tmp_path, monkeypatch, state, kind, as_zip):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save(PICKLES[kind](state), path, _use_new_zipfile_serialization=as_zip)
    try:
        model = from_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # a dictionary's own attributes may be left unread: what it holds is then what is loaded
        assert kind.startswith("a dictionary")
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not (tmp_path / "proof").exists()


RAW = {
    "no pickle": b"hello",
    "nothing": b"",
    "deep": b"\x80\x02" + b"(" * 10**5 + b".",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 100,
    "long text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"a",
    "far memo": b"\x80\x02K\x01r\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("kind", RAW)
def test_raw_pickles(tmp_path, kind):
    path = tmp_path / "weights.pt"
    path.write_bytes(RAW[kind])
    with pytest.raises(ValueError, match=r"weights\.pt can't be read"):
        from_checkpoint(path)


TAILS = {
    "plain": b"",
    "end record twice": b"PK\x05\x06" + b"x" * 10,
    "end record far from the end": b"x" * (2**16 + 1500),
}


@pytest.mark.parametrize("tail", TAILS)
def test_packed_archives(tmp_path, state, tail):
    """torch and Python look for the end of an archive in other places: what one does not see the other unpacks."""
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    path.write_bytes(packed.getvalue() + TAILS[tail])
    with pytest.raises(ValueError, match=r"weights\.pt can't be read"):
        from_checkpoint(path)


# Checkpoints of the authors' implementation


def reference_model():
    torch.manual_seed(0)
    return mme.WSLModel(
        "resnet18", 2, preset="reference", backbone_kwargs=dict(stem_type="deep", stem_width=64, layers=(1, 1, 1, 1))
    )


@pytest.fixture(scope="module")
def theirs():
    """A checkpoint in the authors' layout."""
    names = {ours: name for name, ours in _STEM.items()}
    heads = {"localizer": "headseg", "classifier": "cl32"}
    state = {}
    for key, value in reference_model().state_dict().items():
        part, _, rest = key.partition(".")
        stem, _, last = rest.removeprefix("net.").rpartition(".")
        own = f"{heads[part]}.{rest}" if part in heads else f"{names.get(stem, stem)}.{last}"
        state[own] = value
    return state


def test_the_checkpoint_is_one(theirs):
    loaded = convert_reference_checkpoint(theirs)
    torch.testing.assert_close(loaded.state_dict(), reference_model().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sigma", "w"])
@pytest.mark.parametrize("value", [NAN, INF, -1.0, 1 + 1j, torch.tensor(0.5, device="meta")])
def test_settings_in_a_checkpoint(tmp_path, theirs, name, value):
    model = reference_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save({**theirs, "conv1.weight": theirs["conv1.weight"] + 1, name: torch.as_tensor(value)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt"):
        load_reference_checkpoint(model, tmp_path / "x.pt")
    assert (model.mask_sigma, model.mask_omega) == (0.5, 8.0)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {5: torch.zeros(0)},
        lambda s: {"headseg.to_modalities.bias": torch.zeros(0)},
        lambda s: {"headseg.to_modalities.bias": torch.zeros(10, device="meta")},
        lambda s: {f"layer1.{'9' * 5000}.x": torch.zeros(0)},
        lambda s: {"module.conv1.weight": s["conv1.weight"] + 1},
        lambda s: {"backbone.net.conv1.0.weight": s["conv1.weight"] + 1},
    ],
    ids=["number as a key", "no classes", "without values", "digits", "twice by prefix", "twice by layout"],
)
def test_forged_checkpoints_of_the_authors(tmp_path, theirs, change):
    torch.save({**theirs, **change(theirs)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt"):
        convert_reference_checkpoint(tmp_path / "x.pt")


# Bombs: all in one process of its own, which counts its memory


BOMBS = textwrap.dedent("""
    import json, os, pathlib, resource, signal, sys, time
    os.environ["OMP_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    import torch
    torch.set_num_threads(1)
    import minmax_entropy as mme
    from minmax_entropy.reference import convert_reference_checkpoint

    folder = pathlib.Path(sys.argv[1])
    small = mme.create_model("wsl_test_resnet", num_classes=3).save_pretrained(folder / "small")
    config = json.loads((small / "config.json").read_text())

    def saved(weights, backbone="test_resnet", kwargs=None, **settings):
        settings.update(backbone=backbone, backbone_kwargs=kwargs)
        text = json.dumps({**config, "model": {**config["model"], **settings}})
        (small / "config.json").write_text(text)
        return lambda: mme.create_model(f"local-dir:{small}", pretrained=weights)

    def reference(**tensors):
        state = {f"layer{stage}.0.conv1.weight": torch.zeros(0) for stage in (1, 2, 3, 4)}
        state.update({"conv3.weight": torch.zeros(0), "headseg.to_modalities.bias": torch.zeros(10), **tensors})
        torch.save(state, folder / "x.pt")
        return lambda: convert_reference_checkpoint(folder / "x.pt")

    def index(_):
        weights, name = small / "model.safetensors", small / "model.safetensors.index.json"
        (small / "config.json").write_text(json.dumps(config))
        weights.rename(folder / "aside")
        with name.open("wb") as file:
            file.truncate(3 * 2**30)

        def load():
            try:
                mme.create_model(f"local-dir:{small}")
            finally:
                name.unlink()
                (folder / "aside").rename(weights)

        return load

    swin, vit, tiny = "swin_tiny_patch4_window7_224", "test_vit", "tiny_vit_5m_224"
    bombs = {
        "classes 10**9": lambda w: saved(w, num_classes=10**9),
        "classes 5 * 10**7": lambda w: saved(w, num_classes=5 * 10**7),
        "classes 10**18": lambda w: saved(w, num_classes=10**18),
        "modalities": lambda w: saved(w, localizer=dict(name="wildcat", modalities=10**9)),
        "hidden": lambda w: saved(w, localizer=dict(name="attention", hidden=10**10)),
        "channels 10**8": lambda w: saved(w, in_chans=10**8),
        "channels 10**9": lambda w: saved(w, in_chans=10**9),
        "channels 10**18": lambda w: saved(w, in_chans=10**18),
        "neck": lambda w: saved(w, kwargs=dict(neck=dict(name="fpn", channels=10**9))),
        "level": lambda w: saved(w, kwargs=dict(out_index=10**9)),
        "stride": lambda w: saved(w, kwargs=dict(output_stride=10**9)),
        "blocks": lambda w: saved(w, kwargs=dict(layers=[10**7, 1, 1, 1])),
        "widths": lambda w: saved(w, kwargs=dict(channels=[10**9] * 4)),
        "scale": lambda w: saved(w, classifier_scale=[10**9, 10**9]),
        "vit width": lambda w: saved(w, vit, dict(embed_dim=10**9)),
        "vit depth 10**5": lambda w: saved(w, vit, dict(depth=10**5)),
        "vit depth 10**7": lambda w: saved(w, vit, dict(depth=10**7)),
        "vit depth 10**9": lambda w: saved(w, vit, dict(depth=10**9)),
        "vit heads": lambda w: saved(w, vit, dict(num_heads=10**9)),
        "vit image": lambda w: saved(w, vit, img_size=10**6),
        "vit tokens": lambda w: saved(w, vit, dict(reg_tokens=10**12)),
        "swin window": lambda w: saved(w, swin, dict(window_size=10**4), img_size=10**6),
        "swin table": lambda w: saved(w, swin, dict(window_size=1000), img_size=16000),
        "swin depth": lambda w: saved(w, swin, dict(depths=[10**9] * 4)),
        "tiny_vit window": lambda w: saved(w, tiny, dict(window_sizes=[300] * 4)),
        "convnext width": lambda w: saved(w, "convnext_atto", dict(dims=[10**9] * 4)),
        "convnext depth": lambda w: saved(w, "convnext_atto", dict(depths=[10**9] * 4)),
        "regnet depth": lambda w: saved(w, "regnetx_002", dict(depth=10**9)),
        "nest image": lambda w: saved(w, "nest_tiny", img_size=16384),
        "erasing": lambda w: saved(w, erasing_steps=10**18),
        "index of 3 GiB": index,
        "reference classes": lambda w: reference(**{"headseg.to_modalities.bias": torch.zeros(1).expand(10**10)}),
        "reference blocks": lambda w: reference(**{f"layer1.{i}.x": torch.zeros(0) for i in range(10**4)}),
    }

    class Slow(BaseException):
        pass

    def stop(*_):
        raise Slow

    signal.signal(signal.SIGPROF, stop)
    result = {}
    for name, bomb in bombs.items():
        both = name in ("classes 10**9", "channels 10**8", "vit depth 10**7")
        for weights in (False, True) if both else (False,):
            load = bomb(weights)
            pid = os.fork()  # the peak of each one by itself
            if pid == 0:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                signal.setitimer(signal.ITIMER_PROF, 15)  # of the processor's time: a busy machine changes nothing
                try:
                    load()
                    said = "loaded"
                except (ValueError, FileNotFoundError) as error:
                    said = "refused" if str(folder) in str(error) else f"without the file: {error}"
                except BaseException as error:
                    said = f"{type(error).__name__}: {error}"
                signal.setitimer(signal.ITIMER_PROF, 0)
                peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
                (folder / "said").write_text(json.dumps([said[:200], round(peak, 2)]))
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if name.startswith("index") and (folder / "aside").exists():
                (folder / "aside").rename(small / "model.safetensors")
            said = json.loads((folder / "said").read_text()) if status == 0 else [f"died {status}", 0]
            result[f"{name}, {'weights' if weights else 'architecture'}"] = said
    print(json.dumps(result))
""")


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    command = [sys.executable, "-c", BOMBS, str(tmp_path_factory.mktemp("bombs"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_bombs_are_refused_soon(bombs):
    assert {name: said for name, (said, _) in bombs.items() if said != "refused"} == {}


def test_bombs_take_no_memory(bombs):
    assert {name: gigabytes for name, (_, gigabytes) in bombs.items() if gigabytes > 1} == {}


# Saving

TEXTS = [
    "a\n---\nlicense: evil\n---\nb",
    "a\n...\nb",
    "x|y",
    "x\\|y",
    "```\n# Title",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "{source}{0}",
    "a: b # c",
    "!!python/object:os.system",
    "&a *a",
    "yes",
    "null",
    "1.0",
    "'\"",
    "\u2028",
    MARK,
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_texts_in_a_card(tmp_path, text):
    model = mme.create_model("wsl_test_resnet", num_classes=K)
    model.info = {"backbone_weights": text}
    names = [text, "b", "c"]
    given = dict(license=text, training_data=[text], metrics={text: 0.5, "q": text})
    directory = model.save_pretrained(tmp_path / "model", class_names=names, **given)
    card = huggingface_hub.ModelCard.load(directory / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["datasets"]) == (text, text, [text])
    assert set(data["metrics"]) == {text, "q"} and data["library_name"] == "minmax_entropy"
    lines = card.text.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# model", "## Use", "## Figures"]
    row = next(line for line in lines if line.startswith("| classes"))
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 3  # no cell more
    again = load(directory)
    assert again.class_names == names and again.info == {"backbone_weights": text, **given}
    again.save_pretrained(directory)
    assert load(directory).info == {key: value for key, value in again.info.items() if key != "metrics"}


@pytest.mark.parametrize("text", ["\x07", "\x85", "\ud800", "a\x00b"])
@pytest.mark.parametrize("key", ["license", "training_data", "class_names", "metrics"])
def test_texts_that_are_none_are_not_saved(tmp_path, key, text):
    value = {"class_names": [text, "b", "c"], "metrics": {"q": text}}.get(key, text)
    with pytest.raises(ValueError, match="which is no character"):
        mme.create_model("wsl_test_resnet", num_classes=K).save_pretrained(tmp_path / "model", **{key: value})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ['x"); evil("', "a\n# x ```", "{evil}"])
def test_a_name_runs_nothing_in_the_snippet_of_a_card(tmp_path, name):
    card = (
        mme.create_model("wsl_test_resnet", num_classes=K).save_pretrained(tmp_path / name) / "README.md"
    ).read_text()
    snippet = card.split("```python\n")[1].split("\n```")[0]
    calls = [line for line in snippet.splitlines() if "create_model(" in line]
    assert len(calls) == 1
    given = []

    class Library:
        @staticmethod
        def create_model(source):
            given.append(source)
            return torch.nn.Identity()

    exec(calls[0], {"minmax_entropy": Library, "__builtins__": {}})
    assert given == [f"local-dir:{name}"]


def test_links_in_a_directory_are_not_followed_when_it_is_saved_again(saved, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("a key")
    (saved / "folder").symlink_to(secret)
    (saved / "file").symlink_to(secret / "key.txt")
    (saved / "README.md").symlink_to(secret / "key.txt")
    (saved / "nowhere").symlink_to(tmp_path / "nothing")
    (saved / "itself").symlink_to(saved)
    mme.create_model("wsl_test_resnet", num_classes=K).save_pretrained(saved)
    assert (secret / "key.txt").read_text() == "a key"
    copies = [
        path for path in saved.rglob("*") if path.is_file() and not path.is_symlink() and path.read_bytes() == b"a key"
    ]
    assert not copies
    load(saved)
