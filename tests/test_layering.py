"""The house rules that a program can check: who imports whom, and what is never imported.

A row imports only rows above it (and its own). Cycles, broken by imports inside functions, are
allowed in the row of Tensor and tape alone.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trident"

LAYERS: list[tuple[int, set[str]]] = [
    (0, {"errors", "dtypes", "shapes", "memory_formats", "config", "lang"}),
    (1, {"runtime"}),
    (2, {"kernels"}),
    (3, {"ops"}),
    (4, {"backends"}),
    (
        5,
        {"tensor", "symbol", "autograd", "tape", "dispatch", "devices", "creation", "indexing",
         "legacy", "printing", "cuda", "switches", "custom", "lab", "interop",
         "accelerator"},
    ),
    (6, {"compile"}),
    (
        7,
        {"nn", "optim", "utils", "vision", "testing", "serialization", "safetensors_file",
         "torch_checkpoint", "unpickle", "profiler"},
    ),
    (8, {"", "cli", "__main__"}),
]  # fmt: skip
TAPE, BUILT_ON_TOP, TOP = 5, 7, 8


@dataclass(frozen=True)
class Import:
    source: str  # "ops.view"; "" is the package itself
    target: str
    line: int
    inside: bool  # in a function


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    first = module.partition(".")[0]
    for number, names in LAYERS:
        if first in names:
            return number
    raise AssertionError(f"trident/{first}: give it a row in tests/test_layering.py and DESIGN.md")


def targets(node: ast.Import | ast.ImportFrom, module: str) -> list[str]:
    """The modules of trident that an import statement loads."""
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    else:
        package = module.split(".") if module else []
        if node.level:
            is_package = MODULES[module].name == "__init__.py"
            up = node.level - is_package
            package = package[: len(package) - up]
            base = ".".join(["trident", *package, *([node.module] if node.module else [])])
        else:
            base = node.module or ""
        names = []
        for a in node.names:
            full = f"{base}.{a.name}"
            names.append(full if full.removeprefix("trident.") in MODULES else base)
    return [
        n.removeprefix("trident").removeprefix(".") for n in names if n.split(".")[0] == "trident"
    ]


def imports(module: str) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for target in targets(node, module):
                found.append(Import(module, target, node.lineno, inside))
        deeper = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, deeper)

    visit(tree(module), False)
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(), str(MODULES[module]))


IMPORTS = {m: imports(m) for m in MODULES}


def where(i: Import) -> str:
    return f"{MODULES[i.source].relative_to(ROOT)}:{i.line} imports trident.{i.target}"


def test_a_row_imports_only_rows_above_it():
    wrong = []
    for module, found in IMPORTS.items():
        own = layer(module)
        for i in found:
            if i.target == "" and own == BUILT_ON_TOP:
                continue  # built on the public names
            if layer(i.target) > own:
                wrong.append(f"{where(i)} (row {own} from row {layer(i.target)})")
    assert not wrong, "\n".join(wrong)


FACTORIES = {  # the base class makes the device that is there
    ("runtime.device", "runtime.host"), ("runtime.device", "runtime.cuda_device")
}  # fmt: skip


def test_cycles_are_broken_in_functions_of_the_tape_row_alone():
    graph = {
        m: {
            i.target
            for i in found
            if (m, i.target) not in FACTORIES
            and MODULES[i.target].name != "__init__.py"  # a package lists its modules; no cycle
        }
        for m, found in IMPORTS.items()
        if layer(m) not in (TAPE, BUILT_ON_TOP, TOP)
    }
    done: set[str] = set()
    path: list[str] = []

    def walk(module: str) -> None:
        if module in done or module not in graph:
            return
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        path.append(module)
        for target in sorted(graph[module]):
            walk(target)
        path.pop()
        done.add(module)

    for module in graph:
        walk(module)


def test_every_module_has_a_row_and_a_docstring():
    for module in MODULES:
        layer(module)
        body = tree(module).body
        assert ast.get_docstring(tree(module)) or not body, f"{MODULES[module]} has no docstring"


def test_only_config_reads_the_environment():
    for module in MODULES:
        if module == "config":
            continue
        for node in ast.walk(tree(module)):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in ("environ", "getenv", "putenv", "environb"), (
                f"{MODULES[module]}:{node.lineno} reads the environment; add a switch to config.py"
            )


@pytest.mark.parametrize("name", ["torch", "torchvision", "jax", "tensorflow"])
def test_nothing_imports_another_framework(name):
    for module in MODULES:
        for node in ast.walk(tree(module)):
            found = []
            if isinstance(node, ast.Import):
                found = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module or ""]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                found = [a.value for a in node.args if isinstance(a, ast.Constant)]
            for f in found:
                assert f.split(".")[0] != name, f"{MODULES[module]}:{node.lineno} imports {name}"


def test_optional_packages_are_imported_inside_functions():
    optional = {"triton", "scipy", "PIL", "matplotlib", "hypothesis", "tqdm", "safetensors"}
    for module in MODULES:
        for node in tree(module).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
                names = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                for n in names:
                    assert n.split(".")[0] not in optional, f"{MODULES[module]}:{node.lineno}: {n}"


def test_import_trident_loads_little():
    """Neither Triton nor scipy nor torch, and none of the modules that load when first used."""
    code = (
        "import sys, trident\n"
        "bad = {'triton', 'scipy', 'torch', 'hypothesis', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "bad |= {m for m in sys.modules if m.startswith(('trident.nn', 'trident.vision'))}\n"
        "x = trident.ones(2, requires_grad=True); (x * x).sum().backward()\n"
        "bad |= {'triton', 'scipy', 'torch'} & set(sys.modules)\n"
        "assert not bad, sorted(bad)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"import trident also loads: {done.stderr}"


def test_the_cpu_works_where_triton_is_not_installed():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util, trident\n"
        "from trident.nn import Linear, ReLU, Sequential\n"
        "net = Sequential(Linear(3, 4), ReLU(), Linear(4, 1))\n"
        "net(trident.ones(2, 3)).sum().backward()\n"
        "assert net[0].weight.grad.shape == (4, 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
