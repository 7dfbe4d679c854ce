"""Catastrophic overfitting of single-step adversarial training: noticed when it happens."""

from __future__ import annotations

import math
from collections.abc import Mapping

from curvact.errors import CurvactError

_STATE = ("drop", "best", "best_at", "last", "updates")


class OverfittingGuard:
    """Watches PGD accuracy on a batch of training images, and says when it collapses.

    Single-step training can, within an epoch, learn to defeat its own one-step attack alone: accuracy on its training images
    stays high while PGD accuracy falls towards 0 (Wong et al. 2020, arXiv 2001.03994).

    It cannot notice a training that was never robust by more than `drop`.

    drop: the alarm is given when PGD accuracy lies by more than this below the best so far. [paper] 0.2, of accuracies of 5 PGD
        steps on one training batch after each epoch; the authors' code compares with the epoch before. [ours] The best so far,
        so that a fall over two checks counts too. Use at least 100 images: with 128 the accuracy's standard error is up to 0.044.
    Raises CurvactError unless 0 < drop < 1.

    >>> guard = OverfittingGuard()
    >>> [guard.update(accuracy) for accuracy in (0.31, 0.42, 0.35, 0.02)]
    [False, False, False, True]
    >>> print(guard.message)
    catastrophic overfitting: PGD accuracy on training images fell from 0.420 (check 2) to 0.020 (check 4), by more than 0.2: ...
    """

    def __init__(self, drop: float = 0.2) -> None:
        if not _is_fraction(drop) or not 0 < drop < 1:
            raise CurvactError(f"drop={drop!r} of the overfitting guard: a number in (0, 1)")
        self.drop = float(drop)
        self.best = 0.0
        self.best_at = 0
        self.last = 0.0
        self.updates = 0

    def update(self, robust_accuracy: float) -> bool:
        """Note one PGD accuracy on training images, a fraction; True if training has collapsed now.

        Raises CurvactError for anything but a number in [0, 1].
        """
        if not _is_fraction(robust_accuracy):
            raise CurvactError(
                f"robust accuracy {robust_accuracy!r} given to the overfitting guard: a number in [0, 1]"
            )
        self.updates += 1
        self.last = float(robust_accuracy)
        if self.last > self.best:
            self.best, self.best_at = self.last, self.updates
        return self.alarmed

    @property
    def alarmed(self) -> bool:
        """Whether the last accuracy lies by more than `drop` below the best."""
        return self.best - self.last > self.drop + 1e-9  # 0.8 − 0.6 is 0.2 and a rounding error

    @property
    def message(self) -> str:
        """One line for the user; empty if there is nothing to say."""
        if not self.alarmed:
            return ""
        return (
            f"catastrophic overfitting: PGD accuracy on training images fell from {self.best:.3f} (check {self.best_at}) to "
            f"{self.last:.3f} (check {self.updates}), by more than {self.drop:g}: keep the weights of check {self.best_at}; "
            "a smaller step or ε, n-fgsm, grad-align and pgd-at are the known remedies"
        )

    def state_dict(self) -> dict[str, float | int]:
        """Everything it knows, as plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Go on from a `state_dict`. Raises CurvactError, with nothing changed, for other keys or values."""
        if set(state) != set(_STATE):
            raise CurvactError(
                f"state of the overfitting guard has {', '.join(sorted(state)) or 'nothing'}: needs {', '.join(_STATE)}"
            )
        for name in _STATE:
            value = state[name]
            if name in ("best_at", "updates"):
                fits, allowed = _is_count(value), "a whole number >= 0"
            elif name == "drop":
                fits, allowed = _is_fraction(value) and 0 < value < 1, "a number in (0, 1)"
            else:
                fits, allowed = _is_fraction(value), "a number in [0, 1]"
            if not fits:
                raise CurvactError(f"{name}={value!r} in the state of the overfitting guard: {allowed}")
        self.drop, self.best, self.last = (float(state[name]) for name in ("drop", "best", "last"))
        self.best_at, self.updates = int(state["best_at"]), int(state["updates"])


def _is_fraction(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1  # type: ignore[arg-type, operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
