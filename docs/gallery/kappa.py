"""κ of activations

κ is the largest |σ″|: how sharply an activation bends. Six activations, each with the peak of its σ″.
ReLU has no picture here, because its κ is infinite.
"""

import torch
from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import house_style, looks_of, write_figure

names = ["gelu", "silu", "softplus", "swish(curvature=2)", "rctaf(curvature=2)", "squareplus(curvature=2)"]
x = torch.linspace(-3, 3, 1201, dtype=torch.float64)

with house_style():
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    ax = figure.subplots()
    for name, look in looks_of(names).items():
        act = cv.activation(name).double()
        peak = act.max_curvature
        ax.plot(x, act.curvature(x), color=look.colour, label=f"{name}: κ = {peak.value:.3g}")
        ax.plot(peak.at, act.curvature(torch.tensor([peak.at]).double()), look.marker, color=look.colour)
    ax.set(title="σ″ and its peak κ", xlabel="x")
    figure.legend(loc="outside right upper")
write_figure(figure, "kappa")
