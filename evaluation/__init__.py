"""Modules of `evaluate_sevlm.py`: predictions, files of predictions, scores, significance tests, and the judge of EA."""
