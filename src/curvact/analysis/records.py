"""Results as plain JSON, and the type of progress callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

OnProgress = Callable[[int, int | None], None]
"""Called as (done, total); total is None where it is not known."""


def finite(value: Any) -> Any:
    """None for a float that is not finite, which JSON does not have; any other value as it is.

    >>> finite(float("inf")), finite(2), finite("a")
    (None, 2, 'a')
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences and tensors as JSON has them; a number that is not finite is
    None.

    >>> plain({"a": (1.0, float("inf"))})
    {'a': [1.0, None]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return finite(value)
