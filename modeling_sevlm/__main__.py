"""The command line of SEVLM, `sevlm` or `python -m modeling_sevlm`.

    sevlm explain painting.jpg --model org/sevlm-artemis          explain pictures: a table, JSON or a file
    sevlm push outputs/demo org/sevlm-demo                        publish a checkpoint on the Hub
    sevlm convert RELEASE_DIR --output_dir outputs/authors        convert the release of the paper's authors
    sevlm space org/sevlm-artemis org/sevlm                       publish the page as a Space
    sevlm --version

`sevlm COMMAND --help` lists the options of a command. Without a command, the arguments are those of `explain`.
"""

import sys
from importlib.metadata import version

from . import convert_sevlm_checkpoint, explain, push, space


COMMANDS = {"explain": explain, "push": push, "convert": convert_sevlm_checkpoint, "space": space}


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names and returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    if words[:1] == ["--version"]:
        print(*(f"{name} {version(name)}" for name in ("sevlm", "torch", "transformers")), sep=", ")
        return 0
    command = words.pop(0) if words and words[0] in COMMANDS else "explain"
    result = COMMANDS[command].main(words)
    return result if command == "explain" else 0


if __name__ == "__main__":
    sys.exit(main())
