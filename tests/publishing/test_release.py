"""The version files of a release agree with the requirements in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).resolve().parents[2]


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


def test_lowest_and_tested_versions_satisfy_the_requirements():
    """The lowest versions are the lower bounds, except for torch and for packages that other packages need newer."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line for text in options for line in text.splitlines() if re.match(r"\w", line)]
    lowest, tested = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    raised = set()
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(lowest[name]) and requirement.specifier.contains(tested[name]), name
        (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
        if not re.fullmatch(re.escape(bound) + r"(\.\d+)*", lowest[name]):
            raised.add(name)
    assert raised <= {"torch", "huggingface-hub", "safetensors", "tokenizers"}
