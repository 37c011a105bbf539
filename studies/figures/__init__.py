"""The paper's figures from saved results: `python -m studies.figures --help`."""
