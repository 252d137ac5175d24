"""torch.hub entry points: out of a bare copy of the repository, and as `OWNER/REPO` out of torch.hub's cache."""

import configparser
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minmax_entropy as mme

ROOT = Path(__file__).parent.parent


@pytest.fixture
def github(tmp_path, monkeypatch):
    """`owner/repo:main`, as torch.hub keeps it after a download."""
    repository = tmp_path / "owner_repo_main"
    shutil.copytree(
        ROOT / "minmax_entropy", repository / "minmax_entropy", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "hubconf.py", repository)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return "owner/repo:main"


def test_needs_no_installed_package(github):
    directory = str(Path(torch.hub.get_dir()) / "owner_repo_main")
    code = f"""
import torch
model = torch.hub.load({directory!r}, "wsl_test_resnet", source="local", num_classes=3)
import minmax_entropy
assert minmax_entropy.__file__.startswith({directory!r}), minmax_entropy.__file__
assert model.num_classes == 3 and type(model).__name__ == "WSLModel"
assert model.eval()(torch.zeros(1, 3, 64, 64)).mask.shape == (1, 1, 64, 64)
"""
    # -I: neither the working directory nor PYTHONPATH may stand in for torch.hub's own path.
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_as_in_the_readme(github):
    model = torch.hub.load(github, "wsl_resnet18", trust_repo=True, verbose=False, num_classes=4)
    assert isinstance(model, mme.WSLModel)
    assert model.config["backbone"] == "resnet18"


@pytest.mark.parametrize("name", ["test_vit", "test_coatnet", "test_vit.r160_in1k"], ids=["listed", "any", "tag"])
def test_every_model_is_an_entry_point(name):
    model = torch.hub.load(str(ROOT), f"wsl_{name}", source="local", num_classes=3, in_chans=1)
    assert (model.config["backbone"], model.num_classes, model.in_chans) == (name, 3, 1)


def test_create_model_is_an_entry_point():
    model = torch.hub.load(str(ROOT), "create_model", source="local", name="wsl_test_resnet", num_classes=2)
    assert model.num_classes == 2


def test_unknown_entry_point():
    with pytest.raises(RuntimeError, match="Cannot find callable wsl_resnt"):
        torch.hub.load(str(ROOT), "wsl_resnt", source="local")


def test_list(github):
    names = torch.hub.list(github, trust_repo=True, verbose=False)
    assert {*mme.list_models(), "create_model", "wsl_vit_base_patch14_dinov2.lvd142m"} <= set(names)
    assert len(names) == len(set(names))
    assert all(name == "create_model" or mme.is_model(name) for name in names)


def test_help(github):
    assert "timm's test_vit" in torch.hub.help(github, "wsl_test_vit", trust_repo=True)
    assert "test_coatnet" in torch.hub.help(github, "wsl_test_coatnet", trust_repo=True)


def test_dependencies_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = {line.split(">=")[0] for line in setup["options"]["install_requires"].split()}
    imported = runpy.run_path(str(ROOT / "hubconf.py"))["dependencies"]
    package = {"huggingface_hub": "huggingface-hub", "PIL": "pillow"}
    assert {package.get(name, name) for name in imported} == required
