"""The native CPU kernel against mpmath, the plain float64 formulas and itself: accuracy, limits,
layouts, placement, building.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from curvact import native_code
from curvact.activations import ScaledActivation, activation, kernel_info, set_fusion
from curvact.activations.kernels import native as kernel
from curvact.activations.kernels.shape import evaluate
from curvact.errors import CurvactError

FAMILIES = [
    *(f"rctaf(alpha=1, beta={beta})" for beta in range(4)),
    "swish(beta=1)",
    "squareplus(b=1)",
    "gelu(alpha=1)",
    "mish(alpha=1)",
    *(f"powergate(alpha=1, n={n})" for n in (1, 2, 3, 16)),
]
ALPHAS = [1e-3, 0.3, 1.0, 7.3, 1e5]
HALVES = [torch.bfloat16, torch.float16]
# Units of rounding of 1: a polynomial of ten terms, an exponential and a few products leave one or
# two of them.
VALUE = {torch.float32: 2e-7, torch.float64: 1e-15}
SLOPE = {torch.float32: 3e-7, torch.float64: 1.5e-15}

pytestmark = pytest.mark.skipif(not kernel_info().startswith("native"), reason="no C compiler here")


def family(name: str, alpha: float = 1.0) -> ScaledActivation:
    act = activation(name)
    assert isinstance(act, ScaledActivation)
    act.alpha = alpha
    return act


def plain(act: ScaledActivation, x: Tensor, order: int) -> Tensor:
    return evaluate(x, act.alpha, act.shape, order)


def native(
    act: ScaledActivation, x: Tensor, order: int, grad: Tensor | None = None, centered: bool = False
) -> Tensor:
    assert act.shape.native is not None
    out = kernel.run(x, grad, act.shape.native, order, act.scale, centered)
    assert out is not None
    return out


def growth(name: str) -> float:
    """The power gate sums and multiplies n rounded gates: its bound grows with n."""
    return 1.0 + int(name.split("n=")[1].rstrip(")")) if "n=" in name else 1.0


def wide() -> Tensor:
    """u from −1e30 to 1e30, dense where the functions bend."""
    far = torch.logspace(-8, 30, 400, dtype=torch.float64)
    return torch.cat(
        [
            torch.linspace(-110, 110, 8001, dtype=torch.float64),
            torch.linspace(-6, 6, 8001).double(),
            far,
            -far,
        ]
    )


def exact(name: str, u: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """φ(u) and φ'(u) from their definitions."""
    s = 1 / (1 + mp.exp(-u))
    softplus = mp.log1p(mp.exp(u))
    if name.startswith("rctaf"):
        passes = int(name[-2])

        def gate(t: mp.mpf) -> mp.mpf:
            g = 1 / (1 + mp.exp(-t))
            for _ in range(passes):
                g = g * g * (3 - 2 * g)
            return g

        return mp.quad(
            gate, [-60, -30, -10, -3, 0, 3, 10, 30] if u > 30 else [u - 60, u - 20, u - 5, u]
        ), gate(u)
    if name.startswith("swish"):
        return u * s, s + u * s * (1 - s)
    if name.startswith("squareplus"):
        root = mp.sqrt(u * u + 1)
        return (u + root) / 2, (1 + u / root) / 2
    if name.startswith("gelu"):
        return u * mp.ncdf(u), mp.ncdf(u) + u * mp.npdf(u)
    if name.startswith("mish"):
        t = mp.tanh(softplus)
        return u * t, t + u * (1 - t * t) * s
    n = int(name.split("n=")[1].rstrip(")"))
    return softplus - sum(s**k / k for k in range(1, n)), s**n


@pytest.mark.parametrize("name", FAMILIES)
def test_spot_values_from_the_definitions(name: str) -> None:
    points = [-20.0, -7.5, -2.0, -0.625, 0.0, 0.25, 1.5, 6.0, 25.0]
    act = family(name)
    with mp.workdps(40):
        wanted = [exact(name, mp.mpf(p)) for p in points]
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(points, dtype=dtype)
        for order, bounds in ((0, VALUE), (1, SLOPE)):
            got = native(act, x, order).double()
            want = torch.tensor([float(w[order]) for w in wanted], dtype=torch.float64)
            error = (got - want).abs() / want.abs().clamp(min=1)
            assert error.max() <= bounds[dtype] * growth(name), (dtype, order, error)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", FAMILIES)
def test_agrees_with_the_plain_float64_formula(name: str, alpha: float) -> None:
    act = family(name, alpha)
    for dtype in (torch.float32, torch.float64):
        x = (wide() / alpha).to(dtype)
        x = x[x.isfinite()]
        want = plain(act, x.double(), 0)
        error = (native(act, x, 0).double() - want).abs() / want.abs().clamp(min=1 / alpha)
        assert error.max() <= VALUE[dtype] * growth(name)
        error = (native(act, x, 1).double() - plain(act, x.double(), 1)).abs()
        assert error.max() <= SLOPE[dtype] * growth(name)


@pytest.mark.parametrize("beta", range(4))
def test_negative_inputs_keep_their_relative_accuracy_and_sign(beta: int) -> None:
    act = family(f"rctaf(alpha=1, beta={beta})")
    u = torch.linspace(-9, 0, 37, dtype=torch.float64)
    got = native(act, u, 0)
    with mp.workdps(40):
        want = torch.tensor(
            [float(exact(f"rctaf(beta={beta})", mp.mpf(v))[0]) for v in u.tolist()], dtype=torch.float64
        )
    # Seven units of rounding, times 2^β since φ goes as sigmoid(u) to that power.
    torch.testing.assert_close(got, want, rtol=2e-15 * 2**beta, atol=0)
    assert (native(act, torch.linspace(-200, 0, 5001), 0) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", FAMILIES)
def test_limits(name: str, alpha: float, dtype: torch.dtype) -> None:
    act = family(name, alpha)
    top = torch.finfo(dtype).max
    ends = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    assert native(act, ends, 0).tolist() == [0, torch.inf]
    assert native(act, ends, 1).tolist() == [0, 1]
    nan = torch.full((3,), torch.nan, dtype=dtype)
    assert native(act, nan, 0).isnan().all()
    assert native(act, nan, 1).isnan().all()
    tiny = torch.finfo(dtype).tiny
    finite = torch.tensor([-top, -top / 2, -1e4, -tiny, -0.0, 0.0, tiny, 1e4, top / 2, top], dtype=dtype)
    assert native(act, finite, 0).isfinite().all()
    slope = native(act, finite, 1)
    assert slope.isfinite().all()
    assert slope.double().sub(plain(act, finite.double(), 1)).abs().max() <= max(
        torch.finfo(dtype).eps, 1e-15
    ) * growth(name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    """All 65536 numbers, subnormal ones, infinities and NaN among them."""
    act = family(name, 2.5)
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    grad = x.flip(0)
    torch.testing.assert_close(
        native(act, x, 0), native(act, x.float(), 0).to(dtype), rtol=0, atol=0, equal_nan=True
    )
    want = native(act, x.float(), 1, grad.float()).to(dtype)
    torch.testing.assert_close(native(act, x, 1, grad), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_centered_is_zero_at_zero(name: str) -> None:
    act = family(name, 3.7)
    for dtype in (torch.float32, torch.float64, *HALVES):
        zero = torch.zeros(5, dtype=dtype)
        assert (native(act, zero, 0, centered=True) == 0).all()
    x = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    want = plain(act, x, 0) - plain(act, torch.zeros(1, dtype=torch.float64), 0)
    torch.testing.assert_close(native(act, x, 0, centered=True), want, rtol=0, atol=2e-15 * growth(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_element_does_not_depend_on_its_place(name: str, dtype: torch.dtype) -> None:
    """Bits are equal after permuting, slicing at odd places and in one element at a time, and with
    more threads.
    """
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(100_003, generator=generator) * 8).to(dtype)
    act = family(name, 1.7)
    for order in (0, 1):
        whole = native(act, x, order)
        order_of = torch.randperm(len(x), generator=generator)
        assert torch.equal(native(act, x[order_of], order), whole[order_of])
        for start, stop in ((1, 2), (3, 260), (5, 77_777), (99_990, 100_003)):
            assert torch.equal(native(act, x[start:stop], order), whole[start:stop])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(native(act, x, order), whole)
        finally:
            torch.set_num_threads(threads)


def layouts() -> dict[str, Tensor]:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3),
        "sliced": x[:, ::2, 1:, ::3],
        "channels last sliced": x.contiguous(memory_format=torch.channels_last)[:, :3],
        "expanded": x[:, :1].expand(3, 4, 5, 6),
        "one channel": x[:, :1],
        "scalar": x[0, 0, 0, 0],
        "empty": x[:0],
        "offset": x.flatten()[1:],
    }


@pytest.mark.parametrize("layout", list(layouts()))
def test_any_layout(layout: str) -> None:
    x = layouts()[layout]
    act = family("rctaf(alpha=1, beta=1)", 2.0)
    out = native(act, x, 0)
    assert out.shape == x.shape
    assert out.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(out, plain(act, x, 0), rtol=1e-14, atol=1e-15)
    for grad in (torch.full_like(x, 2.0), torch.tensor(2.0, dtype=x.dtype).expand_as(x)):
        torch.testing.assert_close(native(act, x, 1, grad), 2 * plain(act, x, 1), rtol=1e-14, atol=1e-15)


@settings(max_examples=150)
@given(
    name=st.sampled_from(FAMILIES),
    values=st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=70),
    alpha=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_input(name: str, values: list[float], alpha: float, dtype: torch.dtype) -> None:
    act = family(name, alpha)
    x = torch.tensor(values, dtype=dtype)
    unit = max(torch.finfo(dtype).eps, 2e-16)
    want = plain(act, x.double(), 0)
    assert (
        (native(act, x, 0).double() - want).abs() <= 3 * growth(name) * unit * want.abs().clamp(min=1 / alpha)
    ).all()
    want = plain(act, x.double(), 1)
    assert ((native(act, x, 1).double() - want).abs() <= 3 * growth(name) * unit).all()
    assert (native(act, x, 0) - torch.relu(x)).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradcheck_with_the_kernel_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = kernel.run
    monkeypatch.setattr(kernel, "run", lambda *a: (calls.append(a[3]), run(*a))[1])
    act = family(name, 1.3)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(act, (x,))
    assert set(calls) == {0, 1}


def test_learnable_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of α by both ways of computing."""
    act = activation("rctaf(alpha=2.5, beta=2, learnable=True, centered=True)").double()
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    gradients = []
    for mode in ("auto", "plain"):
        set_fusion(mode)  # type: ignore[arg-type]
        try:
            gradients.append(torch.autograd.grad(act(x).square().sum(), act.parameters())[0])
        finally:
            set_fusion("auto")
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=0)


class Refused(Exception):
    pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise Refused

    monkeypatch.setattr(kernel, "run", refuse)


@pytest.mark.usefixtures("refusing")
def test_only_plain_memory_gets_to_the_kernel() -> None:
    act = family("swish(beta=1)", 2.0)
    x = torch.randn(10)
    with pytest.raises(Refused):
        act(x)
    with pytest.raises(Refused):
        act(nn.Parameter(x))

    class Sub(Tensor):
        pass

    class Watch(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Watch.seen += 1
            return function(*args, **(kwargs or {}))

    act(x.as_subclass(Sub))
    act(x.to("meta"))
    with torch._subclasses.FakeTensorMode():
        act(torch.empty(10))
    with Watch():
        act(x)
    assert Watch.seen > 0
    negated = torch.imag(torch.conj(torch.complex(x, x)))
    assert negated.is_neg()
    torch.testing.assert_close(act(negated), plain(act, -x, 0))
    act.alpha = torch.ones(2, 1)  # type: ignore[assignment]
    act(torch.randn(2, 5))
    set_fusion("plain")
    try:
        family("swish(beta=1)")(x)
    finally:
        set_fusion("auto")


def test_scales_that_leave_float32_are_left_to_plain_code() -> None:
    x = torch.randn(4)
    shape = family("gelu(alpha=1)").shape.native
    assert shape is not None
    for alpha in (0.0, -1.0, 1e-39, 1e39, float("nan")):
        assert kernel.run(x, None, shape, 0, alpha, False) is None
    assert kernel.run(x, None, shape, 2, 1.0, False) is None
    assert kernel.run(x.to(torch.float8_e4m3fn), None, shape, 0, 1.0, False) is None


# ---- building ----


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not decided yet, with an empty cache."""
    monkeypatch.setattr(kernel, "_library", None)
    monkeypatch.setattr(kernel, "_reason", None)
    monkeypatch.setenv("CURVACT_CACHE", str(tmp_path))
    monkeypatch.delenv("CURVACT_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def test_built_once_and_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_info().startswith("native (")
    built = sorted(fresh.iterdir())
    assert [path.suffix for path in built] == [".sha256", ".so"]
    assert [path.stat().st_mode & 0o077 for path in built] == [0, 0]
    monkeypatch.setattr(kernel, "_library", None)
    monkeypatch.setattr(native_code, "build", lambda *_: pytest.fail("built twice"))
    assert kernel_info().startswith("native (")
    assert sorted(fresh.iterdir()) == built


@pytest.mark.parametrize("compiler", ["/bin/false", "/bin/true", "no-such-compiler-here", "'"])
def test_without_a_working_compiler_plain_code_runs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert kernel_info().startswith("plain (")
    assert list(fresh.iterdir()) == []
    act, x = family("mish(alpha=1)", 2.0), torch.randn(100)
    assert torch.equal(act(x), plain(act, x, 0))


def test_switched_off_by_the_environment(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVACT_NATIVE", "0")
    assert kernel_info() == "plain (CURVACT_NATIVE=0)"
    monkeypatch.delenv("CURVACT_NATIVE")
    assert kernel_info() == "plain (CURVACT_NATIVE=0)", "decided once a process"


def test_a_damaged_file_in_the_cache_is_built_anew(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kernel._compiled()
    path.write_bytes(b"not a library")
    assert kernel_info().startswith("native (")
    assert path.stat().st_size > 1000


def planted(path: Path) -> Path:
    """A library that leaves a mark when it is loaded, under the name that curvact would give it."""
    mark = path.parent / "mark"
    source = path.parent / "planted.c"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void mark(void) {{ fclose(fopen("{mark}", "w")); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return mark


@pytest.mark.skipif(not Path("/usr/bin/cc").exists(), reason="the planted library needs cc")
@pytest.mark.parametrize("how", ["no hash", "other hash", "link", "another owner", "written by others"])
def test_a_planted_library_is_not_loaded(fresh: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = kernel._compiled()
    beside = path.with_suffix(".sha256")
    path.unlink()
    mark = planted(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if how == "no hash":
        beside.unlink()
    elif how == "link":
        beside.write_text(digest)
        path.rename(fresh / "elsewhere.so")
        path.symlink_to(fresh / "elsewhere.so")
    elif how == "another owner":
        if os.getuid():
            pytest.skip("needs root to give a file away")
        beside.write_text(digest)
        os.chown(path, 12345, 12345)
    elif how == "written by others":
        beside.write_text(digest)
        path.chmod(0o777)
    assert kernel_info().startswith("native (")
    assert not mark.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    fresh.chmod(mode)
    with pytest.warns(
        native_code.NativeCodeWarning, match=r"others own or can write to: .* chmod go-w"
    ) as said:
        assert kernel_info().startswith("native (")
    assert "\n" not in str(said[0].message)
    assert list(fresh.iterdir()) == []


def test_a_relative_cache_is_a_folder_of_the_working_directory(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh)
    monkeypatch.setenv("CURVACT_CACHE", ".")
    assert kernel_info().startswith("native (")
    assert len(list(fresh.iterdir())) == 2


def test_a_kernel_that_computes_wrongly_is_refused(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = kernel._SOURCE.read_text()
    wrong = source.replace("K(1) + (y + y * y", "K(1) + (y + K(1e-9) + y * y")
    assert wrong != source
    (tmp_path / "native.c").write_text(wrong)
    monkeypatch.setattr(kernel, "_SOURCE", tmp_path / "native.c")
    assert kernel_info() == "plain (the built kernel computes wrongly)"


def test_a_cache_that_cannot_be_written_to_is_no_obstacle(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "file").touch()
    monkeypatch.setenv("CURVACT_CACHE", str(fresh / "file" / "folder"))
    assert kernel_info().startswith("native (")


@pytest.mark.slow
def test_two_processes_building_at_once(tmp_path: Path) -> None:
    script = (
        "import torch; from curvact.activations import activation, kernel_info; "
        "print(kernel_info(), activation('rctaf(curvature=6, beta=1)')(torch.linspace(-2, 2, 999)).sum().item())"
    )
    environment = {**os.environ, "CURVACT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("CURVACT_NATIVE", None)
    started = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1]
    assert said[0].startswith("native (")
    assert len(list(tmp_path.iterdir())) == 2, "one library and its hash, and nothing half-written"


def test_modes() -> None:
    try:
        set_fusion("plain")
        assert kernel_info() == "plain (chosen by set_fusion)"
        set_fusion("compiled")
        assert kernel_info().startswith("compiled (torch ")
        with pytest.raises(CurvactError, match=r"'fast'.*'auto', 'compiled' and 'plain'"):
            set_fusion("fast")  # type: ignore[arg-type]
    finally:
        set_fusion("auto")


# ---- the formulas that compiled code uses ----


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("rctaf(alpha=3, beta=3, learnable=True, centered=True)", marks=pytest.mark.slow),
        "mish(alpha=3, learnable=True)",
        "squareplus(b=0.1, learnable=True)",
    ],
)
def test_compiled_gradients_also_at_zero(name: str) -> None:
    torch._dynamo.reset()
    act = activation(name)
    assert isinstance(act, ScaledActivation)
    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    far = torch.tensor([-torch.inf, -3e38, 0.0, 3e38, torch.inf])
    torch.testing.assert_close(compiled(far), act(far), rtol=3e-7, atol=1e-7)
    x = torch.tensor([-5.0, -0.3, 0.0, 0.2, 4.0], requires_grad=True)
    inputs = [x, *act.parameters()]
    got = torch.autograd.grad(compiled(x).sum(), inputs)
    want = torch.autograd.grad(act(x).sum(), inputs)
    # The gradient of α is a sum of differences of numbers about 1, divided by α.
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=5e-7)
    if name.startswith("mish"):  # its transforms take the same path as those of RCT-AF
        return
    torch._dynamo.reset()
    forward = torch.compile(
        lambda t: torch.func.jvp(act, (t,), (torch.ones_like(t),))[1], fullgraph=True, backend="aot_eager"
    )
    z = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(forward(z), act.slope(z), rtol=0, atol=2e-6)
    torch._dynamo.reset()
    twice = torch.compile(
        lambda t: torch.func.jvp(torch.func.grad(lambda s: act(s).sum()), (t,), (torch.ones_like(t),))[1],
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(twice(z), act.curvature(z), rtol=0, atol=1e-5)
    torch._dynamo.reset()
