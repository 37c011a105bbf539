"""Modules of `evaluate_sevlm.py`: predictions, scores, significance tests, and the judge for EA."""
