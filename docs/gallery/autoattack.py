"""AutoAttack on digits

The ensemble runs attack after attack on the images that are left. An image is robust if all of them
fail. The grey bars are weaker attacks alone, for comparison.
"""

from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import GREY, OKABE_ITO, house_style, write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.2)
model = cv.models.build("mlp", activation="rctaf(curvature=2)", channels=1, size=8)
cv.fit(model, data, cv.Recipe(epochs=4, attack="pgd-5", warmup=0.3), linf)

model.eval()
test = data.test.first(40)
x, y = test.inputs(), test.labels
alone = {name: cv.attacks.accuracy(model, x, y, name, linf).robust for name in ("fgsm", "pgd-20")}
left = cv.autoattack(model, x, y, linf, mode="fast").accuracy_after | alone
for name, value in left.items():
    print(f"{name:10} {value:.1%}")

with house_style():
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    ax = figure.subplots()
    colours = [GREY if name in alone else OKABE_ITO[0] for name in left]
    bars = ax.bar(list(left), [100 * value for value in left.values()], color=colours)
    ax.bar_label(bars, fmt="%.0f")
    ax.set(title="accuracy on what each attack left, % of 40 images", ylim=(0, 110))
write_figure(figure, "autoattack")
