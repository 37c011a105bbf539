"""Modules of `evaluate_sevlm.py`: predictions and files of them, scores, significance tests, the judge of EA."""
