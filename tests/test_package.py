"""What `import probcalc` gives, costs and leaves alone."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import probcalc

PUBLIC = [name for name in probcalc.__all__ if not name.startswith("__")]
MODULES = [m.name for m in pkgutil.walk_packages(probcalc.__path__, "probcalc.")]


def in_fresh_python(code: str) -> object:
    """What the code's last `show(...)` gives in a new interpreter, warnings as errors."""
    show = "import json\ndef show(x): print(json.dumps(x))\n"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", show + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve_and_speak(name: str):
    """Every name loads from where it lives and has a docstring; methods have one too."""
    thing = getattr(probcalc, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            if not key.startswith("_") and (callable(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(thing, key)), f"{name}.{key} has no docstring"


def test_names_are_listed_and_no_others_exist():
    assert dir(probcalc) == probcalc.__all__ == sorted(set(probcalc.__all__))
    assert hasattr(probcalc, "Estimate")
    with pytest.raises(AttributeError, match="module 'probcalc' has no attribute 'Estimat'"):
        _ = probcalc.Estimat


def test_version_is_the_distribution_s():
    assert probcalc.__version__ == importlib.metadata.version("probcalc")


def test_import_is_light():
    """`import probcalc` loads nothing but the standard library; names load only what they need."""
    heavy = "torch", "numpy", "scipy", "pyro", "matplotlib", "tyro", "tqdm"
    code = "import sys\nimport probcalc\n{}\nshow([m for m in {!r} if m in sys.modules])"
    assert in_fresh_python(code.format("dir(probcalc)", heavy)) == []
    dear = "pyro", "matplotlib", "tyro", "safetensors", "torch._dynamo", "torch._inductor", "sympy"
    assert in_fresh_python(code.format("probcalc.Estimate, probcalc.minimize", dear)) == []
    dear = "matplotlib", "tyro", "torch._dynamo", "torch._inductor", "sklearn", "statsmodels"
    assert in_fresh_python(code.format("probcalc.fit, probcalc.laplace", dear)) == []


_UNTOUCHED = """
import importlib, logging, warnings
import numpy as np, pyro, torch
import torch.fx.experimental.proxy_tensor, matplotlib.figure, tyro, tqdm, scipy.special, jaxtyping
import safetensors.torch, scipy.stats, sympy
with warnings.catch_warnings():  # of what torch.distributed still scripts
    warnings.simplefilter("ignore", DeprecationWarning)
    import ignite.engine
def state():
    return [
        str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args, str(pyro.settings.get()),
        torch.get_rng_state().tolist(), [str(x) for x in np.random.get_state()],
        str(warnings.filters), logging.root.level, len(logging.root.handlers), str(np.geterr()),
    ]
before = state()
for name in {modules!r}:
    importlib.import_module(name)
show([i for i, (a, b) in enumerate(zip(before, state(), strict=True)) if a != b])
"""


def test_import_changes_no_global_state():
    modules = [name for name in MODULES if "_experiments" not in name]
    assert len(modules) > 20
    assert in_fresh_python(_UNTOUCHED.format(modules=modules)) == []
