"""Catastrophic overfitting of single-step adversarial training: noticed when it happens."""

from __future__ import annotations

from collections.abc import Sequence

from curvact.errors import CurvactError
from curvact.training.parsing import is_number


def overfitting(accuracies: Sequence[float], drop: float = 0.2) -> str:
    """One line for the user if PGD accuracy on training images has collapsed, else empty.

    Within an epoch, single-step training can learn to defeat its own one-step attack only: accuracy
    under that attack stays high while PGD accuracy falls towards 0 (Wong et al. 2020, arXiv
    2001.03994). A training that was never robust by more than `drop` is not noticed.

    accuracies: fractions, one a check, the last one newest.
    drop: the last accuracy is a collapse if it is lower than the best by more than this. [paper]
        0.2, of accuracies under 5 PGD steps on one training batch after each epoch; the authors'
        code compares with the epoch before. [ours] The best so far, so that a fall over two checks
        counts too. With 128 images the standard error of an accuracy is up to 0.044.
    Raises CurvactError unless 0 < drop < 1 and the last accuracy is a number in [0, 1].

    >>> overfitting([0.31, 0.42, 0.35])
    ''
    >>> print(overfitting([0.31, 0.42, 0.35, 0.02]))
    catastrophic overfitting: PGD accuracy on training images fell from 0.420 (check 2) to 0.020 ...
    """
    if not is_number(drop) or not 0 < drop < 1:
        raise CurvactError(f"drop={drop!r} of the overfitting guard: a number in (0, 1)")
    last, best = accuracies[-1], max(accuracies)
    if not is_number(last) or not 0 <= last <= 1:
        raise CurvactError(f"robust accuracy {last!r} for the overfitting guard: a number in [0, 1]")
    if best - last <= drop + 1e-9:  # 0.8 − 0.6 is 0.2 and a rounding error
        return ""
    at = list(accuracies).index(best) + 1
    return (
        f"catastrophic overfitting: PGD accuracy on training images fell from {best:.3f} (check {at}) "
        f"to {last:.3f} (check {len(accuracies)}), by more than {drop:g}: keep the weights of check {at}; "
        "a smaller step or ε, n-fgsm, grad-align and pgd-at are the known remedies"
    )
