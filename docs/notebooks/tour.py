# %% [markdown]
# # A tour of curvact
#
# Choose an activation by its curvature κ, put it into a network, train it adversarially on real handwritten
# digits, attack it, and look at the curvature of its loss. Everything runs on a CPU within a few minutes.

# %%
import torch

import curvact as cv
from curvact.lab.report.activation_plot import activations_figure
from curvact.lab.report.training_curves import curves_figure

# %matplotlib inline
torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Choose
#
# κ is the largest |σ″|. A family has a member for each κ. Any function of yours has a κ too, measured with
# an error.

# %%
activations_figure(["rctaf(curvature=0.5)", "rctaf(curvature=6)", "gelu"])

# %%
cv.max_curvature(lambda x: x * torch.tanh(x))

# %% [markdown]
# ## Swap
#
# The ReLUs of any `nn.Module` become another activation. The report says where.

# %%
data = cv.data.load("digits")
model = cv.models.build("mini_resnet", channels=1, size=8, width=4)
print(cv.swap_activations(model, "ReLU", "rctaf(curvature=6)"))

# %% [markdown]
# ## Train
#
# The threat model says what an attacker may change: here every pixel by at most 0.15 of the range [0, 1].
# PGD adversarial training follows.

# %%
linf = cv.ThreatModel("linf", 0.15)
history = cv.fit(model, data, cv.Recipe(epochs=5, attack="pgd-3", validation="pgd-5", warmup=0.3), linf)
curves_figure([epoch.as_dict() for epoch in history], "PGD-AT")

# %% [markdown]
# ## Attack
#
# PGD is a quick look. AutoAttack is the number to report: an image is robust if every attack fails.

# %%
model.eval()
test = data.test.first(40)
x, y = test.inputs(), test.labels
print(cv.attacks.accuracy(model, x, y, "pgd-20", linf))

# %%
cv.autoattack(model, x, y, linf, mode="fast").accuracy_after

# %% [markdown]
# Is the number honest? The report looks for signs of gradient masking.

# %%
print(cv.attacks.masking_report(model, x, y, linf, queries=50))

# %% [markdown]
# ## Look at the curvature of the loss
#
# The norm of the Hessian's diagonal, from random probes, with its standard error.

# %%
part = data.train.first(64)
loss = cv.analysis.Loss(model, part.inputs(), part.labels)
cv.analysis.diagonal_norms(loss, probes=16, generator=torch.Generator().manual_seed(0)).rms

# %% [markdown]
# ## Many runs, and pandas
#
# A sweep trains one network for each value and seed. Its runs are a data frame.

# %%
from pathlib import Path
from tempfile import mkdtemp

from curvact.lab import Placement, load_runs, read_sweep, run_sweep

folder = Path(mkdtemp()) / "demo"
settings = ["grid.curvature=[0.5,6]", "grid.seed=[0,1]", "references=[]", "base.training.epochs=1"]
spec = read_sweep("demo", [*settings, "base.evaluation.autoattack_images=0"])
run_sweep(spec, folder, Placement("inline"))
runs = load_runs(folder)
runs.groupby("curvature")[["clean_accuracy", "robust_accuracy"]].mean()
