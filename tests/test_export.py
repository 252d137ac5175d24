"""Export and compilation: programs and ONNX files against the model, at other sizes than they were traced with."""

import json
import logging
import sys
import types

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import minmax_entropy as mme
from minmax_entropy._symbolic import rounded_quotient
from minmax_entropy.backbones.sizes import ImageSizes
from minmax_entropy.heads.wildcat import pooled_positions
from minmax_entropy.inference import export
from minmax_entropy.inference.export import METADATA_NAME, ExportError, export_onnx, export_program, save_program

K = 3
SWIN = dict(embed_dim=16, depths=(1, 2), num_heads=(1, 2), img_size=64)
VIT = dict(embed_dim=16, depth=1, num_heads=2, img_size=64)
MODELS = {
    "cnn": ("wsl_test_efficientnet", {}),
    "convnext": ("wsl_test_convnext", {}),
    "vit": ("wsl_vit_tiny_patch16_224", VIT),
    "swin": ("wsl_swin_tiny_patch4_window7_224", SWIN),
}


class Tiny(nn.Module):
    """Two convolutions of stride 2, quick to trace."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))

    def forward(self, images):
        return self.net(images)


def create(name, **keywords):
    torch.manual_seed(0)
    name, options = MODELS.get(name, (name, {}))
    model = mme.create_model(name, num_classes=K, **{"preset": "paper", **options, **keywords}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh residual branches are 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny(**keywords):
    torch.manual_seed(0)
    return mme.WSLModel(Tiny(), num_classes=K, img_size=64, **{"preset": "paper", **keywords}).eval()


def images_of(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def expected(model, images):
    with torch.no_grad():
        output = model(images)
    return output.logits, output.mask


def run_onnx(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits, mask = session.run(["logits", "mask"], {"images": images.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(mask)


def agree(found, model, images, tolerance=1e-4):
    torch.testing.assert_close(tuple(found), expected(model, images), rtol=tolerance, atol=tolerance)


def agree_in_all(found, expected):
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-5)


# ONNX


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("cnn", 128, [(1, 128, 128), (3, 160, 200), (2, 131, 150)]),
        ("vit", 64, [(1, 64, 64), (3, 96, 176), (2, 80, 64)]),
        ("swin", 64, [(1, 64, 64), (3, 64, 64)]),
    ],
)
def test_onnx_file_agrees_with_the_model(tmp_path, name, size, shapes):
    pytest.importorskip("onnxruntime")
    model = create(name, img_size=size) if name != "cnn" else create(name)
    path = export_onnx(model, tmp_path / "deep" / "model.onnx", img_size=size)
    assert path == tmp_path / "deep" / "model.onnx"
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    for batch, height, width in shapes:
        images = images_of(batch, 3, height, width)
        agree(run_onnx(path, images), model, images)


OPTIONS = {
    "wildcat, lse": dict(localizer=dict(name="wildcat", kmax=0.3, kmin=0.2, alpha=0.7), classifier="lse"),
    "max, average": dict(
        localizer="max", classifier="average", classifier_scale=1, mask_refinement=dict(iterations=2, compression=0.4)
    ),
    "attention, counts": dict(localizer="attention", classifier=dict(kmax=5, alpha=0.5, kmin=1.0)),
    "multilabel, two backbones": dict(task="multilabel", mask_source="predicted", shared_backbone=False),
    "no classifier, batch mask": dict(preset="cam", mask_normalization="batch"),
    "classifier of one size": dict(classifier_scale=(40, 48)),
    "empty class": dict(empty_classes=[1]),
    "the localizer, refined": dict(mask_refinement=dict(iterations=2), decision="localizer"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_onnx_file_of_options(tmp_path, option):
    pytest.importorskip("onnxruntime")
    model = tiny(**OPTIONS[option])
    path = export_onnx(model, tmp_path / "model.onnx", dynamic_size=True, check=False)
    for shape in ((1, 3, 64, 64), (3, 3, 16, 20), (2, 3, 57, 130)):
        agree(run_onnx(path, images_of(*shape)), model, images_of(*shape))


def test_metadata_and_names(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = tiny(preset="cam", task="multilabel", data_config=dict(mean=(0.1, 0.2, 0.3)))
    model.class_names = ["a", "b", "ç"]
    saved = onnx.load(export_onnx(model, tmp_path / "model.onnx", batch=2, check=False))
    found = {entry.key: json.loads(entry.value) for entry in saved.metadata_props}
    assert found == {
        "minmax_entropy": mme.__version__,
        "task": "multilabel",
        "class_names": ["a", "b", "ç"],
        "empty_classes": [],
        "min_probability": 0.0,
        "mean": [0.1, 0.2, 0.3],
        "std": list(model.data_config["std"]),
        "input_size": [3, 64, 64],
        "size_step": [1, 1],
        "smallest_size": [8, 8],
    }
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*saved.graph.input, *saved.graph.output)
    }
    assert shapes == {"images": [2, 3, "height", "width"], "logits": [2, K], "mask": [2, 1, "height", "width"]}


def test_large_weights_go_to_a_file_beside(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from torch.onnx._internal.exporter import _onnx_program

    path = tmp_path / "model.onnx"
    model = tiny(preset="cam")
    with monkeypatch.context() as patch:
        patch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
        export_onnx(model, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    agree(run_onnx(path, images_of(2, 3, 40, 40)), model, images_of(2, 3, 40, 40))
    export_onnx(model, path, check=False)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = tiny(preset="cam")
    compare = export._compare

    def compare_with_another(model, path, traced):
        with torch.no_grad():
            model.localizer.to_modalities.bias.add_(1.0)
        compare(model, path, traced)

    (tmp_path / "model.onnx").write_text("earlier")
    monkeypatch.setattr(export, "_compare", compare_with_another)
    with pytest.raises(ExportError, match=r"another logits .* \(1, 3, 64, 64\): off by 1"):
        export_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", types.ModuleType("onnx"))
    with pytest.raises(ImportError, match=r'needs onnxscript, .*: pip install "minmax-entropy\[export\]"'):
        export_onnx(tiny(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# Programs


def test_program_agrees_with_the_model():
    model = create("convnext")
    program = export_program(model, img_size=128).module()
    for shape in ((1, 3, 128, 128), (3, 3, 129, 255)):
        agree(program(images_of(*shape)), model, images_of(*shape), 1e-5)


def test_program_with_a_neck():
    model = create("vit", depth=2, neck="fpn")
    program = export_program(model).module()
    for shape in ((1, 3, 64, 64), (2, 3, 96, 128)):
        agree(program(images_of(*shape)), model, images_of(*shape), 1e-5)


def test_saved_program(tmp_path):
    model = tiny(in_chans=3)
    model.class_names = ["a", "b", "c"]
    path = save_program(model, tmp_path / "deep" / "model.pt2")
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    extra = {METADATA_NAME: ""}
    program = torch.export.load(path, extra_files=extra).module()
    found = json.loads(extra[METADATA_NAME])
    assert found["class_names"] == ["a", "b", "c"] and found["minmax_entropy"] == mme.__version__
    for shape in ((1, 3, 64, 64), (3, 3, 50, 37)):
        agree(program(images_of(*shape)), model, images_of(*shape), 1e-5)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    def broken(program, path, **kwargs):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_program(tiny(preset="cam"), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_model_stays_as_it_is():
    model = tiny(freeze_bn=True).train()
    model.localizer.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    export_program(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == asked
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_fixed_size_and_batch():
    model = tiny(preset="cam")
    program = export_program(model, img_size=(32, 48), batch=2, dynamic_size=False).module()
    agree(program(images_of(2, 3, 32, 48)), model, images_of(2, 3, 32, 48), 1e-5)
    for shape in ((2, 3, 48, 32), (1, 3, 32, 48)):
        with pytest.raises(Exception, match=r"Guard failed|Expected input"):
            program(images_of(*shape))


class Unsteady(Tiny):
    """Different for maps with an even number of rows: one graph can't hold both."""

    def forward(self, images):
        maps = super().forward(images)
        return maps * 2 if maps.shape[2] % 2 == 0 else maps


def test_backbone_without_a_graph_for_any_size(caplog):
    model = mme.WSLModel(Unsteady(), num_classes=K, img_size=64, preset="cam").eval()
    with caplog.at_level(logging.INFO, logger="minmax_entropy"):
        program = export_program(model)
    assert "exported for images of 64 x 64 only" in caplog.text
    agree(program.module()(images_of(3, 3, 64, 64)), model, images_of(3, 3, 64, 64), 1e-5)
    with pytest.raises(ValueError, match=r"can.t be exported for images of any size"):
        export_program(model, dynamic_size=True)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (dict(img_size=100), ValueError, "takes 64 x 64 only, got .*nearest size that works is"),
        (dict(dynamic_size=True), ValueError, "any size: its backbone takes 64 x 64 only"),
        (dict(dynamic_size="yes"), TypeError, "dynamic_size must be True or False"),
        (dict(batch=0), ValueError, "batch must be an integer of 1 or more"),
        (dict(img_size="64"), ValueError, "img_size must be"),
    ],
)
def test_refused(tmp_path, keywords, error, message):
    backbone = Tiny()
    backbone.sizes = ImageSizes(4, fixed=(64, 64))
    model = mme.WSLModel(backbone, num_classes=K, img_size=64, classifier_scale=1, preset="paper")
    with pytest.raises(error, match=message):
        export_program(model, **keywords)
    with pytest.raises(error, match=message):
        save_program(model, tmp_path / "model.pt2", **keywords)
    assert not list(tmp_path.iterdir())


def test_refused_models_and_places(tmp_path):
    with pytest.raises(TypeError, match="must be a WSLModel, got Linear"):
        export_program(nn.Linear(1, 1))
    for write in (save_program, export_onnx):
        with pytest.raises(IsADirectoryError, match="an exported model is a file"):
            write(tiny(), tmp_path)


def test_size_under_the_smallest_is_exported_as_it_is(caplog):
    model = tiny()
    with pytest.raises(ValueError, match="other sizes begin at 16 x 16"):
        export_program(model, img_size=12, dynamic_size=True)
    with caplog.at_level(logging.INFO, logger="minmax_entropy"):
        program = export_program(model, img_size=12).module()
    assert "images of 12 x 12 only" in caplog.text
    agree(program(images_of(3, 3, 12, 12)), model, images_of(3, 3, 12, 12), 1e-5)


# What traced sizes go through


def test_quotients_round_half_to_even():
    for divisor in (1, 2, 3, 7, 14, 16, 32):
        assert all(rounded_quotient(size, divisor) == round(size / divisor) for size in range(2000))


def test_share_of_a_symbol_is_that_of_a_number():
    """The number of pooled positions is part of the graph: it must be Python's."""

    class Count(nn.Module):
        def forward(self, x):
            return x[:, :1] * pooled_positions(0.09, x.shape[1]), x[:, :1] * pooled_positions(0.3, x.shape[1])

    positions = torch.export.Dim("positions", min=2)
    program = torch.export.export(Count(), (torch.ones(1, 64),), dynamic_shapes=({1: positions},)).module()
    for count in (2, 3, 5, 16, 49, 50, 150, 196, 250):  # 0.09 * 50 is 4.5
        found = [int(value) for value in program(torch.ones(1, count))]
        assert found == [pooled_positions(0.09, count), pooled_positions(0.3, count)]


# torch.compile


@pytest.mark.parametrize("name", ["cnn", "vit", "swin"])
def test_compiles_without_graph_breaks(name):
    model = create(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for batch in (2, 3):
            agree_in_all(compiled(images_of(batch, 3, 64, 64)), model(images_of(batch, 3, 64, 64)))


@pytest.mark.parametrize("classes", [None, "all", ["c", 0]])
def test_localize_compiles_without_graph_breaks(classes):
    model = create("vit")
    model.class_names = ["a", "b", "c"]
    torch._dynamo.reset()
    compiled = torch.compile(model.localize, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for shape in ((2, 3, 64, 48), (3, 3, 48, 80)):
            agree_in_all(compiled(images_of(*shape), classes), model.localize(images_of(*shape), classes))


@pytest.mark.parametrize("option", ["wildcat, lse", "attention, counts", "no classifier, batch mask"])
def test_options_compile_without_graph_breaks(option):
    model = tiny(**OPTIONS[option])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        output = compiled(images_of(2, 3, 64, 48))
    agree((output.logits, output.mask), model, images_of(2, 3, 64, 48), 1e-5)


def test_other_sizes_take_no_new_graph():
    model = create("cnn")
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=graphs, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 128, 160), (3, 3, 144, 192), (4, 3, 208, 112)):
            agree_in_all(compiled(images_of(*shape)), model(images_of(*shape)))
    assert graphs.frame_count == 1
