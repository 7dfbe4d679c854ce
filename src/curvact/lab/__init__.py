"""Experiments: what needs YAML, folders, processes and tables. Nothing of the library imports it."""
