"""``mutate``: break the kernels of an op in the ways that kernels break, and see whether
``check_op`` notices.

The op is checked once on the interpreted device, and what each step launches is written down. Then
every edit of ``mutants.py`` that applies to one of those kernels (or to a function that they call)
is made, one at a time, and the steps that launch the kernel run again until one of them fails. The
edited kernel takes the place of the right one at the launch, so nothing outside is changed.

Source: mutation testing (DeMillo, Lipton, Sayward, "Hints on test data selection", 1978).
"""

from __future__ import annotations

import ast
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import runtime
from ..errors import KernelError
from ..lang import Jit
from ..ops.registry import Op
from ..runtime import DeviceArray
from . import mutants
from .cases import draw_for, record_of
from .check import once, steps
from .edits import is_tl
from .mutants import Site

GENERATED = "trident.generated"
KILLED, SURVIVED, STILLBORN, SAME = "killed", "survived", "stillborn", "same"


class Stillborn(BaseException):
    """The edited kernel is no program: Triton would not compile it."""


class Hung(BaseException):
    """The edited kernel did not end."""


@dataclass(frozen=True)
class Mutant:
    """One edit of one kernel."""

    kernel: str
    site: Site

    def __str__(self) -> str:
        s = self.site
        where = f"{self.kernel}:{s.line}" if s.line else self.kernel
        return f"{where}: {s.kind}\n    - {s.before}\n    + {s.after}"


@dataclass
class Outcome:
    """What became of a mutant: ``status`` is killed, survived, or what does not count: stillborn
    (Triton would not compile it) or same (a cast was dropped that Triton makes anyway: the bits
    of every launch are the same). ``by`` is the check that failed and ``why`` how."""

    mutant: Mutant
    status: str
    by: str = ""
    why: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """The outcomes of ``mutate``. ``print(report)`` shows a table by kind, and what survived."""

    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, status: str) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == status]

    @property
    def killed(self) -> list[Outcome]:
        return self.of(KILLED)

    @property
    def survivors(self) -> list[Outcome]:
        return self.of(SURVIVED)

    @property
    def score(self) -> float:
        """Killed mutants, as a share of those that compile."""
        counted = len(self.killed) + len(self.survivors)
        return len(self.killed) / counted if counted else 1.0

    def __str__(self) -> str:
        killed = Counter(o.mutant.site.kind for o in self.killed)
        left = Counter(o.mutant.site.kind for o in self.survivors)
        lines = [
            f"{len(self.killed)} of {len(self.killed) + len(self.survivors)} mutants killed "
            f"({self.score:.1%}); {len(self.of(STILLBORN))} more do not compile, "
            f"{len(self.of(SAME))} drop a cast that Triton makes anyway"
        ]
        for kind in mutants.REASONS:
            if killed[kind] + left[kind]:
                lines.append(f"  {kind:24} {killed[kind]:4} of {killed[kind] + left[kind]:4}")
        lines += [f"survived: {o.mutant}" for o in self.survivors]
        return "\n".join(lines)


@dataclass
class Trial:
    """One step of ``check_op`` with one seed, and what it launched."""

    op: Op
    step: str
    seed: int
    run: Callable
    seconds: float = 0.0
    launched: dict[int, tuple[Jit, tuple[int, ...]]] = field(default_factory=dict)
    kills: int = 0

    def __call__(self) -> None:
        self.run(draw_for(self.seed, self.step))


Hook = Callable[[Callable, Jit, tuple, tuple], None]


@contextlib.contextmanager
def _launches(hook: Hook) -> Iterator[None]:
    """``hook(start, kernel, grid, args)`` instead of every launch of the interpreted device, where
    ``start(kernel, grid)`` is the launch."""
    device: Any = type(runtime.current())
    launch = device.launch

    def hooked(self: Any, kernel: Jit, grid: tuple, args: tuple, *rest: Any) -> None:
        hook(lambda k, g: launch(self, k, g, args, *rest), kernel, grid, args)

    device.launch = hooked
    try:
        yield
    finally:
        device.launch = launch


def trials_of(op: Op, examples: int, seed: int = 0, failed: list[str] | None = None) -> list[Trial]:
    """The trials of an op, each run once on the unbroken kernels. All must pass; those that do not
    are left out and named in ``failed``, where a list is given."""
    found = []
    for name, run in steps(op, "cuda"):
        for k in range(0 if once(op, name) else examples):
            trial = Trial(op, name, seed + k, run)

            def note(
                start: Callable, kernel: Jit, grid: tuple, args: tuple, trial: Trial = trial
            ) -> None:
                most = trial.launched.get(id(kernel), (kernel, grid))[1]
                largest = tuple(max(a, b) for a, b in zip(most, grid))
                trial.launched[id(kernel)] = (kernel, largest)
                start(kernel, grid)

            begun = time.perf_counter()
            try:
                with _launches(note):
                    trial()
            except Exception as error:
                if failed is None:
                    raise
                failed.append(f"{op.name}, step {name}, seed {seed + k}: {_first(error)}")
                continue
            trial.seconds = time.perf_counter() - begun
            if trial.launched:
                found.append(trial)
    return found


def name_of(jit: Jit) -> str:
    """``reduce.reduce_kernel``, ``generated.relu_kernel``: what mutants of a kernel go by."""
    return f"{jit.fn.__module__.rpartition('.')[2]}.{jit.name}"


def _family(jit: Jit) -> list[Jit]:
    """A kernel and the functions it calls, each once."""
    found: dict[int, Jit] = {}

    def visit(j: Jit) -> None:
        if id(j) not in found:
            found[id(j)] = j
            for helper in mutants.called(j).values():
                visit(helper)

    visit(jit)
    return list(found.values())


def _axes(jit: Jit) -> list[int]:
    """The grid axes whose program numbers a kernel reads."""
    found: set[int] = set()
    for j in _family(jit):
        calls = [n for n in ast.walk(mutants.parse(j.fn)[0]) if is_tl(n, "program_id")]
        found |= {int(ast.literal_eval(n.args[0])) for n in calls}  # type: ignore[attr-defined]
    return sorted(found)


def _grid_sites(jit: Jit) -> list[Site]:
    sites = [Site("launch skipped", f"launch({jit.name}, grid, ...)", "pass")]
    for axis in _axes(jit):
        sites.append(Site("grid one short", f"grid[{axis}]", f"grid[{axis}] - 1", axis))
    return sites


class Subject:
    """The kernels of some ops, their trials and their mutants."""

    def __init__(
        self, ops: Iterable[Any], examples: int = 8, failed: list[str] | None = None
    ) -> None:
        self.trials: list[Trial] = []
        for op in ops:
            self.trials += trials_of(record_of(op), examples, failed=failed)
        launched: dict[int, Jit] = {}
        for t in self.trials:
            for jit, _ in t.launched.values():
                launched[id(jit)] = jit
        self.launched = list(launched.values())
        self._swapped: dict[tuple[int, Mutant], Jit | None] = {}

    def kernels(self) -> list[str]:
        """Names of the kernels and of the functions they call."""
        return sorted({name_of(j) for k in self.launched for j in _family(k)})

    def mutants(self, names: Iterable[str] | None = None) -> list[Mutant]:
        """The mutants of all kernels, or of those that are named."""
        wanted = None if names is None else set(names)
        found: dict[tuple, Mutant] = {}
        top = {name_of(j) for j in self.launched}
        for k in self.launched:
            for j in _family(k):
                name = name_of(j)
                if wanted is not None and name not in wanted:
                    continue
                extra = _grid_sites(j) if name in top and j is k else []
                for site in [*mutants.sites(j.fn), *extra]:
                    generated = j.fn.__module__ == GENERATED and site.line
                    key = mutants.role(site) if generated else site.key
                    found.setdefault((name, key), Mutant(name, site))
        return list(found.values())

    def _swap(self, jit: Jit, m: Mutant) -> Jit | None:
        """``jit`` with the mutant in it; None where it is not concerned."""
        key = (id(jit), m)
        if key not in self._swapped:
            made = None
            for j in _family(jit):
                if name_of(j) == m.kernel:
                    if j.fn.__module__ == GENERATED:
                        broken = mutants.mutated_by_role(j, mutants.role(m.site))
                    else:
                        broken = mutants.mutated(j, m.site)
                    made = mutants.rebuilt(jit, j, broken) if broken is not None else None
                    break
            self._swapped[key] = made
        return self._swapped[key]

    def _concerns(self, m: Mutant, jit: Jit, grid: tuple[int, ...]) -> bool:
        if m.site.kind == "launch skipped":
            return name_of(jit) == m.kernel
        if m.site.kind == "grid one short":
            axis = m.site.nth
            return name_of(jit) == m.kernel and axis < len(grid) and grid[axis] > 1
        return self._swap(jit, m) is not None

    def try_(self, m: Mutant) -> Outcome:
        """Run the trials that launch the kernel of ``m`` until one notices."""
        begun = time.perf_counter()
        chosen = [
            t for t in self.trials if any(self._concerns(m, j, g) for j, g in t.launched.values())
        ]
        chosen.sort(key=lambda t: (t.seconds + 0.02) / (t.kills + 0.5))

        same = m.site.kind == "not widened"

        def broken(start: Callable, kernel: Jit, grid: tuple, args: tuple) -> None:
            nonlocal same
            if m.site.kind == "launch skipped" and name_of(kernel) == m.kernel:
                return
            if m.site.kind == "grid one short" and name_of(kernel) == m.kernel:
                axis = m.site.nth
                short = tuple(n - 1 if a == axis and n > 1 else n for a, n in enumerate(grid))
                start(kernel, short)
                return
            swapped = self._swap(kernel, m) if not m.site.kind.startswith("launch") else None
            if swapped is None:
                start(kernel, grid)
                return
            before, right = _memory(args), None
            if same:
                start(kernel, grid)
                right = _memory(args, before)
            try:
                start(swapped, grid)
                same = same and _memory(args) == right
            except KernelError as error:
                if "outside of" in str(error) or "read-only" in str(error):
                    raise
                raise Stillborn(str(error)) from error
            except Exception as error:
                raise Stillborn(f"{type(error).__name__}: {error}") from error

        outcome = Outcome(m, SURVIVED, why=f"{len(chosen)} trials")
        for t in chosen:
            try:
                with _launches(broken), _alarm(20 + 30 * t.seconds):
                    t()
            except Stillborn as error:
                outcome = Outcome(m, STILLBORN, f"{t.op.name} {t.step}", _first(error))
                break
            except Hung:
                outcome = Outcome(m, KILLED, f"{t.op.name} {t.step} seed {t.seed}", "does not end")
                break
            except Exception as error:
                t.kills += 1
                why = f"{type(error).__name__}: {_first(error)}"
                outcome = Outcome(m, KILLED, f"{t.op.name} {t.step} seed {t.seed}", why)
                break
        if outcome.status == SURVIVED and same and chosen:
            outcome = Outcome(m, SAME, why="Triton promotes to the same bits by itself")
        for key in [k for k in self._swapped if k[1] == m]:
            made = self._swapped.pop(key)
            if made is not None:
                mutants.forget(made)
        outcome.seconds = time.perf_counter() - begun
        return outcome


def _memory(args: tuple, restore: list[bytes] | None = None) -> list[bytes]:
    """The bytes behind the arrays of a launch; afterwards put back to ``restore``, if given."""
    buffers = list({id(a.buffer): a.buffer for a in args if isinstance(a, DeviceArray)}.values())
    found = [b.memory.tobytes() for b in buffers]
    if restore is not None:
        for b, old in zip(buffers, restore):
            b.memory.reshape(-1).view(np.uint8)[:] = np.frombuffer(old, np.uint8)
    return found


def _user_made(op: Any) -> bool:
    """Whether an op was defined outside of the package."""
    return (record_of(op).signature.__module__ or "").partition(".")[0] != "trident"


def _outside(jit: Jit) -> bool:
    """Whether a kernel is not trident's own."""
    return jit.fn.__module__.partition(".")[0] != "trident"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise ``Hung`` after a while (in the main thread of a system that has alarms)."""
    able = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not able:
        yield
        return

    def ring(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutate(
    op: Any,
    *more: Any,
    examples: int = 8,
    kernels: Iterable[str] | None = None,
    kinds: Iterable[str] | None = None,
    verbose: bool = False,
) -> Report:
    """Break the kernels that an op launches, and see whether ``check_op`` notices each time.

    op, more: ops as ``check_op`` takes them; several are checked together where they share a
    kernel. It needs the interpreted device (``TRITON_INTERPRET=1``, or ``with
    trident.interpret():``). examples: random calls a step, as in ``check_op``. kernels: only these,
    by name ("softmax.softmax_kernel"); if left out, your own, or for an op of trident all. kinds:
    only these edits (the keys of ``trident.testing.mutants.REASONS``). verbose: print each mutant
    as it ends. An edit that Triton cannot compile does not count. Survivors say what the samples of
    the op miss: usually a second block, a partial block, or an axis more.

    >>> with trident.interpret():
    ...     report = trident.testing.mutate(trident.relu, examples=1, kinds=["store dropped"])
    >>> report.score
    1.0
    """
    if not runtime.current().interpreted:
        raise KernelError("mutate: kernels are broken under the interpreter only")
    subject = Subject((op, *more), examples)
    chosen = None if kinds is None else set(kinds)
    if kernels is None:  # the copies and elementwise ops of trident around yours are not yours
        made = tuple(f"generated.{record_of(o).name}" for o in (op, *more))
        own = {
            name_of(j)
            for k in subject.launched
            for j in _family(k)
            if _outside(j) or (j is k and name_of(j).startswith(made) and _user_made(op))
        }
        kernels = own or None
    report = Report()
    for m in subject.mutants(kernels):
        if chosen is not None and m.site.kind not in chosen:
            continue
        outcome = subject.try_(m)
        report.outcomes.append(outcome)
        if verbose:
            print(f"{outcome.status} in {outcome.seconds:.1f} s by {outcome.by}: {m}", flush=True)
    return report
