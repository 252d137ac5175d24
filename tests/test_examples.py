"""The examples: each runs for a few steps on the bundled synthetic images, learns, and leaves a model that loads."""

import math
import os
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import minmax_entropy as mme
from minmax_entropy import data
from minmax_entropy.data import SyntheticShapes

FOLDER = Path(__file__).parents[1] / "examples"
TIMM = dict(model="wsl_test_resnet", img_size=64)
VIT = dict(model="wsl_test_vit", img_size=112)

# what is run -> where its model is, and what it starts from
RUNS = {
    "plain_torch": ("plain_torch", TIMM),
    "accelerate_loop": ("accelerate_loop", TIMM),
    "lightning_module": ("lightning_module/model", TIMM),
    "hf_trainer": ("hf_trainer/model", TIMM),
    "frozen_dinov2": ("frozen_dinov2", VIT),
}
pytestmark = pytest.mark.xdist_group("test_examples")  # Accelerate's state is one for all of a process


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example as a command, on few images; what it printed, and the weights that its model began with."""
    monkeypatch.chdir(tmp_path)
    created = []

    def create_model(*args, **keywords):
        torch.manual_seed(0)
        model = original(*args, **keywords)
        created.append({name: value.clone() for name, value in model.state_dict().items()})
        return model

    original = mme.create_model
    monkeypatch.setattr(mme, "create_model", create_model)
    monkeypatch.setattr(
        data, "SyntheticShapes", lambda length, *rest, **keywords: SyntheticShapes(min(length, 24), *rest, **keywords)
    )

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, created[0]

    with mock.patch.dict(os.environ):  # trainers set variables
        yield run
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def losses_of(printed):
    return [float(value) for value in re.findall(r"loss'?:? '?(-?[\d.]+|nan|inf)", printed)]


@pytest.mark.parametrize("name", RUNS)
def test_example(name, run, tmp_path):
    folder, start = RUNS[name]
    printed, before = run(name, "--model", start["model"], "--epochs", "2")
    losses = losses_of(printed)
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert "f1_foreground" in printed
    loaded = mme.create_model(f"local-dir:{tmp_path / 'runs' / folder}")
    assert loaded.class_names == ["rows", "columns", "checks"]
    assert loaded.data_config["input_size"] == (3, start["img_size"], start["img_size"])
    parameters = dict(loaded.named_parameters())
    changed = {key for key, value in parameters.items() if not value.equal(before[key])}
    frozen = {key for key in parameters if name == "frozen_dinov2" and key.startswith("backbone.net.")}
    assert changed == set(parameters) - frozen
    mask = loaded.eval()(torch.zeros(1, *loaded.data_config["input_size"])).mask
    assert mask.shape[1:] == (1, start["img_size"], start["img_size"]) and mask.isfinite().all()


@pytest.mark.parametrize("name", RUNS)
def test_length(name):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


def test_trainer_checkpoint_and_predictions(run, tmp_path):
    """What the `Trainer` itself writes is a checkpoint; without a choice of outputs it collects all of them."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    run("hf_trainer", "--epochs", "1")
    model = mme.create_model(f"local-dir:{tmp_path / 'runs/hf_trainer/model'}").eval()
    path = tmp_path / "runs/hf_trainer/checkpoint-3/model.safetensors"
    again = mme.create_model("wsl_test_resnet", num_classes=3, img_size=64, checkpoint_path=str(path))
    assert all(value.equal(again.state_dict()[key]) for key, value in model.state_dict().items())

    images, target = (
        torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    items = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, target, strict=True)]
    arguments = TrainingArguments(str(tmp_path / "all"), per_device_eval_batch_size=2, disable_tqdm=True, use_cpu=True)
    found = Trainer(model, arguments, data_collator=default_data_collator).predict(items)
    with torch.no_grad():
        expected = model(images, target)
    for value, other in zip(found.predictions[:5], expected[1:6], strict=True):
        torch.testing.assert_close(torch.from_numpy(value), other)
    assert found.label_ids.tolist() == target.tolist()
    assert found.predictions[5]["foreground"].shape == (3,)  # one of each batch
    assert found.metrics["test_loss"] == pytest.approx(expected.loss.item(), rel=0.2)
