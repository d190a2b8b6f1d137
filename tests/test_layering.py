"""The house rules that a reader relies on: where imports may point, and what no file may hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "selfdistill"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up: a module may import from lower rows only, or from its own package.
LAYERS = (
    ("errors", "types"),
    ("options", "plugins", "files", "randomness"),
    ("losses", "runs"),
    ("prompts",),
    ("models", "envs"),
    ("data",),
    ("methods",),
    ("config",),
    ("training",),
    ("sapling",),
    ("test_time",),
    ("analysis",),
    ("view",),
    ("cli",),
)
# Only these may import inside a function, each for its reason.
LATE_IMPORTS = {
    "cli": "torch takes seconds to import, and --help should not",
    "models": "transformers and peft take seconds to import, and a toy model needs neither",
    "sapling": "growing needs transformers, the tokenizer does not",
}
BROAD = ("Exception", "BaseException")


def layer(module: str) -> int:
    """The row of a module such as "runs.store"."""
    return next(row for row, names in enumerate(LAYERS) if module.split(".")[0] in names)


def module_of(file: Path) -> str:
    """`src/selfdistill/runs/store.py` → "runs.store"; "" for the package itself."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, wherever in the file, and whether a function does it."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module
            yield from ((f"{node.module}.{alias.name}", late) for alias in node.names)


def ours(file: Path) -> Iterator[tuple[str, bool]]:
    """The imports of a file that are modules of this package, without its name."""
    for name, late in imports(file):
        if name.startswith("selfdistill."):
            yield name.removeprefix("selfdistill."), late


def exempt(module: str) -> bool:
    """The package's own `__init__` (the public surface) and `__main__` stand above all layers."""
    return module in ("", "__main__")


def test_every_module_has_its_layer():
    known = {name for names in LAYERS for name in names}
    assert {module_of(file).split(".")[0] for file in FILES} - {"", "__main__"} <= known


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_run_downward(file: Path):
    module = module_of(file)
    if exempt(module):
        return
    package = module.split(".")[0]
    outside = [name for name, _ in ours(file) if name.split(".")[0] != package]
    assert not [name for name in outside if layer(name) >= layer(module)]


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_only_named_packages_import_late(file: Path):
    package = module_of(file).split(".")[0]
    late = [name for name, is_late in imports(file) if is_late]
    assert not late or package in LATE_IMPORTS


def test_the_losses_are_torch_and_nothing_of_ours():
    for file in (SOURCE / "losses").rglob("*.py"):
        outside = [name for name, _ in ours(file) if not name.startswith("losses") and not name.startswith("errors")]
        assert not outside, file


def test_views_need_nothing_of_training():
    for file in (SOURCE / "view").rglob("*.py"):
        assert not [name for name, _ in ours(file) if name.split(".")[0] not in ("view", "runs", "errors", "types")]
        assert not [name for name, _ in imports(file) if name.split(".")[0] in ("torch", "transformers")]


def test_modules_do_not_import_in_a_circle():
    modules = {module_of(file): file for file in FILES if not exempt(module_of(file))}

    def targets(name: str) -> set[str]:
        found = {target if target in modules else target.rpartition(".")[0] for target, _ in ours(modules[name])}
        return {target for target in found if target in modules and target != name}

    graph = {name: targets(name) for name in modules}
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import one another: {sorted(graph)}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_stay_short(file: Path):
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", [file for file in FILES if module_of(file).startswith("methods.")], ids=module_of)
def test_a_method_is_read_at_one_glance(file: Path):
    """Sixty lines, imports and all, for each method of a file; the base of all of them is no method."""
    classes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
    assert module_of(file) == "methods.base" or len(file.read_text().splitlines()) <= 60 * len(classes)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_only_the_command_line_prints(file: Path):
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not prints or module_of(file).startswith("cli")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_nothing_swallows_everything(file: Path):
    """Except where a user's own function is called (an environment), and in the process that runs untrusted programs:
    there anything may be raised, and the line says so to the linter. Cleaning up and raising again is no swallowing."""
    lines = file.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
            continue
        caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else set(BROAD)
        if caught & set(BROAD):
            assert module_of(file).split(".")[0] in ("envs", "cli"), f"{file}:{node.lineno}"
            assert "BLE001" in lines[node.lineno - 1], f"{file}:{node.lineno} gives no reason"
