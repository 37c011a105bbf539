"""How fast SEVLM is, and against what: `python -m benchmarks --help`. docs/performance.md says how to read it."""
