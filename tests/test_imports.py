"""Who imports whom, read from the sources: the arrows between the modules, as one table."""

import ast
import functools
import sys
from pathlib import Path

import pytest

import seg_loss
from app import __main__ as entry_point
from tests.support import backends

ROOT = Path(seg_loss.__file__).parents[1]
PACKAGES = ("seg_loss", "models", "app", "benchmarks")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

# What a module, or each module of a package, may import of the repository. The row with the longest
# name counts. Modules without a row of their own may import the others of their package too.
BASE = (
    "constants",
    "_errors",
    "_labels",
    "_numbers",
    "_inputs",
    "_divisor",
    "_evaluation_sums",
    "_maps",
    "upsampling",
)
BASE = tuple(f"seg_loss.{name}" for name in BASE)
CPU_KERNEL_BASE = tuple(
    f"seg_loss.cpu.{name}"
    for name in ("compiler", "dtypes", "exponential", "records", "simd", "sums")
)
CPU_PLAN = tuple(f"seg_loss.cpu.{name}" for name in ("cache", "plan", "records", "target"))
ARROWS = {
    # The library: functional -> _compile -> _autograd -> _operators -> _backends -> cpu, gpu:
    # backend -> kernels.
    # cpu: backend -> loss, upsampled_loss, evaluation, probabilities -> arguments -> plan.
    # gpu: backend -> loss, upsampled_loss, evaluation, probabilities -> label_check -> arguments.
    # `_backends` imports the backends by name, when a tensor on their device comes first.
    "seg_loss": ("seg_loss._version",),
    "seg_loss._version": (),
    "seg_loss.constants": (),
    "seg_loss._errors": (),
    "seg_loss._numbers": (),
    "seg_loss._divisor": ("seg_loss._errors",),
    "seg_loss._evaluation_sums": (),
    "seg_loss._maps": ("seg_loss.constants",),
    "seg_loss.diagnosis": (),
    "seg_loss._labels": ("seg_loss._errors", "seg_loss.constants"),
    "seg_loss.upsampling": ("seg_loss._errors", "seg_loss._numbers", "seg_loss.constants"),
    "seg_loss._inputs": (
        "seg_loss._errors", "seg_loss._numbers", "seg_loss.constants", "seg_loss.upsampling",
    ),
    "seg_loss._finite": BASE,
    "seg_loss.metrics": BASE,
    "seg_loss.reference": ("seg_loss.upsampling",),
    "seg_loss.cpu": (),
    "seg_loss.cpu.memory": (),
    "seg_loss.cpu.target": (),
    "seg_loss.cpu.records": ("seg_loss.constants",),
    "seg_loss.cpu.compiler": ("seg_loss.cpu.target",),
    "seg_loss.cpu.sums": ("seg_loss.cpu.compiler",),
    "seg_loss.cpu.simd": (
        "seg_loss.cpu.compiler", "seg_loss.cpu.records", "seg_loss.cpu.target",
    ),
    "seg_loss.cpu.dtypes": (
        "seg_loss.cpu.compiler", "seg_loss.cpu.records", "seg_loss.cpu.simd",
        "seg_loss.cpu.target",
    ),
    "seg_loss.cpu.exponential": (
        "seg_loss.cpu.compiler", "seg_loss.cpu.records", "seg_loss.cpu.simd",
        "seg_loss.cpu.target",
    ),
    "seg_loss.cpu.rows": CPU_KERNEL_BASE,
    "seg_loss.cpu.region": (*CPU_KERNEL_BASE, "seg_loss._divisor", "seg_loss.cpu.rows"),
    "seg_loss.cpu.labels": (*CPU_KERNEL_BASE, "seg_loss.cpu.region"),
    "seg_loss.cpu.columns": CPU_KERNEL_BASE,
    "seg_loss.cpu.tiles": (
        *CPU_KERNEL_BASE, "seg_loss.constants", "seg_loss.cpu.region", "seg_loss.cpu.rows",
    ),
    "seg_loss.cpu.cross_entropy": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.columns", "seg_loss.cpu.region", "seg_loss.cpu.rows",
        "seg_loss.cpu.tiles",
    ),
    "seg_loss.cpu.many_classes": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.cross_entropy", "seg_loss.cpu.region", "seg_loss.cpu.rows",
        "seg_loss.cpu.target",
    ),
    "seg_loss.cpu.softmax": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.columns", "seg_loss.cpu.region", "seg_loss.cpu.rows",
        "seg_loss.cpu.tiles",
    ),
    "seg_loss.cpu.evaluate": (
        *CPU_KERNEL_BASE, "seg_loss.constants", "seg_loss.cpu.columns",
        "seg_loss.cpu.cross_entropy", "seg_loss.cpu.region", "seg_loss.cpu.rows",
        "seg_loss.cpu.tiles",
    ),
    "seg_loss.cpu.upsampled": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.evaluate", "seg_loss.cpu.region", "seg_loss.cpu.rows",
        "seg_loss.cpu.tiles",
    ),
    "seg_loss.cpu.predict": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.region", "seg_loss.cpu.rows", "seg_loss.cpu.tiles",
        "seg_loss.cpu.upsampled",
    ),
    "seg_loss.cpu.best_class": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.region", "seg_loss.cpu.upsampled",
    ),
    "seg_loss.cpu.interval_columns": (
        *CPU_KERNEL_BASE, "seg_loss.cpu.region", "seg_loss.cpu.rows", "seg_loss.cpu.target",
        "seg_loss.cpu.upsampled",
    ),
    # A kernel is imported when it is compiled, by its name alone.
    "seg_loss.cpu.cache": ("seg_loss.cpu.compiler", "seg_loss.cpu.target"),
    "seg_loss.cpu.threads": ("seg_loss.cpu.cache",),
    "seg_loss.cpu.plan": (
        *BASE, "seg_loss.cpu.cache", "seg_loss.cpu.records", "seg_loss.cpu.threads",
    ),
    "seg_loss.cpu.arguments": (*BASE, *CPU_PLAN),
    "seg_loss.cpu.label_check": (*BASE, *CPU_PLAN, "seg_loss.cpu.arguments"),
    "seg_loss.cpu.loss": (*BASE, *CPU_PLAN, "seg_loss.cpu.arguments"),
    "seg_loss.cpu.probabilities": (
        *BASE, *CPU_PLAN, "seg_loss.cpu.arguments", "seg_loss.cpu.memory",
    ),
    "seg_loss.cpu.upsampled_loss": (
        *BASE, *CPU_PLAN, "seg_loss.cpu.arguments", "seg_loss.cpu.threads",
    ),
    "seg_loss.cpu.evaluation": (
        *BASE, *CPU_PLAN, "seg_loss.cpu.arguments", "seg_loss.cpu.upsampled_loss",
    ),
    "seg_loss.cpu.prediction": (
        *BASE, *CPU_PLAN, "seg_loss.cpu.arguments", "seg_loss.cpu.upsampled_loss",
    ),
    "seg_loss.cpu.backend": (
        "seg_loss.cpu.evaluation", "seg_loss.cpu.label_check", "seg_loss.cpu.loss",
        "seg_loss.cpu.prediction", "seg_loss.cpu.probabilities", "seg_loss.cpu.upsampled_loss",
    ),
    "seg_loss.gpu": (),
    "seg_loss.gpu.math": (),
    "seg_loss.gpu.interpolation": (),
    "seg_loss.gpu.tiling": ("seg_loss.upsampling",),
    "seg_loss.gpu.plan": (),
    "seg_loss.gpu.labels": ("seg_loss.gpu.math",),
    "seg_loss.gpu.reports": (*BASE, "seg_loss.gpu.labels"),
    "seg_loss.gpu.cross_entropy": ("seg_loss.gpu.math",),
    "seg_loss.gpu.softmax": ("seg_loss.gpu.cross_entropy", "seg_loss.gpu.math"),
    "seg_loss.gpu.upsampled": ("seg_loss.gpu.cross_entropy", "seg_loss.gpu.math"),
    "seg_loss.gpu.evaluate": (
        "seg_loss.constants", "seg_loss.gpu.cross_entropy", "seg_loss.gpu.interpolation",
        "seg_loss.gpu.math",
    ),
    "seg_loss.gpu.many_classes": (
        "seg_loss.gpu.cross_entropy", "seg_loss.gpu.evaluate", "seg_loss.gpu.interpolation",
        "seg_loss.gpu.math",
    ),
    "seg_loss.gpu.predict": (
        "seg_loss.gpu.cross_entropy", "seg_loss.gpu.evaluate", "seg_loss.gpu.interpolation",
        "seg_loss.gpu.many_classes", "seg_loss.gpu.math",
    ),
    "seg_loss.gpu.arguments": (*BASE, "seg_loss.gpu.plan", "seg_loss.gpu.tiling"),
    "seg_loss.gpu.label_check": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.labels", "seg_loss.gpu.plan",
        "seg_loss.gpu.reports", "seg_loss.gpu.tiling",
    ),
    "seg_loss.gpu.loss": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.cross_entropy", "seg_loss.gpu.label_check",
        "seg_loss.gpu.many_classes", "seg_loss.gpu.plan", "seg_loss.gpu.tiling",
    ),
    "seg_loss.gpu.upsampled_loss": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.label_check", "seg_loss.gpu.loss",
        "seg_loss.gpu.many_classes", "seg_loss.gpu.plan", "seg_loss.gpu.tiling",
        "seg_loss.gpu.upsampled",
    ),
    "seg_loss.gpu.evaluation": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.evaluate", "seg_loss.gpu.label_check",
        "seg_loss.gpu.many_classes", "seg_loss.gpu.plan", "seg_loss.gpu.tiling",
    ),
    "seg_loss.gpu.probabilities": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.plan", "seg_loss.gpu.softmax",
        "seg_loss.gpu.tiling",
    ),
    "seg_loss.gpu.prediction": (
        *BASE, "seg_loss.gpu.arguments", "seg_loss.gpu.plan", "seg_loss.gpu.predict",
        "seg_loss.gpu.tiling",
    ),
    "seg_loss.gpu.backend": (
        "seg_loss.gpu.evaluation", "seg_loss.gpu.label_check", "seg_loss.gpu.loss",
        "seg_loss.gpu.prediction", "seg_loss.gpu.probabilities", "seg_loss.gpu.upsampled_loss",
    ),
    "seg_loss._backends": (*BASE, "seg_loss.cpu.memory"),
    "seg_loss._operators": (*BASE, "seg_loss._backends"),
    "seg_loss._interpolation": ("seg_loss.upsampling",),
    "seg_loss._autograd": (
        *BASE, "seg_loss._backends", "seg_loss._interpolation", "seg_loss._operators",
    ),
    "seg_loss._composition": (*BASE, "seg_loss._interpolation", "seg_loss._operators"),
    "seg_loss._compile": (
        *BASE, "seg_loss._autograd", "seg_loss._composition", "seg_loss._operators",
    ),
    "seg_loss._scratch": (*BASE, "seg_loss._backends"),
    "seg_loss._distributed": (
        *BASE, "seg_loss._autograd", "seg_loss._backends", "seg_loss._compile",
    ),
    "seg_loss.probabilities": (
        *BASE, "seg_loss._autograd", "seg_loss._compile", "seg_loss._distributed",
        "seg_loss._operators",
    ),
    "seg_loss.functional": (
        *BASE, "seg_loss._autograd", "seg_loss._backends", "seg_loss._compile",
        "seg_loss._distributed", "seg_loss._operators", "seg_loss.probabilities",
    ),
    "seg_loss.evaluation": (
        *BASE, "seg_loss._backends", "seg_loss.diagnosis", "seg_loss.metrics",
        "seg_loss.probabilities",
    ),
    "seg_loss.modules": (*BASE, "seg_loss._distributed", "seg_loss.functional"),
    "seg_loss.prediction": (*BASE, "seg_loss._operators"),
    "seg_loss.compat": (*BASE, "seg_loss.functional"),
    "seg_loss.warmup": (
        *BASE, "seg_loss.evaluation", "seg_loss.functional", "seg_loss.prediction",
    ),
    # The networks.
    # checkpoints -> networks, wrap, caffe_weights; surgery -> caffe_weights; networks -> fcn.
    "models": (),
    "models._numbers": (),
    "models.atomic_file": (),
    "models.bilinear": ("seg_loss",),
    "models.fcn": ("seg_loss", "models._numbers", "models.bilinear"),
    "models.networks": ("models.fcn",),
    "models.wrap": ("seg_loss",),
    "models.caffe_weights": ("seg_loss", "models.atomic_file"),
    "models.surgery": ("seg_loss", "models.caffe_weights", "models.fcn"),
    "models.checkpoints": (
        "seg_loss", "models._numbers", "models.atomic_file", "models.caffe_weights", "models.fcn",
        "models.networks", "models.wrap",
    ),
    # The app: http, cli -> operations -> inputs -> {formats, images} -> errors.
    "app": (),
    "app.__main__": ("app.cli",),
    "app.errors": (),
    "app.settings": ("app.errors",),
    "app.report": ("app.terminal",),
    "app.terminal": (),
    "app.devices": ("seg_loss", "app.errors"),
    "app.images": ("app.errors",),
    "app.formats": ("app.errors", "app.images.palettes"),
    "app.label_spaces": ("seg_loss", "app.errors"),
    "app.input_reports": ("app.errors", "app.label_spaces"),
    "app.options": (
        "seg_loss", "app.errors", "app.formats.rasters", "app.images", "app.label_spaces",
    ),
    "app.preprocessing": (),
    "app.folders": ("app.errors", "app.formats"),
    "app.inputs": (
        "seg_loss", "app.errors", "app.settings", "app.options", "app.formats",
        "app.images.palettes", "app.input_reports", "app.label_spaces",
    ),
    "app.results": (
        "seg_loss", "app.errors", "app.formats", "app.images", "app.input_reports",
    ),
    "app.prediction_report": (
        "seg_loss", "app.errors", "app.folders", "app.report", "app.results",
    ),
    "app.loggers": ("seg_loss", "app.images", "app.report"),
    # It imports `models` by name, which an installed wheel has under another one.
    "app.models_import": (),
    "app.network": (
        "seg_loss", "app.devices", "app.errors", "app.models_import", "app.preprocessing",
        "app.settings",
    ),
    "app.operations": (
        "seg_loss", "app.errors", "app.options", "app.inputs", "app.results", "app.formats.npy",
        "app.formats.png", "app.images", "app.label_spaces", "app.settings",
    ),
    "app.http": (
        "seg_loss", "app.errors", "app.settings", "app.devices", "app.options", "app.inputs",
        "app.results", "app.operations", "app.formats", "app.images.palettes", "app.network",
        "app.input_reports", "app.preprocessing",
    ),
    "app.http.pages": ("app.errors", "app.http.routing"),
    "app.http.routing": (),
    "app.http.sample": ("app.formats", "app.http.pool", "app.images"),
    # training: command -> loop -> objective, validation, checkpoints, callbacks -> samples -> data.
    # `options` is imported by the command line, and imports no torch.
    "app.training": (),
    "app.training.recipes": (),
    "app.training.options": (
        "seg_loss", "app.errors", "app.options", "app.preprocessing", "app.training.recipes",
    ),
    "app.training.data": (
        "app.errors", "app.formats", "app.images.palettes", "app.label_spaces", "app.terminal",
    ),
    "app.training.samples": (
        "app.errors", "app.preprocessing", "app.training.data", "app.training.interrupts",
        "app.training.recipes",
    ),
    "app.training.networks": ("seg_loss", "models", "app.models_import"),  # models: types alone
    "app.training.distributed": (),
    "app.training.interrupts": (),
    "app.training.optimization": ("app.training.recipes",),
    "app.training.objective": (
        "seg_loss", "app.training.distributed", "app.training.networks", "app.training.recipes",
    ),
    "app.training.validation": (
        "seg_loss", "app.training.data", "app.training.distributed", "app.training.networks",
        "app.training.samples",
    ),
    "app.training.checkpoints": (
        "app.errors", "app.formats.safetensors", "app.models_import", "app.training.networks",
    ),
    "app.training.initialization": (
        "app.errors", "app.models_import", "app.training.checkpoints", "app.training.networks",
    ),
    "app.training.callbacks": (
        "seg_loss", "app.errors", "app.images", "app.loggers", "app.options", "app.report",
        "app.terminal", "app.training.checkpoints", "app.training.options", "app.training.recipes",
        "app.training.samples", "app.training.validation",
    ),
    "app.training.loop": ("app.training",),
    "app.training.command": (
        "seg_loss", "app.devices", "app.errors", "app.images.palettes", "app.models_import",
        "app.report", "app.training",
    ),
    "app.cli": (
        "seg_loss", "app.errors", "app.settings", "app.report", "app.devices", "app.options",
        "app.input_reports", "app.inputs", "app.results", "app.operations", "app.formats",
        "app.images", "app.http.server", "app.terminal", "app.folders", "app.network",
        "app.prediction_report", "app.training",
    ),
    # Nothing imports app but app, and nothing imports the tests.
    "benchmarks": ("seg_loss", "models"),
    "benchmarks.pictures": ("app.formats.png", "app.images", "benchmarks.cpu"),
}  # fmt: skip
# Packages of others, and the only modules or packages that may import them.
ONLY_IN = {
    "numba": (
        *(f"seg_loss.cpu.{name}"
          for name in ("best_class", "columns", "compiler", "cross_entropy", "dtypes", "evaluate",
                       "exponential", "interval_columns", "labels", "many_classes", "predict",
                       "region", "rows", "simd", "softmax", "sums", "tiles", "upsampled")),
        "benchmarks",
    ),
    "llvmlite": tuple(
        f"seg_loss.cpu.{name}"
        for name in ("best_class", "cache", "compiler", "dtypes", "exponential",
                     "interval_columns", "simd", "sums", "target")
    ),
    "triton": (
        *(f"seg_loss.gpu.{name}"
          for name in ("arguments", "cross_entropy", "evaluate", "evaluation", "interpolation",
                       "label_check", "labels", "loss", "many_classes", "math", "plan", "predict",
                       "prediction", "softmax", "upsampled")),
        "benchmarks",
    ),
    "torch.distributed": ("seg_loss._divisor", "app.training.distributed"),
    "seg_loss.reference": ("benchmarks",),
    "fastapi": ("app.http",),
    "starlette": ("app.http",),
    "uvicorn": ("app.http",),
    "httptools": ("app.http.protocol",),
    "prometheus_client": ("app.http",),
    "typer": ("app.cli",),
    "google.protobuf": ("models.caffe_weights",),
}  # fmt: skip
# All packages of others that a package may import.
OTHERS = {
    "seg_loss": {"torch", "numpy", "numba", "llvmlite", "triton"},
    "models": {"torch", "numpy", "google", "safetensors"},
    "app": {"torch", "numpy", "models", *entry_point.EXTRA},
}
MAX_APP_LEVEL = 8


@functools.cache
def imports_of(name: str, *, of_functions: bool = True) -> frozenset[str]:
    """Returns the full names that a module imports, with or without those inside functions."""
    path = MODULES[name]
    is_package = path.name == "__init__.py"
    package = name.split(".") if is_package else name.split(".")[:-1]
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree) if of_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return frozenset(names)


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    """Returns whether a name is one of these modules or packages, or inside one of them."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def module_of(name: str) -> str | None:
    """Returns the module of the repository that a full name belongs to; None for other names."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def local_imports_of(name: str, *, of_functions: bool = True) -> set[str]:
    """Returns the modules of the repository that a module imports."""
    modules = {module_of(full) for full in imports_of(name, of_functions=of_functions)}
    return {module for module in modules if module is not None and module != name}


def row_of(name: str) -> str:
    """Returns the key of the row for a module."""
    while name not in ARROWS:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_arrows(name):
    row = row_of(name)
    allowed = ARROWS[row] if row == name else (*ARROWS[row], row)
    for imported in local_imports_of(name):
        assert is_in(imported, allowed), f"{name} imports {imported}, allowed are {allowed}"


@pytest.mark.parametrize("name", [name for name in MODULES if not is_in(name, ("benchmarks",))])
def test_every_module_but_the_benchmarks_has_a_row(name):
    assert name in PACKAGES or row_of(name) not in PACKAGES, "add a row for it"


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_are_imported_only_where_the_table_says(package):
    importers = {
        name for name in MODULES if any(is_in(full, (package,)) for full in imports_of(name))
    }
    for name in importers:
        assert is_in(name, ONLY_IN[package]), f"{name} imports {package}"
    if package in ("numba", "triton"):
        kernels = {name for name in ONLY_IN[package] if is_in(name, ("seg_loss",))}
        assert kernels <= importers


@pytest.mark.parametrize("package", OTHERS)
def test_each_package_needs_few_packages_of_others(package):
    for name in MODULES:
        if is_in(name, (package,)):
            found = {full.partition(".")[0] for full in imports_of(name)}
            found -= {*sys.stdlib_module_names, "seg_loss", package}
            assert found <= OTHERS[package], name


@pytest.mark.parametrize("name", [name for name in MODULES if is_in(name, ("app", "models"))])
def test_app_and_models_use_public_names_of_the_library(name):
    public = {*seg_loss.__all__, "constants", "diagnosis", "metrics", "upsampling"}
    for full in imports_of(name):
        package, _, path = full.partition(".")
        if package == "seg_loss" and path:
            assert path.split(".")[0] in public, full
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "seg_loss":
            assert node.attr in public, node.attr


def test_the_extra_of_the_app_has_no_package_that_it_does_not_import():
    imported = {
        full.partition(".")[0]
        for name in MODULES
        if is_in(name, ("app", "models"))
        for full in imports_of(name)
    }
    assert set(entry_point.EXTRA) <= imported


def test_no_package_imports_the_tests():
    for name in MODULES:
        assert not any(is_in(full, ("tests",)) for full in imports_of(name)), name


def test_backends_are_imported_by_name_on_first_use():
    assert {"cpu": backends.NUMBA, "cuda": backends.TRITON} == {
        "cpu": "seg_loss.cpu.backend",
        "cuda": "seg_loss.gpu.backend",
    }
    for name in MODULES:
        if not is_in(name, ("benchmarks",)):
            modules = {module_of(full) for full in imports_of(name)}
            assert not modules & {backends.NUMBA, backends.TRITON}, name


@functools.cache
def level_of(name: str) -> int:
    """Returns 0 for a module that imports none of its package, else one more than the highest."""
    package = (name.partition(".")[0],)
    imported = local_imports_of(name, of_functions=False)
    return max((level_of(module) + 1 for module in imported if is_in(module, package)), default=0)


def test_chains_of_imports_in_the_app_are_short():
    levels = {name: level_of(name) for name in MODULES if is_in(name, ("app",))}
    assert max(levels.values()) <= MAX_APP_LEVEL, levels


def test_the_server_is_imported_only_by_the_command_that_serves():
    assert "app.http.server" not in local_imports_of("app.cli", of_functions=False)
    functions = [
        node.name
        for node in ast.walk(ast.parse(MODULES["app.cli"].read_text()))
        if isinstance(node, ast.FunctionDef) and "server" in ast.unparse(node)
    ]
    assert functions == ["serve"]


@pytest.mark.parametrize("name", [name for name in MODULES if is_in(name, ("app",))])
def test_modules_of_the_app_have_no_aliases(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert all(alias.asname is None for alias in node.names)
