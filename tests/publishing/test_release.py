# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What stands around a release: the report of vulnerabilities, and the files of versions."""

import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).resolve().parents[2]
SOUND = {"name": "tqdm", "version": "4.70.1", "vulns": []}
UNKNOWN = {"name": "yarl", "skip_reason": "Dependency not found on PyPI and could not be audited: yarl (1.25.1)"}
FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["13.1"], "description": "..."}
FLAWED = {"name": "pillow", "version": "13.0.0", "vulns": [FLAW]}


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([SOUND], 0, ["1 of 1 packages looked up, 0 with"]),
        ([SOUND, UNKNOWN], 0, ["1 of 2", "not looked up: yarl"]),
        ([UNKNOWN, UNKNOWN], 0, ["NOTHING WAS AUDITED", "could not be reached"]),
        ([SOUND, FLAWED], 1, ["pillow 13.0.0: PYSEC-1 CVE-1; mended in 13.1", "1 with known"]),
    ],
)
def test_the_audit_fails_for_a_vulnerability_and_says_what_it_could_not_look_up(audit, capsys, packages, code, told):
    assert audit.report(packages) == code
    output = capsys.readouterr().out
    assert all(part in output for part in told)


def test_without_pip_audit_or_its_answer_nothing_passes_for_audited(audit, capsys, tmp_path):
    assert audit.main([str(tmp_path / "nothing.txt")]) == 0
    assert "NOTHING WAS AUDITED" in capsys.readouterr().out


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


def test_the_lowest_versions_are_those_that_are_promised():
    """torch stands apart; so do packages that others here want newer."""
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
