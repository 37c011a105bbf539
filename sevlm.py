"""The script `sevlm`: says that it starts before it imports the libraries, which takes seconds."""

import sys


def main() -> int:
    """Runs `modeling_sevlm.__main__` and returns its exit code."""
    print("Loading the libraries ...", file=sys.stderr, flush=True)
    from modeling_sevlm.__main__ import main as run

    return run()
