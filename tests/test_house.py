"""What may know what: read off the imports, those inside functions included."""

import ast
from pathlib import Path

import minmax_entropy

ROOT = Path(minmax_entropy.__file__).parent


def modules():
    """Name of each module, without the package's, and its file."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(path):
    """Names of the package's modules that a file imports, and whether at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {node for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minmax_entropy":
            base = node.module.removeprefix("minmax_entropy").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in MODULES else base, node in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "minmax_entropy":
                    yield alias.name.removeprefix("minmax_entropy").removeprefix("."), node in top


IMPORTS = {name: list(imported(path)) for name, path in MODULES.items()}


def within(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)
