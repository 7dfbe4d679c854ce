"""A learned activation

PSSiLU has two parameters, α and β, that are trained with the weights and shared by the whole network.
Its shape before and after three epochs of PGD adversarial training, with κ.
"""

import torch
from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import OKABE_ITO, house_style, write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
model = cv.models.build("mlp", activation="pssilu(learnable=True)", scope="network", channels=1, size=8)
recipe = cv.Recipe(epochs=3, attack="pgd-3", validation="pgd-0", beta_penalty=10, beta_clip=0.01, warmup=0.3)
act = next(module for module in model.modules() if isinstance(module, cv.Activation))
x = torch.linspace(-4, 4, 401)

with house_style():
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for colour, when in zip(OKABE_ITO, ("before", "after"), strict=False):
        kappa = act.max_curvature.value
        axes[0].plot(x, act(x).detach(), color=colour, label=f"{when}: κ = {kappa:.2f}")
        axes[1].plot(x, act.slope(x).detach(), color=colour)
        print(when, cv.activations.current_parameters(model))
        if when == "before":
            cv.fit(model, data, recipe, linf)
    axes[0].set(title="σ of PSSiLU")
    axes[0].legend()
    axes[1].set(title="σ′")
write_figure(figure, "learned_shape")
