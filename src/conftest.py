"""Doctests run with one thread, as the tests do."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
