"""What may know what: read off the imports, those inside functions included."""

import ast
from pathlib import Path

import pytest

import minmax_entropy

ROOT = Path(minmax_entropy.__file__).parent


def modules():
    """Name of each module, without the package's, and its file."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


PLUMBING = (
    "_bands",
    "_checks",
    "_extras",
    "_files",
    "_modes",
    "_progress",
    "_registry",
    "_symbolic",
    "version",
)
METHOD = ("model", "mask", "losses", "erasing", "tasks", "inputs", "settings", "backbones", "heads")
NEVER = {  # who -> what it must not know
    METHOD: (
        "inference",
        "hub",
        "wsl",
        "data",
        "metrics",
        "report",
        "engine",
        "benchmark",
        "cli",
        "factory",
        "presets",
    ),
    ("inference",): ("hub", "wsl", "engine", "benchmark", "cli", "factory"),
    ("hub",): ("model", "wsl", "inference", "engine", "benchmark", "cli", "factory"),
    ("wsl", "factory", "zoo", "reference"): ("data", "engine", "benchmark", "cli"),
    ("engine",): ("benchmark", "cli"),
    ("benchmark",): ("cli",),
    PLUMBING: ("wsl", "model", "inference", "hub", "data", "engine", "benchmark", "cli"),
}
KNOWN_TO = {  # who -> all that it may know
    ("data", "metrics", "report"): (
        *PLUMBING,
        *("data", "metrics", "report", "mask", "backbones.sizes", "backbones.data_config"),
    ),
}


def imported(path):
    """Names of the package's modules that a file imports, and whether a function does it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inner = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minmax_entropy":
            base = node.module.removeprefix("minmax_entropy").removeprefix(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".removeprefix(".")
                yield name if name in MODULES else base, node in inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "minmax_entropy":
                    yield alias.name.removeprefix("minmax_entropy").removeprefix("."), node in inner


IMPORTS = {name: list(imported(path)) for name, path in MODULES.items()}


def within(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("who", NEVER, ids=lambda who: who[0])
def test_arrows_that_must_never_be(who):
    found = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other, _ in others
        if within(name, who) and within(other, NEVER[who])
    ]
    assert not found


@pytest.mark.parametrize("who", KNOWN_TO, ids=lambda who: who[0])
def test_what_may_know_little(who):
    found = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other, _ in others
        if within(name, who) and not within(other, KNOWN_TO[who])
    ]
    assert not found


def test_no_import_in_a_function():
    assert not [f"{name} -> {other}" for name, others in IMPORTS.items() for other, inner in others if inner]


def test_no_circle():
    """Modules can be put in an order in which each knows earlier ones alone."""
    left = {name: {other for other, _ in others if other != name} for name, others in IMPORTS.items()}
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_files_and_functions_can_be_read():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < (260 if name == "model" else 400), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                assert node.end_lineno - body[0].lineno < 60, f"{name}: {node.name}"
