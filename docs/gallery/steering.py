"""Steer a trained network

Every ReLU of a trained network becomes ctu(β), without training: β near 1 is ReLU. β is chosen on
validation images. The verdict is about test images, which took no part in the choice.
"""

from matplotlib.figure import Figure

import curvact as cv
from curvact.lab import steer
from curvact.lab.report.style import GREY, OKABE_ITO, house_style, write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.05)
model = cv.models.build("mlp", activation="relu", channels=1, size=8)
cv.fit(model, data, cv.Recipe(objective="standard", epochs=4, validation="pgd-0"), linf)

betas = [0.6, 0.7, 0.8, 0.9, 0.95]
found = steer(model, data.validation, data.test.first(100), linf, betas=betas, attack="pgd-10")
print(found.verdict)

plain, *steered = found.validation
with house_style():
    figure = Figure(figsize=(5.4, 2.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(betas, [100 * row.robust.value for row in steered], "-o", color=OKABE_ITO[0], label="ctu(β)")
    ax.axhline(100 * plain.robust.value, color=GREY, linestyle="--", label="as it is, with ReLU")
    ax.set(xlabel="β", ylim=(75, 95), title="robust accuracy on validation images, %")
    ax.legend()
write_figure(figure, "steering")
