"""Every adversarial loss again, in float64 numpy: a small network with its gradients by hand,
attacks by steps, losses as sums.

The network is x → (x·A + a) → batch norm → tanh → (·B + b). Weights are a dict of arrays;
`training` takes batch statistics.
"""

from __future__ import annotations

import numpy as np

EPS = 1e-5


def forward(w, x, training):  # type: ignore[no-untyped-def]
    """Logits, and what the backward pass needs."""
    z = x @ w["A"] + w["a"]
    mean = z.mean(0) if training else w["mean"]
    var = ((z - z.mean(0)) ** 2).mean(0) if training else w["var"]
    hat = (z - mean) / np.sqrt(var + EPS)
    h = np.tanh(hat * w["g"] + w["s"])
    return h @ w["B"] + w["b"], (hat, var, h)


def input_gradient(w, x, slope, training):  # type: ignore[no-untyped-def]
    """∇ₓ of a loss of the logits, given its slope in them as a function of the logits (N×classes)."""
    logits, (hat, var, h) = forward(w, x, training)
    d_hat = (slope(logits) @ w["B"].T) * (1 - h**2) * w["g"]
    if training:
        d_hat = d_hat - d_hat.mean(0) - hat * (d_hat * hat).mean(0)
    return (d_hat / np.sqrt(var + EPS)) @ w["A"].T


def softmax(logits):  # type: ignore[no-untyped-def]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_softmax(logits):  # type: ignore[no-untyped-def]
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


def cross_entropy(logits, y, smoothing=0.0):  # type: ignore[no-untyped-def]
    classes = logits.shape[1]
    total = 0.0
    for row, label in zip(log_softmax(logits), y, strict=True):
        target = np.full(classes, smoothing / classes)
        target[label] += 1 - smoothing
        total -= float((target * row).sum())
    return total / len(y)


def kl_rows(clean, attacked):  # type: ignore[no-untyped-def]
    """KL(p ‖ q) of each row of logits; 0·log 0 is 0."""
    p, log_p, log_q = softmax(clean), log_softmax(clean), log_softmax(attacked)
    return np.array(
        [
            sum(a * (b - c) for a, b, c in zip(*rows, strict=True) if a > 0)
            for rows in zip(p, log_p, log_q, strict=True)
        ]
    )


def trades(clean, attacked, y, beta, smoothing=0.0):  # type: ignore[no-untyped-def]
    return cross_entropy(clean, y, smoothing) + beta * kl_rows(clean, attacked).sum() / len(y)


def mart(clean, attacked, y, beta, smoothing=0.0):  # type: ignore[no-untyped-def]
    p, q = softmax(clean), softmax(attacked)
    boosted, weighted = 0.0, 0.0
    for i, label in enumerate(y):
        wrong = max(q[i, k] for k in range(q.shape[1]) if k != label)
        boosted -= np.log(1.0001 - wrong)
        weighted += kl_rows(clean[i : i + 1], attacked[i : i + 1])[0] * (1 - p[i, label])
    return cross_entropy(attacked, y, smoothing) + boosted / len(y) + beta * weighted / len(y)


def mart_as_published(clean, attacked, y, beta):  # type: ignore[no-untyped-def]
    """With every small constant of the authors' code."""
    p, q = softmax(clean), softmax(attacked)
    n = len(y)
    value = 0.0
    for i, label in enumerate(y):
        ranked = [k for k in np.argsort(q[i]) if k != label]
        value -= np.log(q[i, label]) + np.log(1.0001 - q[i, ranked[-1]] + 1e-12)
        value += beta * (p[i] * (np.log(p[i]) - np.log(q[i] + 1e-12))).sum() * (1.0000001 - p[i, label])
    return value / n


def misalignment(a, b):  # type: ignore[no-untyped-def]
    """1 − mean cosine over the rows of which neither is zero."""
    cosines = [
        float(u @ v) / float(np.sqrt(u @ u) * np.sqrt(v @ v))
        for u, v in zip(a, b, strict=True)
        if u.any() and v.any()
    ]
    return float(np.mean([1 - c for c in cosines])) if cosines else 0.0


def ce_slope(y):  # type: ignore[no-untyped-def]
    """Slope in the logits of the sum of cross-entropies."""
    return lambda logits: softmax(logits) - np.eye(logits.shape[1])[y]


def kl_slope(clean):  # type: ignore[no-untyped-def]
    """Slope in the attacked logits of the sum of KL(p ‖ q)."""
    return lambda logits: softmax(logits) - softmax(clean)


def ascend(w, x, start, slope, *, steps, step, epsilon, norm, training, project=True):  # type: ignore[no-untyped-def]
    """PGD from a given start on the loss with this slope in the logits."""
    at = start.copy()
    for _ in range(steps):
        gradient = input_gradient(w, at, slope, training)
        for i in range(len(x)):
            direction = (
                np.sign(gradient[i]) if norm == "linf" else gradient[i] / np.sqrt((gradient[i] ** 2).sum())
            )
            moved = at[i] + step * direction
            if project and norm == "linf":
                moved = np.minimum(np.maximum(moved, x[i] - epsilon), x[i] + epsilon)
            elif project:
                away = moved - x[i]
                moved = x[i] + away * min(1.0, epsilon / np.sqrt((away**2).sum()))
            at[i] = np.clip(moved, 0, 1)
    return at


def differences(function, w, names, step=1e-6):  # type: ignore[no-untyped-def]
    """Central finite differences of function(w) with respect to every entry of the named arrays."""
    gradients = {}
    for name in names:
        gradient = np.zeros_like(w[name])
        for index in np.ndindex(w[name].shape):
            ends = []
            for sign in (1, -1):
                array = w[name].copy()
                array[index] += sign * step
                ends.append(function({**w, name: array}))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients[name] = gradient
    return gradients
