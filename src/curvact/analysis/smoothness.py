"""Analysis room: how smooth the adversarial loss is in the parameters: Lipschitz ratios of its gradient, attacked anew.

    ratio = ‖∇L(θ₁) − ∇L(θ₂)‖ / ‖θ₁ − θ₂‖,    L(θ) = mean over a fixed batch of ℓ(θ, x + δ*(θ))

in eval mode, the gradient taken at fixed δ* (Danskin), δ*(θ) found anew at each θ from the same random start. Pairs of points:
along random directions of fixed relative norm, or consecutive points of a training trajectory. A loss whose gradient jumps has a
ratio that grows as the step shrinks, so the numerator stands beside it, and how far the attack moved. [ours; see linear_theory
and danskin]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from curvact.analysis.input_flatness import InputFlatness, input_flatness
from curvact.analysis.loss import Exclude, check_inputs, check_values, excluder
from curvact.analysis.records import OnProgress, finite
from curvact.attacks.losses import ce
from curvact.attacks.pgd import PGD, Attack, frozen, mode
from curvact.attacks.threat import ThreatModel, check_images
from curvact.errors import CurvactError, nearest
from curvact.random import generator as make_generator

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) to N losses, one an example."""
Point = Mapping[str, Tensor] | Tensor
"""Parameters: a state dict (buffers may be among them), or one vector (P,) in the order of `model.parameters()`."""
Buffers = Literal["pair", "own", "model"]
MatchingRule = Literal["corners", "loss", "accuracy"]
NORMS = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class SmoothnessRow:
    """Two points of the parameters, and how the gradient differs between them.

    attack: its name. index: of the direction, or of the pair on the trajectory. position: the number of the second point.
    relative_norm: ‖Δθ‖/‖θ₁‖ (as asked for, along directions). step: ‖Δθ‖. difference: ‖∇L(θ₁) − ∇L(θ₂)‖. ratio: of the two; NaN
    where the points are one.
    held: ‖∇ℓ(θ₂, x+δ*₁) − ∇L(θ₁)‖, the difference with the attack held; moved: ‖∇L(θ₂) − ∇ℓ(θ₂, x+δ*₁)‖, what its move adds.
    drift: mean over the examples of ‖δ*₁ − δ*₂‖₂. loss, loss_there: L(θ₁), L(θ₂).
    """

    attack: str
    index: int
    position: float
    relative_norm: float
    step: float
    difference: float
    ratio: float
    held: float
    moved: float
    drift: float
    loss: float
    loss_there: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {name: finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class SmoothnessLine:
    """One attack at one relative norm, over the directions: a line of a table.

    highest_ratio: the best lower bound on the Lipschitz constant. ratio_error: standard error of the mean ratio over the
    directions, NaN for one. The other numbers are means of those of the rows.
    """

    attack: str
    relative_norm: float
    directions: int
    ratio: float
    ratio_error: float
    highest_ratio: float
    difference: float
    held: float
    moved: float
    drift: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {name: finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class SmoothnessReport:
    """Ratios along random directions for several attacks, with input flatness beside them.

    rows: one an attack, relative norm and direction; the directions are the same for all attacks and norms.
    noise: by attack, mean ‖δ* − δ*'‖ between two runs at the same parameters: above 0 the attack is random on its own, and drift,
    ratio and numerator have that in them.
    gradient_norms, losses: at the model itself, by attack. flatness: None where it was not asked for.
    matching: how the radii were matched, if the caller said. inputs, parameters: how many.
    """

    rows: tuple[SmoothnessRow, ...]
    noise: dict[str, float]
    gradient_norms: dict[str, float]
    losses: dict[str, float]
    flatness: InputFlatness | None
    matching: dict[str, Any]
    inputs: int
    parameters: int

    def lines(self) -> tuple[SmoothnessLine, ...]:
        """Means over the directions, by attack and relative norm."""
        keys = dict.fromkeys((row.attack, row.relative_norm) for row in self.rows)
        return tuple(
            _line(*key, [r for r in self.rows if (r.attack, r.relative_norm) == key]) for key in keys
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {
            "kind": "directions",
            "inputs": self.inputs,
            "parameters": self.parameters,
            "matching": {name: finite(value) for name, value in self.matching.items()},
            "noise": {name: finite(value) for name, value in self.noise.items()},
            "gradient_norms": {name: finite(value) for name, value in self.gradient_norms.items()},
            "losses": {name: finite(value) for name, value in self.losses.items()},
            "flatness": None if self.flatness is None else self.flatness.as_dict(),
            "lines": [line.as_dict() for line in self.lines()],
            "rows": [row.as_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class TrajectorySmoothness:
    """Ratios between consecutive points of a training trajectory. rows: one an attack and pair.

    buffers: whose batch-norm statistics. Other fields as `SmoothnessReport`.
    """

    rows: tuple[SmoothnessRow, ...]
    noise: dict[str, float]
    buffers: str
    inputs: int
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {
            "kind": "trajectory",
            "inputs": self.inputs,
            "parameters": self.parameters,
            "buffers": self.buffers,
            "noise": {name: finite(value) for name, value in self.noise.items()},
            "rows": [row.as_dict() for row in self.rows],
        }


def smoothness_report(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack | None],
    *,
    norms: Sequence[float] = NORMS,
    directions: int = 5,
    generator: torch.Generator | None = None,
    threat_models: Mapping[str, ThreatModel] | None = None,
    flatness: bool = True,
    matching: Mapping[str, Any] | None = None,
    loss: Loss = ce,
    exclude: Exclude = (),
    batch_size: int = 128,
    progress: OnProgress | None = None,
) -> SmoothnessReport:
    """Smoothness of the loss after each attack around a model, along random directions, and flatness in the input beside it.

    Parameters, buffers, gradients and every module's mode are bit for bit what they were afterwards, also when an attack raises.

    x: (N, …). y: (N, …). attacks: `(model, x, y) -> x_adv` by name; None for the loss on x itself. An attack that draws from
        torch's global state draws the same at every θ; one with a generator of its own has to be wrapped by `replayed`, or made
        by `fixed_pgd`.
    norms: relative norms ρ: the tensors of a direction have norms ρ‖θ_t‖, so that ‖Δθ‖ = ρ‖θ‖. directions: for each norm.
    generator: of the directions. threat_models: for the linearity error of `input_flatness`. matching: kept in the record.
    loss: one number an example. exclude: parameters held fixed and not differentiated: names, or a test of a name.
    progress: called with (pairs done, pairs in all).
    Costs, for each attack, norm and direction, one attack and two gradients.
    Raises CurvactError for arguments out of range, no attacks, unknown names, a loss of another shape, or what is not finite at
    the model itself.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 2))
    >>> attacks = {"clean": None, "linf": fixed_pgd(ThreatModel("linf", 0.1), steps=3)}
    >>> report = smoothness_report(model, torch.rand(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]), attacks, norms=[0.01], directions=2)
    >>> [(line.attack, line.directions) for line in report.lines()]
    [('clean', 2), ('linf', 2)]
    """
    where = "smoothness_report"
    check_inputs(x, y, where, batch_size)
    check_values(model, where)
    _check_attacks(attacks, where)
    if flatness and threat_models:
        check_images(x)
    if directions < 1 or not norms:
        raise CurvactError(
            f"directions={directions}, norms={list(norms)} in smoothness_report: at least one of each"
        )
    for norm in norms:
        if not (math.isfinite(norm) and norm > 0):
            raise CurvactError(f"relative norm {norm} in smoothness_report: a finite number > 0")
    if len(set(norms)) < len(norms):
        raise CurvactError(f"norms={list(norms)} in smoothness_report: one of them twice")
    seed = 0 if generator is None else _seed_from(generator)
    found: list[tuple[str, int, float, list[Tensor]]] = []
    heads: list[Tensor] = []
    total, done = len(attacks) * len(norms) * directions, 0
    with _bench(model, x, y, loss, exclude, batch_size, where) as bench:
        start = [p.detach().clone() for p in bench.parameters]
        size = sum(p.numel() for p in start)
        origins = {name: _look(bench, attack) for name, attack in attacks.items()}
        _check_losses(origins, where)
        for name, attack in attacks.items():
            again = _attacked(bench, attack)
            heads.append(torch.stack([_drift(origins[name].points, again), *_head(origins[name])]))
        for index in range(directions):
            offset = _direction(start, make_generator(seed, "smoothness, direction", index))
            for norm in norms:
                with torch.no_grad():
                    for p, s, o in zip(bench.parameters, start, offset, strict=True):
                        p.copy_(s + norm * o)
                step = _distance(start, bench.parameters)
                for name, attack in attacks.items():
                    values = _compare(bench, attack, origins[name], step)
                    found.append((name, index, norm, values))
                    done += 1
                    if progress is not None:
                        progress(done, total)
    flat = None
    if flatness:
        flat = input_flatness(model, x, y, dict(threat_models or {}), loss=loss, batch_size=batch_size)
    order = {name: number for number, name in enumerate(attacks)}
    found.sort(key=lambda item: (order[item[0]], norms.index(item[2]), item[1]))
    numbers = _numbers([values for *_, values in found])
    rows = tuple(
        _row(name, index, float(index), norm, values)
        for (name, index, norm, _), values in zip(found, numbers, strict=True)
    )
    noise, losses, slopes = torch.stack(heads).T.tolist()
    return SmoothnessReport(
        rows=rows,
        noise=dict(zip(attacks, noise, strict=True)),
        gradient_norms=dict(zip(attacks, slopes, strict=True)),
        losses=dict(zip(attacks, losses, strict=True)),
        flatness=flat,
        matching=dict(matching or {}),
        inputs=len(x),
        parameters=size,
    )


def trajectory_smoothness(
    model: nn.Module,
    points: Iterable[Point],
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack | None],
    *,
    positions: Sequence[float] | None = None,
    buffers: Buffers = "pair",
    loss: Loss = ce,
    exclude: Exclude = (),
    batch_size: int = 128,
    progress: OnProgress | None = None,
) -> TrajectorySmoothness:
    """Ratios between consecutive points of a trajectory, each attack anew at each; the model comes back bit for bit.

    points: state dicts or vectors; an iterator is read once, two points in memory at a time. Each is copied while the model holds
        its own values, so that a point may be the model's live state; what makes them as it goes must work on another model.
    positions: a number for each point, such as gradient evaluations spent; 0, 1, … where None.
    buffers: whose batch-norm statistics: "pair": both points have those of the first, so that the ratio is of one function (two
        looks a pair where they differ); "own": each its own, the change of statistics is then in the ratio; "model": those of
        the model as it was given.
    exclude: as in `smoothness_report`: these keep the model's own values at every point. Vectors hold them nevertheless.
    Other arguments as `smoothness_report`. Costs one attack (two, see above) and two gradients a pair and attack.
    Raises CurvactError for fewer than two points, for points that do not fit the model or hold NaN, for a loss
        that is not finite at the first of them, and as `smoothness_report`.

    >>> model = nn.Linear(2, 2)
    >>> points = [torch.zeros(6), torch.ones(6), torch.full((6,), 3.0)]
    >>> found = trajectory_smoothness(model, points, torch.rand(4, 2), torch.tensor([0, 1, 1, 0]), {"clean": None})
    >>> [round(row.step, 4) for row in found.rows]
    [2.4495, 4.899]
    """
    where = "trajectory_smoothness"
    check_inputs(x, y, where, batch_size)
    check_values(model, where)
    _check_attacks(attacks, where)
    if buffers not in get_args(Buffers):
        raise CurvactError(
            f"buffers={buffers!r} in {where}: allowed are {', '.join(get_args(Buffers))}"
            + nearest(str(buffers), get_args(Buffers))
        )
    found: list[tuple[str, int, list[Tensor]]] = []
    noise: list[Tensor] = []
    count = 0
    hint = (
        len(points) - 1
        if isinstance(points, Sequence) or (isinstance(points, Tensor) and points.dim() == 2)
        else None
    )
    if hint is not None:
        _check_count(hint + 1, positions)
    with _bench(model, x, y, loss, exclude, batch_size, where) as bench:
        own = dict(model.named_buffers())
        given = {name: buffer.detach().clone() for name, buffer in own.items()}
        before: tuple[list[Tensor], dict[str, Tensor]] | None = None
        cached: dict[str, _Look] = {}
        for count, point in enumerate(_unmoved(bench, points), 1):
            here, statistics = _read(model, bench, point, count - 1)
            statistics = given if buffers == "model" else {**given, **statistics}
            if before is None:
                _load(bench, own, here, statistics)
                for attack in attacks.values():
                    noise.append(_drift(_attacked(bench, attack), _attacked(bench, attack)))
            else:
                first, theirs = before
                shared = theirs if buffers == "pair" else statistics
                if not cached:
                    _load(bench, own, first, theirs)
                    cached = {name: _look(bench, attack) for name, attack in attacks.items()}
                    if count == 2:
                        _check_losses(cached, f"{where}, at point 0")
                _load(bench, own, here, shared)
                step = _distance(first, bench.parameters)
                relative = step / torch.linalg.vector_norm(torch.stack([_norm(p) for p in first]))
                looks = {}
                for name, attack in attacks.items():
                    looks[name] = _look(bench, attack)
                    values = _compare(bench, attack, cached[name], step, there=looks[name])
                    found.append((name, count - 2, [relative, *values]))
                cached = looks if _same(shared, statistics) else {}
                if progress is not None:
                    progress(count - 1, hint)
            before = (here, statistics)
        size_all = sum(p.numel() for p in bench.parameters)
    _check_count(count, positions)
    order = {name: number for number, name in enumerate(attacks)}
    found.sort(key=lambda item: (order[item[0]], item[1]))
    rows = tuple(
        _row(
            name,
            index,
            float(index + 1) if positions is None else float(positions[index + 1]),
            values[0],
            values[1:],
        )
        for (name, index, _), values in zip(found, _numbers([v for *_, v in found]), strict=True)
    )
    spread = torch.stack(noise).tolist()
    return TrajectorySmoothness(rows, dict(zip(attacks, spread, strict=True)), buffers, len(x), size_all)


# ---- attacks that start from the same place ----


def fixed_pgd(
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step: float | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> Attack:
    """PGD with the same random start at every call with inputs of one shape. step: in units of ε, as `PGD`.

    Raises CurvactError for steps < 1, and the attack for inputs outside [0, 1].

    >>> attack = fixed_pgd(ThreatModel("linf", 0.1), steps=1)
    >>> x, y = torch.rand(2, 3), torch.tensor([0, 1])
    >>> bool((attack(nn.Identity(), x, y) == attack(nn.Identity(), x, y)).all())
    True
    """
    if steps < 1:
        raise CurvactError(f"steps={steps} of fixed_pgd: at least 1")
    return PGD(steps, step, restarts).on(
        threat_model, lambda device: make_generator(seed, "smoothness, attack", device=device)
    )


def replayed(attack: Attack, *generators: torch.Generator) -> Attack:
    """The attack with its generators set back, before each call, to where they are now.

    >>> g = torch.Generator().manual_seed(0)
    >>> noisy = replayed(lambda model, x, y: x + torch.rand(x.shape, generator=g), g)
    >>> x = torch.zeros(3)
    >>> bool((noisy(None, x, x) == noisy(None, x, x)).all())
    True
    """
    states = [g.get_state() for g in generators]

    def again(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        return attack(model, x, y)

    return again


# ---- L∞ against L2 at matched strength ----


@dataclass(frozen=True)
class Matched:
    """An L∞ and an L2 attack of matched strength.

    rule: "corners": ε₂ = ε∞√d, the L2 ball through the corners of the other, which it contains; "loss" or "accuracy": ε₂
    such that the same PGD costs as much mean loss or accuracy on this batch. target, reached: that cost for L∞ and for L2, NaN
    for "corners".
    """

    linf: float
    l2: float
    rule: str
    target: float
    reached: float

    @property
    def threat_models(self) -> dict[str, ThreatModel]:
        """By the names "linf" and "l2"."""
        return {"linf": ThreatModel("linf", self.linf), "l2": ThreatModel("l2", self.l2)}

    def attacks(self, *, steps: int = 20, seed: int = 0) -> dict[str, Attack | None]:
        """No attack ("clean") and `fixed_pgd` in both balls, by name."""
        made = {name: fixed_pgd(t, steps=steps, seed=seed) for name, t in self.threat_models.items()}
        return {"clean": None, **made}

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {name: finite(value) for name, value in asdict(self).items()}


def match_radii(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    rule: MatchingRule = "corners",
    steps: int = 20,
    seed: int = 0,
    loss: Loss = ce,
    bisections: int = 12,
    batch_size: int = 128,
) -> Matched:
    """The L2 radius that matches an L∞ radius ε, by one of the rules of `Matched`. [ours]

    By "corners" L2 is much the stronger attacker; use it to compare balls, "loss" or "accuracy" to compare equal harm. Those
    bisect ε₂ in [ε, ε√d] (geometrically): at the lower end the L∞ ball contains the L2 ball, at the upper it is contained.
    x: (N, …), in [0, 1]. steps: of PGD for both. batch in eval mode; y are classes for "accuracy".
    Raises CurvactError for ε ≤ 0, an unknown rule, inputs outside [0, 1], or what is not finite.

    >>> match_radii(nn.Identity(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), 0.1).l2
    0.4
    """
    if rule not in get_args(MatchingRule):
        raise CurvactError(
            f"rule={rule!r} in match_radii: allowed are {', '.join(get_args(MatchingRule))}"
            + nearest(str(rule), get_args(MatchingRule))
        )
    if not (math.isfinite(epsilon) and epsilon > 0) or bisections < 1:
        raise CurvactError(
            f"epsilon={epsilon}, bisections={bisections} in match_radii: a finite radius > 0, at least 1 bisection"
        )
    where = "match_radii"
    check_inputs(x, y, where, batch_size)
    check_images(x)
    corner = epsilon * math.sqrt(x[0].numel())
    if rule == "corners":
        return Matched(epsilon, corner, rule, math.nan, math.nan)
    check_values(model, where)

    def cost(threat: ThreatModel) -> float:
        attack = fixed_pgd(threat, steps=steps, seed=seed)
        worst = torch.zeros((), dtype=torch.float64, device=x.device)
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            with frozen(model):
                points = attack(model, images, labels)
            with torch.no_grad():
                for inputs, sign in ((points, 1), (images, -1)):
                    outputs = model(inputs)
                    each = loss(outputs, labels) if rule == "loss" else (outputs.argmax(1) != labels)
                    worst = worst + sign * each.double().sum()
        return worst.item() / len(x)

    with mode(model, training=False):
        target = cost(ThreatModel("linf", epsilon))
        if not math.isfinite(target):
            raise CurvactError(f"the loss rises by {target} in {where}: it must be finite")
        low, high = math.log(epsilon), math.log(corner)
        tried = {radius: cost(ThreatModel("l2", radius)) for radius in (epsilon, corner)}
        for _ in range(bisections):
            middle = (low + high) / 2
            tried[math.exp(middle)] = reached = cost(ThreatModel("l2", math.exp(middle)))
            low, high = (middle, high) if reached < target else (low, middle)
    best = min(tried, key=lambda radius: abs(tried[radius] - target))
    return Matched(epsilon, best, rule, target, tried[best])


# ---- looking at one point ----


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model that is looked at, in eval mode, and the batch."""

    model: nn.Module
    parameters: list[nn.Parameter]
    batches: list[tuple[Tensor, Tensor]]
    loss: Loss
    values: list[tuple[Tensor, Tensor]]
    """Every parameter and buffer, and a copy of what it held."""
    where: str


@dataclass(frozen=True, eq=False)
class _Look:
    """What is seen at one point: ∇L (P,), L, and the attacked inputs by batch."""

    gradient: Tensor
    loss: Tensor
    points: list[Tensor]


@contextmanager
def _bench(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, exclude: Exclude, batch_size: int, where: str
) -> Iterator[_Bench]:
    """Everything of the model comes back: values of parameters and buffers, gradients, flags and modes."""
    chosen = _chosen(model, exclude, where)
    every = list(model.parameters())
    values = [(t, t.detach().clone()) for t in (*every, *model.buffers())]
    kept = [(p, p.requires_grad, p.grad) for p in every]
    wanted = {id(p) for p in chosen}
    try:
        for p in every:
            p.grad = None
            p.requires_grad_(id(p) in wanted)
        batches = list(zip(torch.split(x.detach(), batch_size), torch.split(y, batch_size), strict=True))
        with mode(model, training=False):
            yield _Bench(model, chosen, batches, loss, values, where)
    finally:
        _put_back(values)
        for p, flag, gradient in kept:
            p.requires_grad_(flag)
            p.grad = gradient


@torch.no_grad()
def _put_back(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        tensor.copy_(value)


def _chosen(model: nn.Module, exclude: Exclude, where: str) -> list[nn.Parameter]:
    excluded = excluder(model, exclude, where)
    out = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if excluded(name)}
    chosen = [p for p in model.parameters() if id(p) not in out]
    if not chosen:
        raise CurvactError(
            f"no parameters to move in {where}: the model has none, or all of them are excluded"
        )
    return chosen


def _look(bench: _Bench, attack: Attack | None) -> _Look:
    points = _attacked(bench, attack)
    gradient, loss = _gradient(bench, points)
    return _Look(gradient, loss, points)


def _attacked(bench: _Bench, attack: Attack | None) -> list[Tensor]:
    if attack is None:
        return [images for images, _ in bench.batches]
    with frozen(bench.model):
        points = []
        for number, (images, labels) in enumerate(bench.batches):
            with _same_chance(number, images.device):
                attacked = attack(bench.model, images, labels)
            if not isinstance(attacked, Tensor) or attacked.shape != images.shape:
                got = tuple(attacked.shape) if isinstance(attacked, Tensor) else type(attacked).__name__
                raise CurvactError(
                    f"an attack in {bench.where} returned {got} for inputs {tuple(images.shape)}: one for each, of its shape"
                )
            points.append(attacked.detach())
        return points


def _gradient(bench: _Bench, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """∇L (P,) at fixed inputs, and L in float64."""
    total = sum(len(labels) for _, labels in bench.batches)
    rows: list[Tensor] | None = None
    value = torch.zeros((), dtype=torch.float64, device=points[0].device)
    with torch.enable_grad():
        for where, (_, labels) in zip(points, bench.batches, strict=True):
            losses = bench.loss(bench.model(where), labels)
            if losses.shape != (len(labels),):
                raise CurvactError(
                    f"the loss has shape {tuple(losses.shape)} for {len(labels)} examples: "
                    f"one number an example, shape ({len(labels)},)"
                )
            parts = torch.autograd.grad(
                losses.sum() / total, bench.parameters, allow_unused=True, materialize_grads=True
            )
            rows = list(parts) if rows is None else [a + b for a, b in zip(rows, parts, strict=True)]
            value = value + losses.detach().double().sum() / total
    assert rows is not None
    return torch.cat([row.reshape(-1) for row in rows]), value


def _compare(
    bench: _Bench, attack: Attack | None, origin: _Look, step: Tensor, there: _Look | None = None
) -> list[Tensor]:
    """step, difference, held, moved, drift, both losses: between `origin` and the model as it stands."""
    there = _look(bench, attack) if there is None else there
    held = there.gradient if attack is None else _gradient(bench, origin.points)[0]
    return [
        step,
        _norm(there.gradient - origin.gradient),
        _norm(held - origin.gradient),
        _norm(there.gradient - held),
        _drift(origin.points, there.points),
        origin.loss,
        there.loss,
    ]


def _head(look: _Look) -> tuple[Tensor, Tensor]:
    return look.loss, _norm(look.gradient)


def _drift(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean over all examples of the L2 distance."""
    apart = [
        torch.linalg.vector_norm((a - b).flatten(1), dim=1, dtype=torch.float64)
        for a, b in zip(first, second, strict=True)
    ]
    return torch.cat(apart).mean()


def _direction(start: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """One Gaussian direction, each tensor with the norm of the parameters it belongs to."""
    sizes = [_norm(s) for s in start]
    if not bool(torch.stack(sizes).any()):
        raise CurvactError("all parameters are 0 in smoothness: no step has a fixed norm relative to them")
    offsets = []
    for s, size in zip(start, sizes, strict=True):
        z = torch.randn(s.shape, generator=random, dtype=torch.float64).to(s.device)
        offsets.append((z * (size / _norm(z).clamp_min(1e-300))).to(s.dtype))
    return offsets


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(
        torch.stack([_norm(b.detach().double() - a) for a, b in zip(first, second, strict=True)])
    )
    return distance


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm


@contextmanager
def _same_chance(number: int, device: torch.device) -> Iterator[None]:
    """Torch's global state at a fixed place inside, for attacks that draw from it, and where it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(number)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(number)
        yield


# ---- points of a trajectory ----


def _unmoved(bench: _Bench, points: Iterable[Point]) -> Iterator[Point]:
    """The points, each got while the model holds its own values: a point may share memory with it."""
    source = iter(points)
    while True:
        _put_back(bench.values)
        try:
            point = next(source)
        except StopIteration:
            return
        yield point


def _read(
    model: nn.Module, bench: _Bench, point: Point, number: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The parameters of a point, in the order of the bench, as copies; and its buffers by name."""
    own = {id(p): name for name, p in model.named_parameters()}
    if isinstance(point, Tensor):
        every = list(model.parameters())
        total = sum(p.numel() for p in every)
        if point.shape != (total,):
            raise CurvactError(
                f"point {number} of the trajectory has shape {tuple(point.shape)}: a vector of {total} parameters"
            )
        parts = torch.split(point, [p.numel() for p in every])
        by_id = {id(p): part.view_as(p) for part, p in zip(parts, every, strict=True)}
        return [_fitting(by_id[id(p)], p, own[id(p)], number) for p in bench.parameters], {}
    if not isinstance(point, Mapping):
        raise CurvactError(
            f"point {number} of the trajectory is a {type(point).__name__}: a state dict, or one vector of all parameters"
        )
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in point}
    parameters = []
    for p in bench.parameters:
        name = names.get(id(p))
        if name is None:
            raise CurvactError(
                f"point {number} of the trajectory lacks the parameter {own[id(p)]!r}{nearest(own[id(p)], point)}"
            )
        parameters.append(_fitting(point[name], p, name, number))
    buffers = {
        name: _fitting(point[name], buffer, name, number)
        for name, buffer in model.named_buffers()
        if name in point
    }
    return parameters, buffers


def _fitting(value: Tensor, like: Tensor, name: str, number: int) -> Tensor:
    if value.shape != like.shape:
        raise CurvactError(
            f"{name!r} of point {number} of the trajectory has shape {tuple(value.shape)}: the model has {tuple(like.shape)}"
        )
    if bool(value.isnan().any()):
        raise CurvactError(f"{name!r} of point {number} of the trajectory holds NaN")
    return value.detach().to(like, copy=True)


@torch.no_grad()
def _load(
    bench: _Bench, own: Mapping[str, Tensor], parameters: Sequence[Tensor], buffers: Mapping[str, Tensor]
) -> None:
    for p, value in zip(bench.parameters, parameters, strict=True):
        p.copy_(value)
    for name, value in buffers.items():
        own[name].copy_(value)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether the buffers are the same function's: counters do not matter."""
    return all(torch.equal(value, second[name]) for name, value in first.items() if value.is_floating_point())


# ---- results ----


def _numbers(values: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """All of them with one wait for the device."""
    numbers: list[list[float]] = torch.stack(
        [torch.stack([v.double() for v in line]) for line in values]
    ).tolist()
    return numbers


def _row(attack: str, index: int, position: float, relative: float, values: Sequence[float]) -> SmoothnessRow:
    step, difference, held, moved, drift, loss, there = values
    ratio = difference / step if step > 0 else math.nan
    return SmoothnessRow(
        attack, index, position, relative, step, difference, ratio, held, moved, drift, loss, there
    )


def _line(attack: str, norm: float, rows: Sequence[SmoothnessRow]) -> SmoothnessLine:
    count = len(rows)

    def mean(name: str) -> float:
        return math.fsum(getattr(row, name) for row in rows) / count

    ratio = mean("ratio")
    spread = math.fsum((row.ratio - ratio) ** 2 for row in rows)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else math.nan
    highest = max(row.ratio for row in rows)
    others = (mean(name) for name in ("difference", "held", "moved", "drift"))
    return SmoothnessLine(attack, norm, count, ratio, error, highest, *others)


def _seed_from(random: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=random, device=random.device))


def _check_count(count: int, positions: Sequence[float] | None) -> None:
    if count < 2:
        raise CurvactError(f"{count} points in trajectory_smoothness: at least 2")
    if positions is not None and len(positions) != count:
        raise CurvactError(
            f"{len(positions)} positions for {count} points in trajectory_smoothness: one each"
        )


def _check_attacks(attacks: Mapping[str, Attack | None], where: str) -> None:
    if not attacks:
        raise CurvactError(f"no attacks in {where}: give at least one, or None for the loss itself")


def _check_losses(looks: Mapping[str, _Look], where: str) -> None:
    values = torch.stack([look.loss for look in looks.values()]).tolist()
    for name, value in zip(looks, values, strict=True):
        if not math.isfinite(value):
            raise CurvactError(f"the loss under {name!r} is {value} in {where}: it must be finite")
