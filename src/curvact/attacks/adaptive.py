"""A verdict that does not trust the gradient of the activations: PGD with several losses, and attacks
through surrogate activations. [ours]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from curvact.activations.selection import Selector
from curvact.attacks.arguments import door
from curvact.attacks.autoattack import CLEAN, MALT
from curvact.attacks.autoattack.apgd import apgd
from curvact.attacks.autoattack.ensemble import Step, chosen_steps
from curvact.attacks.batch import Guarded, check_number, checked, connected, cuts_graph, differ, warn_of
from curvact.attacks.losses import classes
from curvact.attacks.malt import CANDIDATES, malt_order
from curvact.attacks.masking import RATES, allowed, gradient_sizes, margin_gradient
from curvact.attacks.pgd import Model, OnStep, pgd
from curvact.attacks.surrogate import WAYS, Surrogate, SurrogateNetwork, check_surrogate
from curvact.attacks.threat import ThreatModel, distance
from curvact.errors import CurvactError
from curvact.models.modes import frozen, mode

PLAIN = {"pgd-ce": "ce", "pgd-margin": "margin", "pgd-pma": "pma"}
"""The attacks along the network's own gradient, with their losses."""
NAMES = (*PLAIN, *(way.name for way in WAYS))
"""All attacks, in the order in which they run; APGD with MALT's targets runs after `PLAIN` where asked
for.
"""


@dataclass(frozen=True, eq=False)
class AdaptiveResult:
    """The outcome of `adaptive_attack`: the worst case over its attacks.

    clean_accuracy, robust_accuracy: fractions of all images.
    broken_by: for each image the attack that broke it, of `NAMES` or "apgd-malt"; "clean" if the clean
        image is misclassified, None if it is robust.
    x_adv: N×…; x itself where no attack succeeded. perturbation: ‖x_adv − x‖, N.
    accuracy_after: "clean" and each attack → robust accuracy after it.
    notes: why attacks were left out. suspicions: reasons to distrust attacks along the gradient.
    """

    clean_accuracy: float
    robust_accuracy: float
    broken_by: tuple[str | None, ...]
    x_adv: Tensor
    perturbation: Tensor
    accuracy_after: Mapping[str, float]
    threat_model: ThreatModel
    notes: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()

    @property
    def robust(self) -> Tensor:
        """Which images no attack broke. Bool, N."""
        return torch.tensor([by is None for by in self.broken_by])

    @property
    def plain_accuracy(self) -> float:
        """The robust accuracy under the attacks along the network's own gradient alone."""
        return self.accuracy_after[MALT if MALT in self.accuracy_after else list(PLAIN)[-1]]

    def __str__(self) -> str:
        return (
            f"adaptive, {self.threat_model}: clean {self.clean_accuracy:.2%}, plain attacks {self.plain_accuracy:.2%}, "
            f"robust {self.robust_accuracy:.2%} ({len(self.broken_by)} images)"
        )


@door
def adaptive_attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 40,
    restarts: int = 1,
    surrogate: Surrogate | None = None,
    malt: int = 0,
    activations: Selector | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
    on_batch: Callable[[int, float], None] | None = None,
) -> AdaptiveResult:
    """The worst case of six attacks for each image: PGD on three losses, then through surrogates. One
    more, APGD with MALT's targets, runs where asked for.

    The first three follow the network's own gradient, on the cross-entropy, the margin and the
    margin of the probabilities (PMA). "bpda-ce" and "bpda-margin" keep the network's values and
    take the slopes of its activations from a surrogate. "surrogate-margin" attacks the network
    that has the surrogates as its activations, and tries the result on the real one. Images that
    an attack broke are not attacked again. Every success is confirmed by the model itself.

    model: maps N×… inputs in [0, 1] to logits. Of a function only the plain attacks run. It is in
        eval mode inside, restored after; no weight gradient is computed.
    x: N×… in [0, 1]. y: N, whole numbers.
    steps: of each PGD, of length 2.5ε/steps, at most ε. restarts: of each.
    malt: if not 0, "apgd-malt" runs after the first three: APGD on the targeted DLR loss, towards so
        many classes in the order of `malt_order`, with `steps` and `restarts` for each.
    surrogate: None for the activations themselves, averaged over an interval that shrinks with the
        steps, from 1 to 0.1 standard deviations of their inputs to each side. A number κ: the
        interval in which ReLU has this κ, at the end of the attack, and κ/10 at its start. The name
        of an activation: that one, the same at each step.
    activations: which modules are activations, as `from_` of `swap_activations`; None for those of
        torch.nn, those with a slope, and elementwise modules of your own: each output depends on the
        input at its own place only.
    on_step: called as `pgd` calls it. on_batch: called after each batch with the number of images
        done and the robust accuracy so far.
    Cost of an image that withstands all: 6·steps·restarts + 1 gradients and about 20 forward passes; with
        malt, malt·(steps + 1)·restarts gradients more, and one for each class looked at.
    Nothing waits for the device inside the steps; between attacks and restarts it does.
    Raises CurvactError for images outside [0, 1], labels that are no classes, numbers below 1, what is
    no surrogate, and malt under l1, with fewer than 4 classes or with images that are not float32.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)
    >>> result = adaptive_attack(model, x, y, ThreatModel("linf", 0.1), steps=5)
    >>> result.robust_accuracy <= result.plain_accuracy <= result.clean_accuracy
    True
    """
    where = "adaptive_attack"
    for name, value in (("steps", steps), ("restarts", restarts), ("batch_size", batch_size)):
        check_number(value, name, where)
    check_surrogate(surrogate, where)
    check_number(malt, "malt", where, 0)
    x, y, highest = checked(x, y, where, threat_model=threat_model)
    if len(x) == 0:
        raise CurvactError(f"{where} got 0 images: at least 1")
    if malt and x.dtype != torch.float32:
        raise CurvactError(f"malt={malt} of {where} with images of {x.dtype}: APGD takes float32 (x.float())")
    guarded, notes = Guarded(model, where, highest), []
    parts: list[tuple[Tensor, Tensor]] = []
    with mode(model, training=False), frozen(model):
        with torch.no_grad():
            logits = guarded(x[:batch_size])
            warn_of(model, logits, where)
            changes = differ(logits, model(x[:batch_size]))
        network: SurrogateNetwork | None = None
        try:
            network = SurrogateNetwork(model, x[:2], surrogate, activations)
            notes += network.notes
        except CurvactError as error:
            notes.append(f"no attack through surrogate activations: {error}")
        if changes:
            notes.append(
                "the model's outputs change from call to call: every success is confirmed by one more call, and "
                "gradients are of one call (version='rand' of autoattack averages them)"
            )
        attacks = _attacks(model, x[:1], threat_model, network, steps, restarts, generator, on_step)
        names = list(NAMES)
        if malt:
            (step,) = chosen_steps([MALT], threat_model.norm, logits.shape[1], steps=steps, queries=1)
            step = replace(step, targets=min(malt, logits.shape[1] - 1), restarts=restarts)
            attacks.insert(len(PLAIN), partial(_towards, model, step, threat_model, generator))
            names.insert(len(PLAIN), MALT)
        searched, flat = connected(model), 0
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            flat += _without_gradient(searched, images, labels)
            parts.append(_worst(model, images, labels, attacks))
            if on_batch is not None:
                so_far = torch.cat([by for _, by in parts])
                on_batch(len(so_far), (so_far == ROBUST).double().mean().item())
    x_adv = torch.cat([points for points, _ in parts])
    found = torch.cat([by for _, by in parts]).tolist()
    broken_by = tuple(None if by == ROBUST else CLEAN if by == WRONG else names[by] for by in found)
    total = len(broken_by)
    fallen, after = 0, {}
    for name in (CLEAN, *names):
        fallen += broken_by.count(name)
        after[name] = (total - fallen) / total
    ways = [way.name for way in WAYS]
    through = sum(by in ways for by in broken_by)
    rate = allowed(RATES["surrogate activation"], max(total - broken_by.count(CLEAN), 1))
    suspicions = []
    if through > rate * (total - broken_by.count(CLEAN)):
        suspicions.append(
            f"{through} of {total} images withstand PGD on three losses{f' and {MALT}' if malt else ''} and not "
            "attacks through surrogate activations: the activations mask the gradient"
        )
    if flat:
        suspicions.append(
            f"{flat} of {total} images are classified correctly with a margin whose gradient is zero or NaN: attacks "
            "along the gradient start in vain there"
        )
    return AdaptiveResult(
        clean_accuracy=after[CLEAN],
        robust_accuracy=broken_by.count(None) / total,
        broken_by=broken_by,
        x_adv=x_adv,
        perturbation=distance(x_adv, x, threat_model.norm),
        accuracy_after=after,
        threat_model=threat_model,
        notes=tuple(notes),
        suspicions=tuple(suspicions),
    )


WRONG, ROBUST = -1, -2
"""In place of the number of an attack: the clean image is misclassified; no attack broke it."""

_Run = Callable[[Tensor, Tensor], Tensor]


def _attacks(
    model: Model,
    one: Tensor,
    threat_model: ThreatModel,
    network: SurrogateNetwork | None,
    steps: int,
    restarts: int,
    generator: torch.Generator | None,
    on_step: OnStep | None,
) -> list[_Run]:
    """The attacks in the order of `NAMES`."""
    searched = _searchable(model, one)
    plain: list[_Run] = [
        partial(
            pgd,
            searched,
            threat_model=threat_model,
            steps=steps,
            step=min(1.0, 2.5 / steps),
            restarts=restarts,
            loss=loss,
            keep_best=True,
            generator=generator,
            on_step=on_step,
            check=False,
        )
        for loss in PLAIN.values()
    ]
    if network is None:
        return plain
    through: list[_Run] = [
        partial(
            network.attack,
            way,
            threat_model=threat_model,
            steps=steps,
            restarts=restarts,
            generator=generator,
            on_step=on_step,
        )
        for way in WAYS
    ]
    return plain + through


def _searchable(model: Model, one: Tensor) -> Model:
    """The model, with a gradient of zero where it cuts the graph."""
    return connected(model) if cuts_graph(model, one) else model


def _without_gradient(model: Model, x: Tensor, y: Tensor) -> int:
    """How many images are classified correctly and have a margin whose gradient is zero, or NaN."""
    with torch.no_grad():
        right = classes(model(x)) == y
    return int((right & ~(gradient_sizes(margin_gradient(model, x, y)) > 0)).sum())


def _towards(
    model: Model,
    step: Step,
    threat_model: ThreatModel,
    generator: torch.Generator | None,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """APGD towards the classes of `malt_order` in turn, on images that are classified correctly."""
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    searched = _searchable(model, x[:1])
    looked_at = max(CANDIDATES, step.targets)
    order = malt_order(searched, x, y, threat_model, candidates=looked_at, batch_size=len(x), check=False)
    found = x.clone()

    def confirm(rows: Tensor, x_adv: Tensor) -> Tensor:
        with torch.no_grad():
            fooled = classes(model(x_adv)) != y[rows]
        found[rows[fooled]] = x_adv[fooled]
        return fooled

    apgd(
        step,
        searched,
        confirm,
        x,
        y,
        torch.arange(len(x)),
        threat_model,
        seed=seed,
        batch_size=len(x),
        targets=order.classes[:, : step.targets],
    )
    return found


def _worst(model: Model, x: Tensor, y: Tensor, attacks: list[_Run]) -> tuple[Tensor, Tensor]:
    """Attacked images, and the number of the attack that broke each.

    What an attack found is confirmed among all images: a success on the edge may hang on the rounding of a
    smaller batch.
    """
    with torch.no_grad():
        right = classes(model(x)) == y
    by = torch.where(right, ROBUST, WRONG)
    x_adv = x.clone()
    for number, attack in enumerate(attacks):
        left = (by == ROBUST).nonzero().squeeze(1)
        if len(left) == 0:
            break
        tried = x_adv.clone()
        tried[left] = attack(x[left], y[left])
        with torch.no_grad():
            fooled = (classes(model(tried)) != y) & (by == ROBUST)
        x_adv[fooled], by[fooled] = tried[fooled], number
    return x_adv, by


@dataclass(frozen=True)
class Adaptive:
    """`adaptive_attack` as a value, by name "adaptive".

    steps, restarts, surrogate, malt: as there; a surrogate that is a κ or a name. CurvactError for
        others.

    >>> str(Adaptive()), str(Adaptive(20, surrogate="rctaf(curvature=2)"))
    ('adaptive', "adaptive(steps=20, surrogate='rctaf(curvature=2)')")
    """

    steps: int = 40
    restarts: int = 1
    surrogate: float | str | None = None
    malt: int = 0

    def __post_init__(self) -> None:
        check_number(self.steps, "steps", "adaptive")
        check_number(self.restarts, "restarts", "adaptive")
        check_surrogate(self.surrogate, "adaptive")
        check_number(self.malt, "malt", "adaptive", 0)

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"adaptive({inside})" if inside else "adaptive"

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        batch_size: int = 256,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> AdaptiveResult:
        """`adaptive_attack` with these settings."""
        return adaptive_attack(
            model,
            x,
            y,
            threat_model,
            steps=self.steps,
            restarts=self.restarts,
            surrogate=self.surrogate,
            malt=self.malt,
            batch_size=batch_size,
            generator=generator,
            on_step=on_step,
            on_batch=on_batch,
        )

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat_model: ThreatModel,
        *,
        generator: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The attacked images only."""
        whole = max(len(x), 1)
        return self.run(
            model, x, y, threat_model, batch_size=whole, generator=generator, on_step=on_step
        ).x_adv
