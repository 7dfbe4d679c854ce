"""PGD, and the radius of each image

PGD looks for a small change of an image that fools the network. A search over ε gives each image its
own smallest radius, an upper bound of the true one. Above: images and their radius. Below: PGD at 1.1 times it.
"""

from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import house_style, write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.2)
model = cv.models.build("mlp", activation="rctaf(curvature=2)", channels=1, size=8)
cv.fit(model, data, cv.Recipe(epochs=3, attack="pgd-5", warmup=0.3), linf)

test = data.test.first(8)
x, y = test.inputs(), test.labels
radius = cv.attacks.minimum_radius(model.eval(), x, y, high=0.5, attack="pgd-20")
print("smallest radii:", [round(value, 3) for value in radius.tolist()])

with house_style():
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for column, axes in enumerate(figure.subplots(2, 8).T):
        one = slice(column, column + 1)
        near = cv.ThreatModel("linf", max(1.1 * radius[column].item(), 0.01))
        fooled = cv.PGD(40, restarts=5, loss="margin")(model, x[one], y[one], near)
        for ax, image in zip(axes, (x[one], fooled), strict=True):
            ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[], xlabel=f"read as {model(image).argmax().item()}")
        axes[0].set_title(f"{radius[column].item():.2f}")
write_figure(figure, "radius")
