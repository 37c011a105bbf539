# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Known vulnerabilities of the versions in constraints.txt, as pip-audit finds them.

    .venv-release/bin/python .ci/audit.py [REQUIREMENTS]      # make audit

Exit code 1 if there are any. What could not be looked up is counted and said, and is no failure: a machine without
the index learns nothing here, and has to be told so.
"""

import json
import subprocess
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    (requirements,) = list(sys.argv[1:] if argv is None else argv) or ["constraints.txt"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps", "--disable-pip"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: NOTHING WAS AUDITED, as the index could not be reached or pip-audit failed: {reason}")
        return 0
    return report(packages)


def report(packages: list[dict]) -> int:
    """Print what pip-audit says of `[{"name", "version", "vulns"} or {"name", "skip_reason"}]`; the exit code."""
    skipped = [package for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for found in package["vulns"]:
            names = " ".join([found["id"], *found.get("aliases", [])])
            remedy = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"audit: {package['name']} {package['version']}: {names}; mended in {remedy}")
    audited = len(packages) - len(skipped)
    if not audited:
        print(f"audit: NOTHING WAS AUDITED: the index could not be reached for any of {len(packages)} packages.")
        return 0
    print(f"audit: {audited} of {len(packages)} packages looked up, {len(vulnerable)} with known vulnerabilities.")
    if skipped:
        print(f"audit: not looked up: {', '.join(package['name'] for package in skipped)}.")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
