"""What the README says holds: its code runs, its commands parse, its files exist."""

import ast
import configparser
import re
import shlex
from pathlib import Path

import pytest
import torch

import minmax_entropy as mme
from minmax_entropy import cli
from minmax_entropy.engine.diagnosis import MASK_AREA_RANGE
from minmax_entropy.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def offline(code):
    """The same code without the network: this checkout in place of the repository, no pretrained weights."""
    code = code.replace('hub.load("OWNER/REPO", ', f'hub.load({str(ROOT)!r}, source="local", model=')
    return code.replace("pretrained=True", "pretrained=False")


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:30])
def test_code_runs(code):
    torch.manual_seed(0)
    names = {}
    exec(compile(ast.parse(offline(code)), "README.md", "exec"), names)
    assert isinstance(names["model"], mme.WSLModel)
    if "output" in names:
        assert names["output"].logits.shape == (4, 8) and names["output"].mask.shape == (4, 1, 224, 224)
        assert 0 <= names["output"].mask.min() <= names["output"].mask.max() <= 1


def test_python_and_commands_are_there():
    assert len(blocks("python")) == 4 and len(blocks("bash")) == 3


COMMANDS = [
    shlex.split(part.strip())[1:]
    for block in blocks("bash")
    for line in block.splitlines()
    for part in line.split("&&")
    if part.strip().startswith("minmax-entropy")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_parse(command):
    options = cli._parser().parse_args(command)
    assert options.command == command[0]


def test_commands_fit_together():
    """What `train` writes is what `evaluate` and `predict` read."""
    train, evaluate, predict = (command for command in COMMANDS if command[0] in ("train", "evaluate", "predict"))
    output = train[train.index("--output") + 1]
    for command in (evaluate, predict):
        assert command[command.index("--model") + 1] == f"{output}/model"


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links(target):
    if not target.startswith("http"):
        assert (ROOT / target).is_file()


SETTINGS = dict(re.findall(r"^\| ([^|]+?) \| (`[^|]+`[^|]*?) \|$", README, re.MULTILINE))


def test_settings():
    """Every keyword of the table is known to the model, every preset and head exists."""
    code = [snippet for cell in SETTINGS.values() for snippet in re.findall("`([^`]+)`", cell)]
    keywords = [snippet for snippet in code if re.match(r"^[a-z_]+=", snippet)]
    assert len(keywords) >= 5
    for snippet in keywords:
        options = eval(f"dict({snippet})")
        if "output_stride" in options:  # not for this small a network
            assert mme.create_model("wsl_resnet18", num_classes=2, **options).backbone.reduction == 8
        else:
            mme.create_model("wsl_test_resnet", num_classes=2, **options)
    assert set(re.findall(r'preset="(\w+)"', " ".join(code))) == set(PRESETS)
    heads = next(re.findall(r"`(\w+)`", name) for name in SETTINGS if name.startswith("another head"))
    assert sorted(heads) == sorted(mme.list_heads())
    for snippet in code:
        if name := re.match(r"^(?:minmax_entropy\.)?(\w+)\(|^(register_\w+)$", snippet):
            assert hasattr(mme, name[1] or name[2])


def test_figures():
    python = re.search(r"Python (3\.\d+) to (3\.\d+)", README)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    versions = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    assert (versions[0], versions[-1]) == python.groups()
    assert config["options"]["python_requires"] == f">={python[1]}"
    low, high = re.search(r"warns when it leaves \[([\d.]+), ([\d.]+)\]", README).groups()
    assert (float(low), float(high)) == MASK_AREA_RANGE
