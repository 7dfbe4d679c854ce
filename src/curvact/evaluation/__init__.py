"""Robustness on record: run an attack on a model and data, keep what came out, compare."""
