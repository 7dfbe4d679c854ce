"""Smoothness of the adversarial loss in the parameters: Lipschitz ratios of its gradient, attacked
anew at each point.

    ratio = ‖∇L(θ₁) − ∇L(θ₂)‖ / ‖θ₁ − θ₂‖,    L(θ) = mean over fixed data of ℓ(θ, x + δ*(θ))

The gradient is taken at fixed δ* (Danskin). δ*(θ) is found anew at each θ, from the same random
start. Pairs of points lie along random directions of fixed relative norm, or are consecutive points
of a training trajectory. Where the gradient jumps, the ratio grows as the step shrinks. So the
numerator stands beside it, and the distance that the attack moved. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from curvact.analysis.input_flatness import InputFlatness, input_flatness
from curvact.analysis.loss import Batch, Loss
from curvact.analysis.records import OnProgress, plain
from curvact.analysis.weights import Weights, moving, norm_of
from curvact.attacks.arguments import door, is_attack
from curvact.attacks.batch import checked_images
from curvact.attacks.pgd import Attack
from curvact.attacks.threat import ThreatModel
from curvact.errors import CurvactError, nearest
from curvact.names import shortened
from curvact.random import generator as make_generator

Point = Mapping[str, Tensor] | Tensor
"""Parameters: a state dict (buffers may be among them), or one vector (P,) in the order of
`model.parameters()`.
"""
Buffers = Literal["pair", "own", "model"]
NORMS = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class SmoothnessRow:
    """Two points of the parameters, and the difference of the gradient between them.

    attack: its name. index: of the direction, or of the pair on the trajectory. position: the
    number of the second point.
    relative_norm: ‖Δθ‖/‖θ₁‖ (the given one, along directions). step: ‖Δθ‖. difference: ‖∇L(θ₁) −
    ∇L(θ₂)‖. ratio: of the two; NaN where the points are one.
    held: ‖∇ℓ(θ₂, x+δ*₁) − ∇L(θ₁)‖, the difference with the attack held. moved: ‖∇L(θ₂) − ∇ℓ(θ₂,
    x+δ*₁)‖, the part of the attack's move. drift: mean over the examples of ‖δ*₁ − δ*₂‖₂. loss,
    loss_there: L(θ₁), L(θ₂).
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


@dataclass(frozen=True)
class SmoothnessLine:
    """One attack at one relative norm, over the directions.

    highest_ratio: the best lower bound on the Lipschitz constant. ratio_error: standard error of
    the mean ratio over the directions, NaN for one. The other numbers are means over the rows.
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


@dataclass(frozen=True, eq=False)
class SmoothnessReport:
    """Ratios along random directions for several attacks, and input flatness.

    rows: one for each attack, relative norm and direction; the directions are the same for all
    attacks and norms.
    noise: by attack, mean ‖δ* − δ*'‖ between two runs at the same parameters. Above 0 the attack
    itself is random, and drift, ratio and numerator hold that noise.
    gradient_norms, losses: at the model itself, by attack. flatness: None where it is left out.
    matching: how the radii were matched, where the caller gave that. inputs, parameters: their
    numbers.
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
        flatness = None if self.flatness is None else self.flatness.as_dict()
        return {
            "kind": "directions",
            "lines": plain(self.lines()),
            **plain(replace(self, flatness=None)),
            "flatness": flatness,
        }


@dataclass(frozen=True)
class TrajectorySmoothness:
    """Ratios between consecutive points of a training trajectory. rows: one for each attack and
    pair.

    buffers: whose batch-norm statistics. Other fields as `SmoothnessReport`.
    """

    rows: tuple[SmoothnessRow, ...]
    noise: dict[str, float]
    buffers: str
    inputs: int
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return {"kind": "trajectory", **plain(self)}


@door
def smoothness_report(
    loss: Loss,
    attacks: Mapping[str, Attack | None],
    *,
    norms: Sequence[float] = NORMS,
    directions: int = 5,
    generator: torch.Generator | None = None,
    threat_models: Mapping[str, ThreatModel] | None = None,
    flatness: bool = True,
    matching: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> SmoothnessReport:
    """Smoothness of the loss after each attack around a model, along random directions, and its
    flatness in the input.

    The model is bit for bit what it was afterwards, also when an attack raises.

    loss: with one number for each example; its excluded parameters do not move and are not
        differentiated.
    attacks: `(model, x, y) -> x_adv` by name; None for the loss on x itself. They must start at the
        same points at each call, as `PGD.on` with a function that makes its generator. For attacks
        that draw from torch's global state this is so. `replayed` wraps one that holds a generator.
    norms: relative norms ρ: the tensors of a direction have the norms ρ‖θ_t‖, so that ‖Δθ‖ = ρ‖θ‖.
        directions: for each norm.
    generator: of the directions. threat_models: for the linearity error of `input_flatness`.
        matching: copied to the report.
    on_progress: called with (pairs done, pairs in all).
    Costs, for each attack, norm and direction, one attack and two gradients.
    Raises CurvactError for arguments out of range, no attacks, a loss of another shape, or what is
    not finite at the model itself.

    >>> from curvact.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 2))
    >>> loss = Loss(model, torch.rand(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> linf = PGD(3).on(ThreatModel("linf", 0.1), lambda device: torch.Generator(device).manual_seed(0))
    >>> report = smoothness_report(loss, {"clean": None, "linf": linf}, norms=[0.01], directions=2)
    >>> [(line.attack, line.directions) for line in report.lines()]
    [('clean', 2), ('linf', 2)]
    """
    where = "smoothness_report"
    _check_attacks(attacks, where)
    _check_norms(norms, directions, where)
    seed = (
        0
        if generator is None
        else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    )
    found: list[tuple[str, int, float, list[Tensor]]] = []
    total = len(attacks) * len(norms) * directions
    with _looking(loss, attacks, where) as bench:
        if flatness and threat_models:
            for x, _ in bench.batches:
                checked_images(x, where)
        weights = bench.weights
        if not bool(torch.stack(weights.norms).any()):
            raise CurvactError(f"all parameters are 0 in {where}: no step has a fixed norm relative to them")
        origins = {name: bench.look(name) for name in attacks}
        _check_losses(origins, where)
        heads = [
            torch.stack([_drift(look.points, bench.attacked(name)), look.loss, norm_of(look.gradient)])
            for name, look in origins.items()
        ]
        for index in range(directions):
            offset = weights.direction(make_generator(seed, "smoothness, direction", index))
            for norm in norms:
                weights.set([None if o is None else norm * o for o in offset])
                step = _distance(weights.start, weights.parameters)
                for name in attacks:
                    found.append((name, index, norm, bench.compare(name, origins[name], step)))
                    if on_progress is not None:
                        on_progress(len(found), total)
        size = weights.size
    flat = input_flatness(loss, threat_models) if flatness else None
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
        inputs=loss.images,
        parameters=size,
    )


@door
def trajectory_smoothness(
    loss: Loss,
    points: Iterable[Point],
    attacks: Mapping[str, Attack | None],
    *,
    positions: Sequence[float] | None = None,
    buffers: Buffers = "pair",
    on_progress: OnProgress | None = None,
) -> TrajectorySmoothness:
    """Ratios between consecutive points of a trajectory, each attack anew at each. The model comes
    back bit for bit.

    loss: as in `smoothness_report`. Its excluded parameters keep the model's own values at every
        point; vectors hold them too.
    points: state dicts or vectors; an iterator is read once, with two points in memory at a time.
        Each is copied while the model holds its own values, so a point may be the model's live
        state. Code that makes points on the way must use another model.
    positions: a number for each point, such as gradient evaluations spent; 0, 1, … where None.
    buffers: whose batch-norm statistics. "pair": both points have those of the first, so that the
        ratio is of one function (two evaluations a pair where they differ). "own": each its own;
        the change of statistics is then in the ratio. "model": those of the model as given.
    Costs one attack (two, see above) and two gradients for each pair and attack.
    Raises CurvactError for fewer than two points, for points that do not fit the model or hold NaN,
    for a loss that is not finite at the first of them, and as `smoothness_report`.

    >>> loss = Loss(torch.nn.Linear(2, 2), torch.rand(4, 2), torch.tensor([0, 1, 1, 0]))
    >>> found = trajectory_smoothness(loss, [torch.zeros(6), torch.ones(6), torch.full((6,), 3.0)], {"clean": None})
    >>> [round(row.step, 4) for row in found.rows]
    [2.4495, 4.899]
    """
    where = "trajectory_smoothness"
    _check_attacks(attacks, where)
    if buffers not in get_args(Buffers):
        raise CurvactError(
            f"buffers={buffers!r} in {where}: allowed are {', '.join(get_args(Buffers))}"
            + nearest(str(buffers), get_args(Buffers))
        )
    known = isinstance(points, Sequence) or (isinstance(points, Tensor) and points.dim() == 2)
    pairs = len(points) - 1 if known else None  # type: ignore[arg-type]
    if pairs is not None:
        _check_count(pairs + 1, positions)
    found: list[tuple[str, int, list[Tensor]]] = []
    noise: list[Tensor] = []
    count = 0
    with _looking(loss, attacks, where) as bench:
        given = {name: buffer.detach().clone() for name, buffer in loss.model.named_buffers()}
        before: tuple[list[Tensor], dict[str, Tensor]] | None = None
        cached: dict[str, _Look] = {}
        for count, point in enumerate(bench.unmoved(points), 1):
            here, statistics = bench.read(point, count - 1)
            statistics = given if buffers == "model" else {**given, **statistics}
            if before is None:
                bench.load(here, statistics)
                noise = [_drift(bench.attacked(name), bench.attacked(name)) for name in attacks]
            else:
                first, theirs = before
                shared = theirs if buffers == "pair" else statistics
                if not cached:
                    bench.load(first, theirs)
                    cached = {name: bench.look(name) for name in attacks}
                    if count == 2:
                        _check_losses(cached, f"{where}, at point 0")
                bench.load(here, shared)
                step = _distance(first, bench.weights.parameters)
                relative = step / torch.linalg.vector_norm(torch.stack([norm_of(p) for p in first]))
                looks = {}
                for name in attacks:
                    looks[name] = bench.look(name)
                    values = bench.compare(name, cached[name], step, looks[name])
                    found.append((name, count - 2, [relative, *values]))
                cached = looks if _same(shared, statistics) else {}
                if on_progress is not None:
                    on_progress(count - 1, pairs)
            before = (here, statistics)
        size = bench.weights.size
    _check_count(count, positions)
    order = {name: number for number, name in enumerate(attacks)}
    found.sort(key=lambda item: (order[item[0]], item[1]))
    places = range(count) if positions is None else positions
    rows = tuple(
        _row(name, index, float(places[index + 1]), values[0], values[1:])
        for (name, index, _), values in zip(found, _numbers([v for *_, v in found]), strict=True)
    )
    spread = dict(zip(attacks, torch.stack(noise).tolist(), strict=True))
    return TrajectorySmoothness(rows, spread, buffers, loss.images, size)


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


# ---- at one point ----


@dataclass(frozen=True, eq=False)
class _Look:
    """∇L (P,), L, and the attacked inputs by batch, at one point."""

    gradient: Tensor
    loss: Tensor
    points: list[Tensor]


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model whose parameters move, the data and the attacks."""

    loss: Loss
    weights: Weights
    batches: list[Batch]
    attacks: Mapping[str, Attack | None]
    names: dict[int, list[str]] = field(default_factory=dict)

    def attacked(self, name: str) -> list[Tensor]:
        points = []
        for number, (x, y) in enumerate(self.batches):
            with _same_chance(number, x.device):
                points.append(self.loss.attack(self.attacks[name], x, y))
        return points

    def look(self, name: str) -> _Look:
        points = self.attacked(name)
        return _Look(*self._gradient(points), points)

    def _gradient(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """∇L (P,) at fixed inputs, and L in float64."""
        rows: list[Tensor] = []
        value = torch.zeros((), dtype=torch.float64, device=points[0].device)
        for point, (_, y) in zip(points, self.batches, strict=True):
            with torch.enable_grad():
                losses = self.loss.each(self.loss.outputs(point), y)
                parts = torch.autograd.grad(
                    losses.sum() / self.loss.images,
                    self.weights.parameters,
                    allow_unused=True,
                    materialize_grads=True,
                )
            rows = [a + b for a, b in zip(rows, parts, strict=True)] if rows else list(parts)
            value = value + losses.detach().double().sum() / self.loss.images
        return torch.cat([row.reshape(-1) for row in rows]), value

    def compare(self, name: str, origin: _Look, step: Tensor, there: _Look | None = None) -> list[Tensor]:
        """step, difference, held, moved, drift, both losses: between `origin` and the model as it
        stands.
        """
        there = self.look(name) if there is None else there
        held = there.gradient if self.attacks[name] is None else self._gradient(origin.points)[0]
        return [
            step,
            norm_of(there.gradient - origin.gradient),
            norm_of(held - origin.gradient),
            norm_of(there.gradient - held),
            _drift(origin.points, there.points),
            origin.loss,
            there.loss,
        ]

    # ---- points of a trajectory ----

    def unmoved(self, points: Iterable[Point]) -> Iterator[Point]:
        """The points, each taken while the model holds its own values: a point may share memory
        with it.
        """
        source = iter(points)
        while True:
            self.weights.put_back()
            try:
                point = next(source)
            except StopIteration:
                return
            yield point

    def read(self, point: Point, number: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Copies of the moving parameters of a point, in their order, and of its buffers by
        name.
        """
        model, where = self.loss.model, f"point {number} of the trajectory"
        if isinstance(point, Tensor):
            every = dict(model.named_parameters())
            total = sum(p.numel() for p in every.values())
            if point.shape != (total,):
                raise CurvactError(f"{where} has shape {tuple(point.shape)}: a vector of {total} parameters")
            parts = dict(zip(every, torch.split(point, [p.numel() for p in every.values()]), strict=True))
            return [
                _fitting(parts[name].view_as(every[name]), every[name], name, where)
                for name in self.weights.names
            ], {}
        if not isinstance(point, Mapping):
            raise CurvactError(
                f"{where} is a {type(point).__name__}: a state dict, or one vector of all parameters"
            )
        parameters = []
        for own, parameter in zip(self.weights.names, self.weights.parameters, strict=True):
            name = next((n for n in reversed(self.names[id(parameter)]) if n in point), None)
            if name is None:
                raise CurvactError(f"{where} lacks the parameter {own!r}{nearest(own, point)}")
            parameters.append(_fitting(point[name], parameter, name, where))
        buffers = {
            name: _fitting(point[name], buffer, name, where)
            for name, buffer in model.named_buffers()
            if name in point
        }
        return parameters, buffers

    @torch.no_grad()
    def load(self, parameters: Sequence[Tensor], buffers: Mapping[str, Tensor]) -> None:
        for p, value in zip(self.weights.parameters, parameters, strict=True):
            p.copy_(value)
        own = dict(self.loss.model.named_buffers())
        for name, value in buffers.items():
            own[name].copy_(value)


@contextmanager
def _looking(loss: Loss, attacks: Mapping[str, Attack | None], where: str) -> Iterator[_Bench]:
    """Everything of the model comes back: values of parameters and buffers, gradients, flags and
    modes.
    """
    with moving(loss, where) as weights:
        batches = loss.inputs()
        loss.check_values()
        names: dict[int, list[str]] = {}
        for name, p in loss.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
        yield _Bench(loss, weights, batches, attacks, names)


@contextmanager
def _same_chance(number: int, device: torch.device) -> Iterator[None]:
    """Torch's global state at a fixed place inside, for attacks that draw from it; put back
    after.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(number)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(number)
        yield


def _drift(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean over all examples of the L2 distance."""
    apart = [
        torch.linalg.vector_norm((a - b).flatten(1), dim=1, dtype=torch.float64)
        for a, b in zip(first, second, strict=True)
    ]
    return torch.cat(apart).mean()


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(
        torch.stack([norm_of(b.detach().double() - a) for a, b in zip(first, second, strict=True)])
    )
    return distance


def _fitting(value: Tensor, like: Tensor, name: str, where: str) -> Tensor:
    if value.shape != like.shape:
        raise CurvactError(
            f"{name!r} of {where} has shape {tuple(value.shape)}: the model has {tuple(like.shape)}"
        )
    if bool(value.isnan().any()):
        raise CurvactError(f"{name!r} of {where} holds NaN")
    return value.detach().to(like, copy=True)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether the buffers are the same function's: counters do not matter."""
    return all(torch.equal(value, second[name]) for name, value in first.items() if value.is_floating_point())


# ---- results ----


def _numbers(values: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """All numbers with one wait for the device."""
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


# ---- checks ----


def _check_norms(norms: Sequence[float], directions: int, where: str) -> None:
    if directions < 1 or not norms:
        raise CurvactError(f"directions={directions}, norms={list(norms)} in {where}: at least one of each")
    for norm in norms:
        if not (math.isfinite(norm) and norm > 0):
            raise CurvactError(f"relative norm {norm} in {where}: a finite number > 0")
    if len(set(norms)) < len(norms):
        raise CurvactError(f"norms={list(norms)} in {where}: one of them twice")


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
    if not isinstance(attacks, Mapping):
        raise CurvactError(f"attacks in {where} are a {type(attacks).__name__}: attacks by name")
    for name, attack in attacks.items():
        if attack is not None and not is_attack(attack):
            raise CurvactError(
                f"attack {name!r} in {where} is {shortened(attack)}: a function (model, x, y) -> x_adv, such as "
                "PGD(20).on(threat_model), or None"
            )


def _check_losses(looks: Mapping[str, _Look], where: str) -> None:
    values = torch.stack([look.loss for look in looks.values()]).tolist()
    for name, value in zip(looks, values, strict=True):
        if not math.isfinite(value):
            raise CurvactError(f"the loss under {name!r} is {value} in {where}: it must be finite")
