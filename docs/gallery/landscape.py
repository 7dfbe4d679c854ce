"""The loss around a network

The clean and the adversarial loss when the weights move in two random directions, in units of the
norm of each filter. The attack runs anew at every point of the grid.
"""

import curvact as cv
from curvact.lab.report.analysis.landscape import landscape_figure
from curvact.lab.report.style import write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
model = cv.models.build("mlp", activation="rctaf(curvature=2)", channels=1, size=8)
cv.fit(model, data, cv.Recipe(epochs=3, attack="pgd-3", validation="pgd-0", warmup=0.3), linf)

part = data.train.first(64)
found = cv.analysis.loss_landscape(
    cv.analysis.Loss(model, part.inputs(), part.labels),
    cv.PGD(3).on(linf),
    points=11,
    seed=0,
)
print("clean and adversarial loss of the network itself: {:.2f}, {:.2f}".format(*found.centre))
write_figure(landscape_figure(found.as_dict(), "a perceptron on digits"), "landscape")
