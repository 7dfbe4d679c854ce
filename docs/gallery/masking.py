"""Gradient masking, caught

A staircase in the place of ReLU has no gradient. PGD finds nothing and the network looks robust. The
report lists the signs of masking, and the adaptive attack goes through a smooth surrogate.
"""

import torch

import curvact as cv

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
model = cv.models.build("mlp", activation="relu", channels=1, size=8)
cv.fit(model, data, cv.Recipe(objective="standard", epochs=4, validation="pgd-0"), linf)
stairs = cv.activations.Elementwise(lambda x: torch.floor(4 * x.clamp(min=0)) / 4)
cv.swap_activations(model.eval(), cv.activations.ReLU, lambda: stairs)

test = data.test.first(60)
x, y = test.inputs(), test.labels
print("under PGD-20:  ", cv.attacks.accuracy(model, x, y, "pgd-20", linf))
adaptive = cv.attacks.adaptive_attack(model, x, y, linf, steps=10)
for name, value in adaptive.accuracy_after.items():
    print(f"  left after {name:18} {value:.0%}")
for finding in cv.attacks.masking_report(model, x, y, linf, queries=50).alarms:
    print(finding)
