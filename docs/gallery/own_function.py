"""κ of a function of your own

Any scalar function has a κ. It is measured from the values of the function, with its place and a
bound of its error. Registered under a name, the function works in networks, specs and commands.
"""

import torch
from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import OKABE_ITO, house_style, write_figure


def wave(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(2 * x) + 0.2 * torch.sin(3 * x) * torch.exp(-x * x)


peak = cv.max_curvature(wave)
cv.register("wave", lambda: cv.activations.Elementwise(wave))
print(peak)
print(cv.activation("wave").max_curvature.value)

x = torch.linspace(-4, 4, 801, dtype=torch.float64)
with house_style():
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, wave(x), color=OKABE_ITO[0])
    left.set(title="σ")
    right.plot(x, cv.activations.Elementwise(wave).curvature(x), color=OKABE_ITO[0])
    right.plot(peak.at, peak.value, "o", color=OKABE_ITO[1])
    right.set(title=f"σ″, κ = {peak.value:.3f} at x = {peak.at:.3f}")
write_figure(figure, "own_function")
