"""Imports inside `app`, read from the sources: they go one way, and the chains are short."""

import ast
from functools import cache
from pathlib import Path

import pytest
from serving import ROOT

import seg_loss

APP = ROOT / "app"
MODULES = {
    ".".join(path.relative_to(APP).with_suffix("").parts): path
    for path in APP.rglob("*.py")
    if path.name != "__init__.py"
}

ARROWS = {
    "errors": [],
    "settings": [],
    "report": [],
    "images": ["errors"],
    "formats": ["errors", "images.palettes"],
    "options": ["errors", "formats.png", "images"],
    "inputs": ["errors", "settings", "options", "formats", "images.palettes"],
    "results": ["formats"],
    "operations": ["errors", "options", "inputs", "results", "formats.png", "images"],
    "http": [
        "errors", "settings", "options", "inputs", "results", "operations", "formats",
        "images.palettes",
    ],
    "cli": [
        "errors", "settings", "report", "options", "inputs", "results", "operations",
        "formats.npy", "images", "http.server",
    ],
    "__main__": ["cli"],
}  # fmt: skip
"""What a module, or each module of a folder, may import of `app` outside its folder."""

MAX_LEVEL = 7


def imports(name: str, *, of_functions: bool) -> set[str]:
    """Full names of what a module imports, with or without the imports inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    package = ["app", *name.split(".")[:-1]]
    found = set()
    for node in ast.walk(tree) if of_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def imports_of_app(name: str, *, of_functions: bool) -> set[str]:
    found = {full.removeprefix("app.") for full in imports(name, of_functions=of_functions)}
    return found & MODULES.keys()


@cache
def level(name: str) -> int:
    """0 for a module that imports no other one; else one more than the highest it imports."""
    return max((level(m) + 1 for m in imports_of_app(name, of_functions=False)), default=0)


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_arrows(name):
    folder = name.split(".")[0]
    allowed = [folder, *ARROWS[folder]]
    for imported in imports_of_app(name, of_functions=True):
        assert any(f"{imported}.".startswith(f"{prefix}.") for prefix in allowed), imported


def test_no_chain_of_imports_is_longer_than_seven_steps():
    assert max(level(name) for name in MODULES) <= MAX_LEVEL


def test_the_server_is_imported_only_when_it_serves():
    assert "http.server" not in imports_of_app("cli", of_functions=False)
    functions = [
        node.name
        for node in ast.walk(ast.parse(MODULES["cli"].read_text()))
        if isinstance(node, ast.FunctionDef) and "server" in ast.unparse(node)
    ]
    assert functions == ["serve"]


@pytest.mark.parametrize("name", MODULES)
def test_only_public_names_of_the_library_are_used(name):
    public = {*seg_loss.__all__, "constants", "metrics", "upsampling"}
    for full in imports(name, of_functions=True):
        package, _, path = full.partition(".")
        if package == "seg_loss" and path:
            assert path.split(".")[0] in public, full
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "seg_loss":
            assert node.attr in public, node.attr


def test_the_web_framework_is_imported_by_http_alone():
    for name in MODULES:
        if not name.startswith("http."):
            found = {full.split(".")[0] for full in imports(name, of_functions=True)}
            assert not found & {"fastapi", "starlette", "uvicorn"}, name


def test_modules_have_no_aliases():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(Path(path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert all(alias.asname is None for alias in node.names), name
