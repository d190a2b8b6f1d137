"""The rules of the house in five tests: layers, cycles, late imports, sizes, and what no file may do."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "selfdistill"
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up: a module may import from lower rows only, or from its own package.
LAYERS = (
    ("errors",),
    ("types",),
    ("options", "plugins", "files"),
    ("losses", "runs"),
    ("prompts",),
    ("protocol",),
    ("models", "envs"),
    ("data",),
    ("methods",),
    ("config",),
    ("scale",),
    ("training",),
    ("test_time",),
    ("analysis",),
    ("live",),
    ("view",),
    ("faces",),
    ("cli", "api"),
    ("testing", "experiments"),
)
# Only these may import inside a function, each for its reason.
LATE_IMPORTS = {
    "cli": "torch takes seconds to import, and --help should not",
    "scale": "torch's FSDP takes seconds to import, and one process needs none of it",
    "models": "transformers and peft take seconds to import, and a toy model needs neither",
}
BROAD, BROAD_IN = ("Exception", "BaseException"), ("envs", "training", "cli")


def layer(module: str) -> int:
    """The row of a module such as "runs.store"."""
    return next(row for row, names in enumerate(LAYERS) if package_of(module) in names)


def module_of(file: Path) -> str:
    """`src/selfdistill/runs/store.py` → "runs.store"; "" for the package itself."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, wherever in the file, and whether a function does it."""
    tree, found = tree_of(file), []
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module
            found += [(f"{node.module}.{alias.name}", late) for alias in node.names]
    return found


def ours(file: Path) -> list[str]:
    """What a file imports from this package, without the package's name."""
    return [name.removeprefix("selfdistill.") for name, _ in imports(file) if name.startswith("selfdistill.")]


def package_of(module: str) -> str:
    return module.split(".")[0]


def exempt(module: str) -> bool:
    """The package's own `__init__` (the public surface) and `__main__` stand above all layers."""
    return module in ("", "__main__")


def upward(file: Path, module: str) -> Iterator[str]:
    """Imports of a file that point up, or sideways to another package of its row."""
    package = package_of(module)
    allowed = {"losses": ("losses", "errors"), "view": ("view", "runs", "errors", "types")}.get(package)
    for name in ours(file):
        other = package_of(name)
        if (other != package and layer(other) >= layer(package)) or (allowed and other not in allowed):
            yield f"{module} imports {name}"
    if package == "view":
        outside = [name for name, _ in imports(file)]
        yield from (f"{module} imports {name}" for name in outside if package_of(name) in ("torch", "transformers"))


def test_imports_run_downward():
    """Also: `losses/` knows nothing of ours but the errors, and `view/` needs no model."""
    modules = {file: module_of(file) for file in FILES if not exempt(module_of(file))}
    known = {name for names in LAYERS for name in names}
    assert not {package_of(module) for module in modules.values()} - known, "modules without a layer"
    assert not [line for file, module in modules.items() for line in upward(file, module)]


def test_modules_do_not_import_in_a_circle():
    modules = {module_of(file): file for file in FILES if not exempt(module_of(file))}

    def targets(name: str) -> set[str]:
        found = {target if target in modules else target.rpartition(".")[0] for target in ours(modules[name])}
        return {target for target in found if target in modules and target != name}

    graph = {name: targets(name) for name in modules}
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import one another: {sorted(graph)}"


def test_only_named_packages_import_late():
    late = {module_of(file) for file in FILES if any(is_late for _, is_late in imports(file))}
    assert not [module for module in late if package_of(module) not in LATE_IMPORTS]


def test_files_stay_short():
    """A file has at most 400 lines; a method's file at most 60 for each of its methods, imports and all."""
    lengths = {module_of(file): len(file.read_text().splitlines()) for file in FILES}
    assert not {module: lines for module, lines in lengths.items() if lines > 400}
    methods = [file for file in FILES if module_of(file).startswith("methods.")]
    classes = {module_of(f): sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree_of(f))) for f in methods}
    classes.pop("methods.base", None)  # the base of all of them is no method
    assert not {module: lengths[module] for module, count in classes.items() if lengths[module] > 60 * count}


def forbidden(file: Path) -> Iterator[str]:
    """Prints outside of the command line, and handlers that swallow everything.

    A broad handler is allowed where a user's own function is called (an environment, a callback) and in the process
    that runs untrusted programs: there anything may be raised, and the line carries the linter's mark. Cleaning up and
    raising again swallows nothing.
    """
    package, lines = package_of(module_of(file)), file.read_text().splitlines()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if package != "cli":
                yield f"{file}:{node.lineno} prints"
        elif isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
            caught = (
                {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else set(BROAD)
            )
            if caught & set(BROAD) and (package not in BROAD_IN or "BLE001" not in lines[node.lineno - 1]):
                yield f"{file}:{node.lineno} catches everything"


def test_no_module_prints_or_swallows_every_error():
    assert not [line for file in FILES for line in forbidden(file)]
