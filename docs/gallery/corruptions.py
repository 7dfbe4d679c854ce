"""Noise, blur and weather

Nobody attacks here: the images are corrupted as a camera or the weather would do it, in five
severities. A network of standard training beside one of PGD adversarial training.
"""

from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import OKABE_ITO, house_style, write_figure

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
names = ["gaussian_noise", "impulse_noise", "contrast", "fog", "pixelate"]
with house_style():
    figure = Figure(figsize=(7.6, 2.6), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True)
    for colour, objective in zip(OKABE_ITO, ("standard", "pgd-at"), strict=False):
        model = cv.models.build("mlp", activation="rctaf(curvature=2)", channels=1, size=8)
        recipe = cv.Recipe(objective=objective, epochs=4, attack="pgd-3", validation="pgd-0", warmup=0.3)
        cv.fit(model, data, recipe, linf)
        found = cv.attacks.corruption_accuracy(model, data.test, corruptions=names)
        print(f"{objective}: clean {found.clean:.1%}, corrupted {found.mean:.1%}")
        for ax, name in zip(axes, names, strict=True):
            ax.plot(found.severities, [100 * v for v in found.by[name]], "-o", color=colour, label=objective)
            ax.set(title=name.replace("_", " "), xlabel="severity", xticks=found.severities)
            ax.title.set_fontsize(9)
    axes[0].set(ylabel="accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
write_figure(figure, "corruptions")
