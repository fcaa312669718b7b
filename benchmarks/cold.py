"""The first call in a fresh process: ``python -m benchmarks.cold PROBLEM DEVICE`` prints JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module

from benchmarks.harness import Clocked


def in_fresh_process(problem: str, device: str) -> Clocked:
    """Time `Target.from_pyro` and `pc.fit`, each called for the first time.

    Raises:
        subprocess.CalledProcessError: If the process fails; its message is on stderr.
    """
    command = [sys.executable, "-m", "benchmarks.cold", problem, device]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    record = json.loads(out)
    return Clocked(record["trace"] + record["fit"], record)


def _first_call(name: str, device: str) -> dict[str, float]:
    begun = time.perf_counter()
    target_class = import_module("probcalc.inference.target").Target
    fit = import_module("probcalc.inference.fit").fit
    imports = time.perf_counter() - begun
    problem = import_module("benchmarks.problems").PROBLEMS[name]()
    data = tuple(t.to(device) for t in problem.data)
    start = time.perf_counter()
    target = target_class.from_pyro(problem.model, *data)
    traced = time.perf_counter()
    fit(target)
    done = time.perf_counter()
    return {"imports": imports, "trace": traced - start, "fit": done - traced}


if __name__ == "__main__":
    print(json.dumps(_first_call(*sys.argv[1:])))
