from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    value: float
    at: float
    error: float = 0.0


def max_curvature(f):
    raise NotImplementedError
