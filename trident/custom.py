"""For kernels of one's own: ``kernel`` launches a Triton function on tensors, ``Config`` and
``autotune`` choose how. ``elementwise`` and ``fused``, which make ops of such kernels, are in
``ops.registry``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import backends, config, dispatch, shapes
from .dtypes import dtype as DType
from .errors import AutogradError, DeviceError, wrong
from .kernels.layout import contiguous
from .kernels.layout import copy as copy_into
from .lang import Jit, tl
from .ops.view import element_strides
from .runtime import DeviceArray, functions, launch, tuning
from .runtime.tuning import Config
from .tape.grad_mode import is_grad_enabled
from .tape.storage import overlaps
from .tensor import Tensor

_OPTIONS = ("num_warps", "num_stages")
_WAY_OUT = (
    "launch under trident.no_grad(), or pass x.detach(); for a gradient make it an op with "
    "@trident.fused(forward=..., backward=...)"
)


class Kernel:
    """A Triton function that is launched on tensors; made by ``trident.kernel``."""

    def __init__(
        self,
        fn: Any,
        *,
        strided: Sequence[str] = (),
        writes: Sequence[str] | None = None,
        configs: Sequence[Config] = (),
        key: Sequence[str] = (),
        restore: Sequence[str] | None = None,
        grid: Any = None,
    ) -> None:
        self.fn = functions.plain(fn)
        self.__name__ = self.fn.__name__
        self.__doc__ = self.fn.__doc__
        self.__module__ = self.fn.__module__
        self.__wrapped__ = self.fn  # what inspect.signature shows
        found = inspect.signature(self.fn).parameters
        self.parameters = tuple(found)
        self.constexprs = frozenset(
            n for n, p in found.items() if functions.is_constexpr(p.annotation)
        )
        self.run_time = tuple(n for n in found if n not in self.constexprs)
        self.defaults = {n: p.default for n, p in found.items() if p.default is not p.empty}
        for p in found.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise self._error("a kernel takes named parameters only", got=str(p))
        self.grid = grid
        self.strided = self._names("strided", strided, self.run_time)
        self.writes = None if writes is None else self._names("writes", writes, self.run_time)
        self.restore = None if restore is None else self._names("restore", restore, self.run_time)
        self.key = self._names("key", key, self.parameters)
        self.configs = tuple(configs)
        self._check_configs()
        self._chosen: dict[tuple, tuple[Config, bool]] = {}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self._start, grid)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self.grid is None:
            raise self._error(
                "the number of programs is missing",
                hint=f"launch it as {self.__name__}[grid](...), or declare "
                "@trident.kernel(grid=...); other kernels call @trident.jit functions",
            )
        self._start(self.grid, *args, **kwargs)

    @functools.cached_property
    def jit(self) -> Jit:
        """What is launched: the function with its run-time parameters in front."""
        return functions.run_time_first(self.fn, self.constexprs)

    # ---- a launch --------------------------------------------------------------------------------

    def _start(self, grid: Any, /, *args: Any, **kwargs: Any) -> None:
        options = {n: kwargs.pop(n) for n in _OPTIONS if n in kwargs}
        given = self._bind(args, kwargs, options)
        passed = {n: self._value(n, a) for n, a in given.items()}
        arrays = {n: a for n, a in passed.items() if isinstance(a, (DeviceArray, np.ndarray))}
        self._check_arrays(arrays)
        self._check_history(given)
        if self.configs:
            chosen = self._choose(grid, given, passed, arrays)
            options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
            given |= chosen.constants
            passed |= {n: self._value(n, a) for n, a in chosen.constants.items()}
        self._launch(grid, given, passed, options)

    def _launch(self, grid: Any, given: dict, passed: dict, options: dict) -> None:
        launch(
            self.jit,
            self._sizes(grid, given, options),
            *(passed[n] for n in self.run_time),
            **options,
            **{n: passed[n] for n in self.parameters if n in self.constexprs},
        )

    def _bind(self, args: tuple, kwargs: dict[str, Any], options: dict) -> dict[str, Any]:
        """The arguments by parameter, without those that the configurations give."""
        chosen = self.configs[0].constants if self.configs else {}
        if len(args) > len(self.parameters):
            raise self._error(
                f"takes at most {len(self.parameters)} arguments ({', '.join(self.parameters)})",
                got=len(args),
            )
        given = dict(zip(self.parameters, args))
        for n, value in kwargs.items():
            if n not in self.parameters:
                known = ", ".join((*self.parameters, *_OPTIONS))
                raise self._error(f"unknown argument {n!r}; it takes {known}")
            if n in given:
                raise self._error(f"argument {n!r} is given twice")
            given[n] = value
        doubled = [n for n in (*given, *options) if n in chosen or (chosen and n in _OPTIONS)]
        if doubled:
            raise self._error(
                f"{doubled[0]!r} comes from its configurations, not from the call",
                hint=f"leave it out; to fix it, launch trident.kernel({self.__name__}.fn)",
            )
        missing = [
            n
            for n in self.parameters
            if n not in given and n not in chosen and n not in self.defaults
        ]
        if missing:
            raise self._error(f"missing argument{'s' * (len(missing) > 1)} {', '.join(missing)}")
        return {
            n: given[n] if n in given else self.defaults[n]
            for n in self.parameters
            if n not in chosen
        }

    def _value(self, name: str, a: Any) -> Any:
        """An argument as ``launch`` takes it: the array of a Tensor, numbers as they are."""
        if isinstance(a, np.generic):
            a = a.item()
        constant = name in self.constexprs
        if isinstance(a, (Tensor, DeviceArray, np.ndarray)):
            if constant:
                raise self._error(f"{name} is a tl.constexpr; it takes a number, not a tensor")
            # a launcher inside trident.interpret() may be given the memory of a CPU tensor
            if isinstance(a, np.ndarray) and config.interpreting.get() is None:
                raise self._error(
                    f"{name} must be a Tensor or a number", got="a numpy array",
                    hint="wrap it: trident.from_numpy(a) shares its memory",
                )  # fmt: skip
            return a._data if isinstance(a, Tensor) else a
        if constant:
            return self._constant(name, a)
        if a is None or isinstance(a, (bool, int, float)):
            return a
        if isinstance(a, (list, tuple)):
            hint = "make a Tensor of it: trident.tensor(data), or trident.from_numpy(array)"
        else:
            hint = f"a value known when the kernel is compiled needs `{name}: tl.constexpr`"
        raise self._error(
            f"{name} must be a Tensor, a number or None", got=f"a {type(a).__name__}", hint=hint
        )

    def _constant(self, name: str, a: Any) -> Any:
        if isinstance(a, Kernel):
            return a.jit
        if isinstance(a, DType):
            return getattr(tl, "int1" if a.kind == "bool" else a.name)
        try:
            hash(a)
        except TypeError:
            raise self._error(
                f"{name} is a tl.constexpr; it takes a number, a str, a dtype or a @trident.jit "
                "function", got=f"a {type(a).__name__}",
            ) from None  # fmt: skip
        return a

    def _check_arrays(self, arrays: dict[str, Any]) -> None:
        if not arrays:
            raise self._error("got no tensor among its arguments")
        places = {n: "cpu" if isinstance(a, np.ndarray) else a.device for n, a in arrays.items()}
        if any(p is not next(iter(places.values())) for p in places.values()):
            raise self._error(
                "its tensors must be on one device",
                got=", ".join(f"{n} on {p}" for n, p in places.items()),
                hint="move them with .to('cpu') or .to('cuda')", error=DeviceError,
            )  # fmt: skip
        for n, a in arrays.items():
            strides = element_strides(a)
            if n not in self.strided and not shapes.is_contiguous(a.shape, strides):
                raise self._error(
                    f"{n} must be contiguous",
                    got=f"shape {tuple(a.shape)} with strides {strides}",
                    hint="pass x.contiguous(), or let the kernel take x.stride() as arguments and "
                    f"declare @trident.kernel(strided=({n!r},))", error=ValueError,
                )  # fmt: skip

    def _check_history(self, given: dict[str, Any]) -> None:
        """A launch is not recorded: say so, and count it as a write of what it may write."""
        tensors = {n: a for n, a in given.items() if isinstance(a, Tensor)}
        if is_grad_enabled():
            for n, t in tensors.items():
                if t._requires_grad:
                    raise self._error(
                        f"{n} requires grad, and a launch is not recorded", hint=_WAY_OUT,
                        error=AutogradError,
                    )  # fmt: skip
        writer = f"kernel {self.__name__}"
        if self.writes is None:
            writer += " (which declares no writes=(...), so any of its tensors counts as written)"
        for n, t in tensors.items():
            if self.writes is None or n in self.writes:
                if self.writes is not None:
                    dispatch.check_writable(f"{writer}, {n}", t, ())
                dispatch.rebind(writer, t, t)

    def _sizes(self, grid: Any, given: dict[str, Any], options: dict) -> tuple[int, ...]:
        sizes = grid({**given, **options}) if callable(grid) else grid
        sizes = (sizes,) if isinstance(sizes, (int, np.integer)) else sizes
        if not isinstance(sizes, (tuple, list)) or not 1 <= len(sizes) <= 3:
            raise self._error("the grid must be one to three ints", got=repr(sizes))
        for s in sizes:
            if not isinstance(s, (int, np.integer)) or s < 0:
                raise self._error("the grid must be one to three ints", got=repr(sizes),
                                  hint="trident.cdiv rounds up")  # fmt: skip
        return tuple(int(s) for s in sizes)

    # ---- configurations --------------------------------------------------------------------------

    def _check_configs(self) -> None:
        if self.key and not self.configs:
            raise self._error("key says what the choice between configs depends on; there are none")
        for c in self.configs:
            if not isinstance(c, Config):
                raise self._error("configs must hold trident.Config(...)", got=repr(c))
            unknown = [n for n in c.constants if n not in self.constexprs]
            if unknown:
                known = ", ".join(sorted(self.constexprs)) or "none"
                raise self._error(
                    f"{c} names {unknown[0]!r}, which is no tl.constexpr parameter; those are "
                    f"{known}"
                )
            if c.constants.keys() != self.configs[0].constants.keys():
                raise self._error("all configs must set the same parameters",
                                  got=f"{self.configs[0]} and {c}")  # fmt: skip

    def _choose(self, grid: Any, given: dict, passed: dict, arrays: dict) -> Config:
        if len(self.configs) == 1:
            return self.configs[0]
        device = getattr(next(iter(arrays.values())), "device", None)
        on_host = isinstance(device, str) or device is None or device.interpreted
        facts = (
            "host" if on_host else getattr(device, "architecture", type(device).__name__),
            tuple(tuning.size_class(given[n]) for n in self.key if n in given),
            tuple(_kind(passed[n]) for n in self.run_time),
            tuple((n, repr(a)) for n, a in given.items() if n in self.constexprs),
        )
        wanted: Any = config.autotune.get()
        # timing the interpreter says nothing of a GPU: only a clock of the caller's is asked there
        measuring = bool(wanted) and (callable(wanted) or not on_host)
        known = self._chosen.get(facts)
        if known is not None and (known[1] or not measuring):
            return known[0]
        measure = None
        if measuring:
            measure = self._measure(grid, given, passed, arrays, device, wanted)
        identity = (_triton_version(), tuning.fingerprint(self.jit))
        found = tuning.choose(self.__name__, (*facts, *identity), self.configs, measure)
        self._chosen[facts] = found
        return found[0]

    def _measure(
        self, grid: Any, given: dict, passed: dict, arrays: dict, device: Any, clock: Any
    ) -> Callable[[Config], float]:
        """A function that times one configuration, and leaves the tensors as they were."""
        names = self.restore if self.restore is not None else self.writes
        kept = [
            (a, backends.of(a).copy(a))
            for n, a in arrays.items()
            if (names is None or n in names) and a.size and not overlaps(a)
        ]

        def prepare() -> None:
            for a, copy in kept:
                backends.of(a).assign(a, copy)

        def measure(c: Config) -> float:
            here, there = given | c.constants, passed | c.constants
            options = {"num_warps": c.num_warps, "num_stages": c.num_stages}

            def run() -> None:
                self._launch(grid, here, there, options)

            try:
                if callable(clock):
                    prepare()
                    return clock(c, run)
                return tuning.seconds(run, device.synchronize, prepare)
            finally:
                prepare()

        return measure

    # ---- small things ----------------------------------------------------------------------------

    def _names(self, option: str, names: Any, known: tuple[str, ...]) -> tuple[str, ...]:
        names = (names,) if isinstance(names, str) else tuple(names)
        for n in names:
            if n not in known:
                raise self._error(f"{option} names {n!r}, which is none of {', '.join(known)}")
        return names

    def _error(
        self,
        expected: str,
        got: object = None,
        hint: str | None = None,
        error: type[Exception] = TypeError,
    ) -> Exception:
        return wrong(f"kernel {self.__name__}", expected, got=got, hint=hint, error=error)

    def __repr__(self) -> str:
        return f"<kernel {self.__name__}>"


def kernel(
    fn: Any = None,
    *,
    strided: Sequence[str] = (),
    writes: Sequence[str] | None = None,
    configs: Sequence[Config] = (),
    key: Sequence[str] = (),
    restore: Sequence[str] | None = None,
    grid: Any = None,
) -> Any:
    """Make a Triton function one that is launched on tensors: ``k[grid](x, out, n, BLOCK=1024)``.

    fn: a plain function, or one under ``@trident.jit`` or ``@triton.jit``. It may call
    ``@trident.jit`` and ``@triton.jit`` functions.

    A launch takes the kernel's parameters by position or by name: Tensors (and, in launchers of
    ``fused``, arrays), Python numbers, and None for an absent pointer; ``tl.constexpr`` parameters
    take numbers, strings, dtypes and ``@trident.jit`` functions too. ``num_warps`` (4) and
    ``num_stages`` (3) are options of the launch. ``grid`` is an int or a tuple of up to three, or a
    function of the dict of all arguments by parameter name. A grid with a zero launches nothing.
    Python floats arrive as float32: what needs float64 comes as a tensor, as a ``tl.constexpr``, or
    is computed from integers.

    Tensors must be on one device and contiguous: a kernel sees only their first element's address.
    One that takes strides as arguments names the parameters they belong to in ``strided``.

    A launch records nothing. Where recording is on, a tensor that requires grad raises
    AutogradError; ``trident.no_grad()``, ``.detach()`` or an op made with ``@trident.fused`` are
    the ways out. A launch counts as a write in place of the tensors in ``writes``, by default of
    all, so that a backward which needs their old values raises instead of using the new ones.

    ``configs`` are alternatives, ``trident.Config(BLOCK=1024, num_warps=8)``. The first is used
    until one has been measured: inside ``trident.autotune()``, or with ``TRIDENT_AUTOTUNE=1`` in
    the environment. What was measured is kept on disk and used from then on. ``key`` names
    parameters that the choice depends on (ints and tensor sizes, rounded up to powers of two);
    dtypes, constants, the architecture and the kernel's text always count. Measuring runs the
    kernel many times: the tensors in ``restore`` (by default those in ``writes``, or all where that
    is not given either) get their values back before each run.

    ``grid=`` in the decorator lets the launch be ``k(x, out, n)``.

    Raises TypeError for arguments that are missing, unknown, doubled or of a wrong type,
    DeviceError for tensors on several devices, ValueError for a tensor that is not contiguous.

    >>> from trident.lang import tl
    >>> @trident.kernel(writes=("out_ptr",), grid=lambda a: trident.cdiv(a["n"], a["BLOCK"]))
    ... def double(x_ptr, out_ptr, n, BLOCK: "tl.constexpr" = 1024):
    ...     i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ...     x = tl.load(x_ptr + i, mask=i < n)
    ...     tl.store(out_ptr + i, 2 * x, mask=i < n)
    >>> x, out = trident.arange(5), trident.zeros(5, dtype=trident.int64)
    >>> with trident.interpret():
    ...     double(x, out, 5)
    >>> out
    tensor([0, 2, 4, 6, 8])

    Source: Triton's ``kernel[grid](...)`` and ``triton.autotune``, for tensors of ours.
    """
    options: dict[str, Any] = {
        "strided": strided, "writes": writes, "configs": configs, "key": key, "restore": restore,
        "grid": grid,
    }  # fmt: skip
    if fn is None:
        return lambda f: Kernel(f, **options)
    return Kernel(fn, **options)


@contextmanager
def autotune(
    enabled: bool = True, *, clock: Callable[[Config, Callable[[], None]], float] | None = None
) -> Iterator[None]:
    """Inside, a kernel with several configurations measures them when no choice is cached.

    The choice is the configuration with the least median time. It may change the last bits of a
    result, as another block size adds in another order; without ``autotune`` (and without
    ``TRIDENT_AUTOTUNE=1``) nothing is measured. In Triton's interpreter nothing is measured either:
    its times say nothing of a GPU. ``clock(config, run)``, given, returns the seconds instead;
    ``run()`` launches once.

    >>> with trident.autotune():
    ...     pass  # the first training steps
    """
    token = config.autotune.set(clock if clock is not None else enabled)
    try:
        yield
    finally:
        config.autotune.reset(token)


# ---- what an argument looks like ----------------------------------------------------------------


def _kind(a: Any) -> str:
    """The dtype of an array, the type of a number."""
    return a.dtype.name if hasattr(a, "dtype") else type(a).__name__


@functools.cache
def _triton_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""


DeviceArray.contiguous = contiguous
DeviceArray.assign = copy_into

__all__ = ["Config", "DeviceArray", "Kernel", "autotune", "kernel"]
