"""The Hessian's diagonal by κ

One network for each κ, trained alike, and the norm of the diagonal of the Hessian of its adversarial
loss. The bars are two standard errors of the estimate by random probes, for one seed of training.
"""

import torch
from matplotlib.figure import Figure

import curvact as cv
from curvact.lab.report.style import (
    CURVATURE_LABEL,
    NORM_LABELS,
    OKABE_ITO,
    house_style,
    log_ticks,
    write_figure,
)

data, linf = cv.data.load("digits"), cv.ThreatModel("linf", 0.15)
part, kappas, norms = data.train.first(128), [0.3, 1, 4, 16, 64], []
for kappa in kappas:
    model = cv.models.build("mlp", activation=f"rctaf(curvature={kappa})", channels=1, size=8, width=32)
    cv.fit(model, data, cv.Recipe(epochs=2, attack="pgd-3", validation="pgd-0", warmup=0.3), linf)
    loss = cv.analysis.Loss(model, part.inputs(), part.labels).attacked(cv.PGD(5).on(linf))
    norms.append(cv.analysis.diagonal_norms(loss, probes=24, generator=torch.Generator().manual_seed(0)).rms)

with house_style():
    figure = Figure(figsize=(5.4, 3), layout="constrained")
    ax = figure.subplots()
    errors = [2 * norm.standard_error for norm in norms]
    ax.errorbar(kappas, [norm.value for norm in norms], errors, color=OKABE_ITO[0], marker="o", capsize=3)
    ax.set(xscale="log", xlabel=CURVATURE_LABEL, title=NORM_LABELS["rms"])
    log_ticks(ax, "x")
write_figure(figure, "hessian")
