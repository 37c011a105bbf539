# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The command line of SEVLM.

    sevlm explain painting.jpg --model org/sevlm-artemis          explain pictures: a table, JSON or a file
    sevlm push outputs/demo org/sevlm-demo                        publish a checkpoint on the Hub
    sevlm convert RELEASE_DIR --output_dir outputs/authors        convert the release of the paper's authors
    sevlm space org/sevlm-artemis org/sevlm                       publish the page as a Space
    sevlm --version

`sevlm COMMAND --help` lists the options of a command. Without a command, the arguments are those of `explain`.
"""

# This module is outside the packages because importing those loads PyTorch, which --help and --version do not need.
import sys
from importlib.metadata import PackageNotFoundError, version


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names and returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    if words[:1] == ["--version"]:
        print(f"sevlm {installed('sevlm')} (torch {installed('torch')}, transformers {installed('transformers')})")
        return 0
    command = words[0] if words else ""
    if command == "push":
        from modeling_sevlm.push import main as push

        push(words[1:])
    elif command == "convert":
        from modeling_sevlm.convert_sevlm_checkpoint import main as convert

        convert(words[1:])
    elif command == "space":
        from modeling_sevlm.space import main as publish_space

        publish_space(words[1:])
    else:
        from modeling_sevlm.explain import main as explain

        return explain(words[1:] if command == "explain" else words)
    return 0


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
