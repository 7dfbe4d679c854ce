"""A training curve

PGD adversarial training of a small network on digits. The best epoch is chosen on validation images.
A robust curve that falls after it would be robust overfitting.
"""

import curvact as cv
from curvact.lab.report.style import write_figure
from curvact.lab.report.training_curves import curves_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
model = cv.models.build("mlp", activation="rctaf(curvature=2)", channels=1, size=8)
recipe = cv.Recipe(epochs=10, attack="pgd-3", validation="pgd-5", warmup=0.3)
history = cv.fit(model, data, recipe, linf)
print(f"{history[-1].gradient_evaluations:,} gradient evaluations")
write_figure(curves_figure([epoch.as_dict() for epoch in history], "PGD-AT on digits"), "training_curve")
