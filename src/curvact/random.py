"""Randomness: one explicit generator for each purpose, so that order and number of workers change
nothing.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator determined by the seed, what it is for, and counters such as epoch and rank.

    >>> a, b = generator(0, "shuffle", 3), generator(0, "shuffle", 3)
    >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
    True
    """
    text = ":".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
