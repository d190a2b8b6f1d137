"""What users import is a promise: it is listed once, all of it exists, and nothing else slips out."""

import ast
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import selfdistill

NAMES = selfdistill.__all__


def test_every_public_name_exists_once():
    assert len(NAMES) == len(set(NAMES))
    assert not [name for name in NAMES if not hasattr(selfdistill, name)]


def test_the_list_is_in_order():
    constants, rest = [n for n in NAMES if n.isupper()], [n for n in NAMES if not n.isupper()]
    classes, functions = [n for n in rest if n[0].isupper()], [n for n in rest if n[0].islower()]
    assert [*sorted(constants), *sorted(classes), *sorted(functions)] == NAMES


def test_the_surface_stays_small_enough_to_know():
    assert len(NAMES) <= 70


def test_every_public_class_and_function_is_documented():
    public = [getattr(selfdistill, name) for name in NAMES]
    assert not [item for item in public if isinstance(item, type | FunctionType) and not item.__doc__]


def test_what_the_type_checker_imports_is_what_is_loaded():
    tree = ast.parse(Path(selfdistill.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    stated = {
        alias.name: node.module.removeprefix("selfdistill.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert stated == selfdistill._HOME_OF
    at_once = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(NAMES) == stated.keys() | (at_once & set(NAMES))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = selfdistill.trian
    assert dir(selfdistill) == sorted(NAMES)


def test_the_package_is_imported_without_torch():
    code = "import sys, selfdistill; from selfdistill import Task, Outcome; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
