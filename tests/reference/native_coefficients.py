"""Prints the polynomials of `curvact.activations.kernels.polynomials`, fitted with mpmath. Run it
as a script.

Each is a Chebyshev fit of a smooth factor, written in powers of the distance from a midpoint, where
it is well conditioned.
"""

from __future__ import annotations

import mpmath as mp

mp.mp.dps = 80

TERMS = {  # for float, for double
    "exponential": (5, 11),
    "softplus": (9, 20),
    "rct1": (8, 20),
    "rct2": (7, 20),
    "rct3": (11, 20),
    "normal": (10, 23),
}


def exponential(r: mp.mpf) -> mp.mpf:
    """(eʳ − 1 − r)/r²."""
    return mp.nsum(lambda k: r**k / mp.factorial(k + 2), [0, mp.inf])


def softplus(e: mp.mpf) -> mp.mpf:
    """log(1 + e)/e."""
    return mp.log1p(e) / e


def rct(q: mp.mpf, passes: int) -> mp.mpf:
    """φ(u)/q^m for u < 0, with q = sigmoid(u) and m = 2^passes: the integral of gate(p)/(p(1 − p))
    over p from 0 to q.
    """
    m = 2**passes

    def gate_over_power(z: mp.mpf) -> mp.mpf:
        g = q * z
        for _ in range(passes):
            g = g * g * (3 - 2 * g)
        return g / (q * z * (1 - q * z)) / q ** (m - 1)

    return mp.quad(gate_over_power, [0, 0.5, 1])


def normal(w: mp.mpf) -> mp.mpf:
    """Φ(−a)·e^(a²/2) at w = 4/(4 + a)."""
    a = 4 / w - 4
    return mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2


def fit(function, low: float, high: float, middle: float, terms: int) -> tuple[list[mp.mpf], mp.mpf]:  # type: ignore[no-untyped-def]
    """Coefficients in powers of (x − middle), lowest first, and the largest relative error."""
    interval = [mp.mpf(low), mp.mpf(high)]
    highest_first = mp.chebyfit(function, interval, terms)
    points = [interval[0] + (interval[1] - interval[0]) * mp.mpf(i) / 64 for i in range(1, 65)]
    error = max(abs(mp.polyval(highest_first, p) / function(p) - 1) for p in points)
    return mp.taylor(lambda x: mp.polyval(highest_first, x), middle, terms - 1), error


def main() -> None:
    tiny = 1e-30
    half_ln2 = 0.34660
    for which, digits, top in ((0, 10, 13.2), (1, 18, 37.7)):
        jobs = {
            "exponential": (exponential, -half_ln2, half_ln2, 0),
            "softplus": (softplus, tiny, 1, mp.mpf(1) / 2),
            "rct1": (lambda q: rct(q, 1), tiny, 0.5, mp.mpf(1) / 4),
            "rct2": (lambda q: rct(q, 2), tiny, 0.5, mp.mpf(1) / 4),
            "rct3": (lambda q: rct(q, 3), tiny, 0.5, mp.mpf(1) / 4),
            "normal": (normal, 4 / (4 + top), 1, mp.mpf(5) / 8),
        }
        for name, (function, low, high, middle) in jobs.items():
            coefficients, error = fit(function, low, high, middle, TERMS[name][which])
            row = ", ".join(mp.nstr(c, digits) for c in coefficients)
            print(
                f"{name}, {('float32', 'float64')[which]}, relative error {mp.nstr(error, 2)}:\n    ({row}),"
            )


if __name__ == "__main__":
    main()
