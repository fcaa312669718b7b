"""The house's rules, read off the source: floors, imports, banned calls, sizes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "probcalc"

_GROUND = (
    "result",
    "status",
    "_random",
    "_tree",
    "_check",
    "_table",
    "_roots",
    "linalg",
)
# folder (or module of the ground and top floors) -> floor
FLOORS = {
    **dict.fromkeys(_GROUND, 0),
    "differentiation": 1,
    "distributions": 1,
    "optimization": 2,
    "integration": 3,
    "training": 3,
    "divergence": 4,
    "inference": 5,
    "models": 6,
    "policy": 7,
    "reporting": 7,
    "cli": 8,
    "experiment": 8,
    "reference": 8,
    "__main__": 8,
}
OPTIONAL = {
    "sklearn",
    "statsmodels",
    "arviz",
    "arviz_base",
    "arviz_stats",
    "gymnasium",
    "xgboost",
    "tensorboard",
}
# dotted name, or a prefix of one ending in a dot -> modules that may call it
BANNED: dict[str, tuple[str, ...]] = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "pickle.": (),
    "cloudpickle.": (),
    "dill.": (),
    "joblib.load": (),
    "marshal.": (),
    "shelve.": (),
    "yaml.load": (),
    "yaml.unsafe_load": (),
    "torch.load": (),
    "torch.save": (),
    "torch.hub.": (),
    "os.system": (),
    "os.popen": (),
    "importlib.import_module": ("probcalc", "probcalc.models", "probcalc.policy"),
    "torch.manual_seed": ("probcalc._random",),
    "torch.seed": (),
    "torch.random.manual_seed": (),
    "torch.random.seed": (),
    "torch.set_rng_state": ("probcalc._random",),
    "torch.cuda.manual_seed": (),
    "torch.cuda.manual_seed_all": (),
    "numpy.random.": ("probcalc._random",),
    "random.": ("probcalc._random",),
    "pyro.set_rng_seed": (),
    "pyro.param": (),
    "pyro.clear_param_store": (),
    "pyro.enable_validation": (),
    "torch.set_default_dtype": ("probcalc.inference.scope",),
    "torch.set_default_device": (),
    "torch.set_default_tensor_type": (),
    "torch.set_num_threads": (),
    "torch.set_grad_enabled": (),
    "torch.set_printoptions": (),
    "torch.use_deterministic_algorithms": (),
    "torch.distributions.Distribution.set_default_validate_args": (
        "probcalc.differentiation.batched",
    ),
    "warnings.filterwarnings": (),
    "warnings.simplefilter": ("probcalc.cli",),
    "logging.basicConfig": (),
    "print": ("probcalc.cli",),
    "breakpoint": (),
}
ALLOWED = {"numpy.random.default_rng", "numpy.random.Generator"}
MAX_FILE, MAX_BODY = 400, 60


@dataclass(frozen=True)
class Source:
    """One parsed file of the package."""

    module: str  # such as probcalc.inference.fit; a package's __init__ has the package's name
    is_package: bool
    text: str
    tree: ast.Module

    @property
    def home(self) -> str:
        """Folder or module under the package's root: what has a floor."""
        return (self.module.split(".") + [""])[1]


def sources(package: Path) -> list[Source]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        module = ".".join(parts[:-1] if is_package else parts)
        found.append(Source(module, is_package, text, ast.parse(text)))
    return found


def imports(source: Source, tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    # line, module and name ('' for a whole module) of every import below a node
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = source.module.split(".")
            base = base[: len(base) - node.level + source.is_package] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def upward_imports(source: Source) -> Iterator[str]:
    # a module imports from lower floors or from its own folder only
    root = source.module.split(".")[0]
    if source.module != root and source.home not in FLOORS:
        yield f"{source.module}: {source.home!r} has no floor"
        return
    for line, module, name in imports(source, source.tree):
        parts = module.split(".")
        if parts[0] != root or (module == root and name == "__version__"):
            continue
        if source.module == root:
            yield f"{source.module}:{line}: the package itself only names things"
            continue
        home = parts[1] if len(parts) > 1 else name
        own, theirs = FLOORS[source.home], FLOORS.get(home)
        alone = {0, 8}  # floors of single modules, which are one folder
        neighbours = home == source.home or (own == theirs and own in alone)
        if theirs is None:
            yield f"{source.module}:{line}: {module}.{name} goes through a public name or no floor"
        elif not (theirs < own or neighbours):
            yield f"{source.module}:{line}: floor {own} imports {home} of floor {theirs}"


def inner_imports(source: Source) -> Iterator[str]:
    # no import hides inside a function, except an optional dependency's
    for function in ast.walk(source.tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for line, module, _ in imports(source, function):
                if module.split(".")[0] not in OPTIONAL:
                    yield f"{source.module}:{line}: {module} is imported inside a function"


def outer_optional_imports(source: Source) -> Iterator[str]:
    # an optional dependency is imported where it is used, never when the module is
    inner = {line for f in _functions(source.tree) for line, _, _ in imports(source, f)}
    for line, module, _ in imports(source, source.tree):
        if module.split(".")[0] in OPTIONAL and line not in inner:
            yield f"{source.module}:{line}: {module} is optional and imported at the top"


def banned_calls(source: Source) -> Iterator[str]:
    # what unpickles, evaluates text, shells out, or changes global state; also as an alias
    known = dict(_aliases(source))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "shell" or _is_true(keyword, "allow_pickle"):
                    yield f"{source.module}:{node.lineno}: {keyword.arg}= in a call"
            if _is_false(node.keywords, "weights_only"):
                yield f"{source.module}:{node.lineno}: weights_only=False"
        name = _dotted(node, known) if isinstance(node, (ast.Attribute, ast.Name)) else ""
        if name and isinstance(getattr(node, "ctx", None), ast.Load):
            yield from _verdict(source, node.lineno, name)
    for line, module, name in imports(source, source.tree):
        yield from _verdict(source, line, f"{module}.{name}" if name else f"{module}.")


def _verdict(source: Source, line: int, name: str) -> Iterator[str]:
    for banned, homes in BANNED.items():
        hit = name.startswith(banned) if banned.endswith(".") else name == banned
        if hit and name not in ALLOWED and source.module not in homes:
            yield f"{source.module}:{line}: {name} is banned"


def _aliases(source: Source) -> Iterator[tuple[str, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((a.asname, a.name) for a in node.names if a.asname)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((a.asname or a.name, f"{node.module}.{a.name}") for a in node.names)


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, known)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _is_true(keyword: ast.keyword, name: str) -> bool:
    value = keyword.value
    return keyword.arg == name and not (isinstance(value, ast.Constant) and value.value is False)


def _is_false(keywords: list[ast.keyword], name: str) -> bool:
    values = [k.value for k in keywords if k.arg == name]
    return any(not (isinstance(v, ast.Constant) and v.value is True) for v in values)


def _functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def long_ones(source: Source) -> Iterator[str]:
    # files and function bodies (without docstring) have a hard stop
    lines = source.text.count("\n")
    if lines > MAX_FILE:
        yield f"{source.module}: {lines} lines, at most {MAX_FILE}"
    for function in _functions(source.tree):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if length > MAX_BODY:
            yield f"{source.module}.{function.name}: {length} lines, at most {MAX_BODY}"


def bare_modules(source: Source) -> Iterator[str]:
    # a module opens with what it is and postpones its annotations
    if not ast.get_docstring(source.tree):
        yield f"{source.module}: no docstring"
    names = {name for _, module, name in imports(source, source.tree) if module == "__future__"}
    if len(source.tree.body) > 1 and "annotations" not in names:
        yield f"{source.module}: no `from __future__ import annotations`"


RULES: dict[str, Callable[[Source], Iterator[str]]] = {
    "floors": upward_imports,
    "inner imports": inner_imports,
    "optional imports": outer_optional_imports,
    "banned calls": banned_calls,
    "sizes": long_ones,
    "modules": bare_modules,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rules(rule: str):
    files = sources(PACKAGE)
    assert len(files) > 20
    assert [fault for source in files for fault in RULES[rule](source)] == []


HEAD = '"""Words."""\n\nfrom __future__ import annotations\n\n'
INNER = "def f():\n    "
# rule, file, source below the docstring, text of the fault
FAULTS = [
    ("floors", "result.py", "from probcalc.inference.fit import fit", "floor 0 imports inference"),
    ("floors", "optimization/a.py", "import probcalc.integration.tails", "floor 2 imports integ"),
    ("floors", "optimization/a.py", "from ..integration import tails", "floor 2 imports integ"),
    ("floors", "integration/a.py", "from probcalc.training import loop", "imports training of"),
    ("floors", "policy/a.py", "from probcalc import reporting", "floor 7 imports reporting"),
    ("floors", "result.py", "from probcalc import fit", "goes through a public name"),
    ("floors", "result.py", "import probcalc", "goes through a public name"),
    ("floors", "helpers/a.py", "x = 1", "'helpers' has no floor"),
    ("floors", "helpers.py", "x = 1", "'helpers' has no floor"),
    ("floors", "__init__.py", "from probcalc.result import Estimate", "only names things"),
    ("floors", "linalg.py", INNER + "from probcalc.cli import main", "floor 0 imports cli"),
    (
        "floors",
        "result.py",
        "if TYPE_CHECKING:\n    from probcalc.inference.target import Target",
        "floor 0 imports inference",
    ),
    ("inner imports", "a.py", INNER + "import torch", "torch is imported inside"),
    ("inner imports", "a.py", INNER + "from scipy import stats", "scipy is imported inside"),
    ("inner imports", "a.py", "class A:\n    def f(self):\n        import re", "re is imported"),
    ("optional imports", "a.py", "import sklearn.datasets", "is optional"),
    ("banned calls", "a.py", "import torch\ntorch.load('x')", "torch.load is banned"),
    ("banned calls", "a.py", "import torch as t\nt.load('x')", "torch.load is banned"),
    ("banned calls", "a.py", "from torch import load\nload('x')", "torch.load is banned"),
    ("banned calls", "a.py", "from torch import load as l\nl('x')", "torch.load is banned"),
    ("banned calls", "a.py", "import torch\nopen_ = torch.load", "torch.load is banned"),
    ("banned calls", "a.py", "import pickle", "pickle. is banned"),
    ("banned calls", "a.py", "from pickle import loads", "pickle.loads is banned"),
    ("banned calls", "a.py", "eval('1')", "eval is banned"),
    ("banned calls", "a.py", "exec('1')", "exec is banned"),
    ("banned calls", "a.py", "import yaml\nyaml.load('x')", "yaml.load is banned"),
    ("banned calls", "a.py", "import os\nos.system('x')", "os.system is banned"),
    ("banned calls", "a.py", "run('x', shell=True)", "shell= in a call"),
    ("banned calls", "a.py", "load('x', allow_pickle=True)", "allow_pickle= in a call"),
    ("banned calls", "a.py", "load('x', weights_only=False)", "weights_only=False"),
    ("banned calls", "a.py", "import torch\ntorch.manual_seed(0)", "torch.manual_seed is banned"),
    ("banned calls", "a.py", "import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
    ("banned calls", "a.py", "import random", "random. is banned"),
    (
        "banned calls",
        "a.py",
        "import torch\ntorch.set_default_dtype(torch.float64)",
        "torch.set_default_dtype is banned",
    ),
    ("banned calls", "a.py", "import warnings\nwarnings.simplefilter('ignore')", "simplefilter"),
    ("banned calls", "a.py", "print('x')", "print is banned"),
    ("sizes", "a.py", "x = 1\n" * 400, "lines, at most 400"),
    ("sizes", "a.py", "def f():\n" + "    x = 1\n" * 61, "a.f: 61 lines, at most 60"),
]
CLEAN = [
    ("floors", "result.py", "from probcalc.status import Status\nfrom ._tree import Layout"),
    ("floors", "inference/a.py", "from probcalc.integration import tails\nfrom . import b"),
    ("floors", "inference/a.py", "from probcalc import __version__"),
    ("floors", "cli.py", "from probcalc.experiment import load"),
    ("inner imports", "a.py", INNER + "import sklearn.datasets"),
    ("banned calls", "_random.py", "import torch\ntorch.manual_seed(0)"),
    ("banned calls", "a.py", "import torch\ntorch.Generator().manual_seed(0)\nmodel.eval()"),
    ("banned calls", "a.py", "import numpy as np\nnp.random.default_rng(0)"),
    ("sizes", "a.py", 'def f():\n    """' + "x\n" * 90 + '"""\n' + "    x = 1\n" * 60),
]


def planted(folder: Path, file: str, source: str) -> list[Source]:
    path = folder / "probcalc" / file
    path.parent.mkdir(parents=True)
    path.write_text(HEAD + source + "\n", encoding="utf-8")
    return sources(folder / "probcalc")


@pytest.mark.parametrize(("rule", "file", "source", "text"), FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, rule: str, file: str, source: str, text: str):
    (planted_source,) = planted(tmp_path, file, source)
    faults = list(RULES[rule](planted_source))
    assert any(text in fault for fault in faults), faults


@pytest.mark.parametrize(("rule", "file", "source"), CLEAN)
def test_what_is_allowed_is_not_found(tmp_path: Path, rule: str, file: str, source: str):
    (planted_source,) = planted(tmp_path, file, source)
    assert list(RULES[rule](planted_source)) == []


@pytest.mark.parametrize("text", ["x = 1\ny = 2\n", '"""Words."""\n\nx = 1\n'])
def test_a_bare_module_is_found(tmp_path: Path, text: str):
    (tmp_path / "probcalc").mkdir()
    (tmp_path / "probcalc" / "a.py").write_text(text, encoding="utf-8")
    (source,) = sources(tmp_path / "probcalc")
    assert list(bare_modules(source))
