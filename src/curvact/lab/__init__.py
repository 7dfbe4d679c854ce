"""Experiments: what needs YAML, folders, processes and tables. Nothing of the library imports it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
