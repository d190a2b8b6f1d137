"""What is installed for the tests has to be what a user may install, too."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def requirements(file: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements" / file).read_text().splitlines()]
    return {requirement.name: requirement for line in lines if line for requirement in [Requirement(line)]}


def test_every_pin_lies_within_the_bounds_of_the_package():
    pins = requirements("pins.txt")
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        bound = Requirement(text)
        (pin,) = pins[bound.name].specifier
        assert pin.operator == "=="
        assert bound.specifier.contains(pin.version), f"{pins[bound.name]} is outside of {bound}"


def test_every_tool_is_pinned():
    assert set(requirements("dev.txt")) <= set(requirements("pins.txt"))
