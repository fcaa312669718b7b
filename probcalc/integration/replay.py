"""Derivatives of integrals: the mesh is found without gradients and then held still.

Derivatives of the integrand are summed over the mesh chunk by chunk, evaluating it anew, so that
memory does not grow with the number of panels. Limits follow Leibniz's rule; for what the
integrand closes over, chunks are checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Inexact, Int
from torch import Tensor
from torch.func import vjp
from torch.utils.checkpoint import checkpoint

from probcalc.integration.problem import Problem


@runtime_checkable
class Mesh(Protocol):
    """Where integrals were evaluated, and what came of it."""

    @property
    def found(self) -> Inexact[Tensor, "k o"]:
        """The rule's values on its cells."""
        ...

    def assembled(self, found: Inexact[Tensor, "k o"]) -> Inexact[Tensor, "b o"]:
        """Integrals from values on the cells, differentiably."""
        ...

    def chunks(self) -> tuple[Int[Tensor, " k"], ...]:
        """Cells in groups that are evaluated together; the rest stays zero, whatever changes."""
        ...

    def values(self, problem: Problem, index: Int[Tensor, " k"]) -> Inexact[Tensor, "k o"]:
        """The rule on some of the cells, the integrand evaluated anew."""
        ...

    def beyond(self, problem: Problem) -> Inexact[Tensor, "b o"] | None:
        """Zero, with the derivatives of the integrals in the limits; None where there are none."""
        ...


def differentiable(
    problem: Problem, find: Callable[[tuple[Any, ...]], Mesh]
) -> tuple[Inexact[Tensor, "b o"], Mesh]:
    """Integrals of a problem, differentiable where anything in it is, and their mesh.

    Args:
        problem: With limits and arguments that may require gradients.
        find: Finds the mesh for given arguments, without gradients.

    Raises:
        TypeError: If the integrand closes over what `torch.func` differentiates.
    """
    if not torch.is_grad_enabled():
        mesh = find(problem.args)
        return mesh.assembled(mesh.found), mesh
    if _closes_over_parameters(problem):
        mesh = find(problem.args)
        cells = torch.zeros_like(mesh.found)
        for index in mesh.chunks():
            cells = cells.index_copy(0, index, rerun(mesh.values, problem, index))
        value = mesh.assembled(cells)
    elif any(t.requires_grad for t in problem.tensors):
        search = _Search(problem, find)
        values = _CellValues.apply(search, *problem.tensors)
        mesh = search.found
        value = mesh.assembled(values)
    else:
        mesh = find(problem.args)
        value = mesh.assembled(mesh.found)
    beyond = mesh.beyond(problem)
    return value if beyond is None else value + beyond, mesh


def _closes_over_parameters(problem: Problem) -> bool:
    plain = problem.with_tensors(tuple(t.detach() for t in problem.tensors))
    integrand = plain.integrand()
    elem = torch.arange(problem.size, device=problem.lower.device)
    value = integrand(integrand.filler[None], elem)
    if not value.requires_grad:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise TypeError(
            "the integrand closes over a tensor that torch.func differentiates: pass it in `args`."
        )
    return True


def rerun(fn: Callable[..., Any], *args: Any) -> Any:
    """The function's value; what it saves for its gradient is computed anew where it can be."""
    if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
        return fn(*args)
    return checkpoint(fn, *args, use_reentrant=False)


def piecewise(so_far: Any, fn: Callable[..., Any], *args: Any) -> Any:
    """The next piece of a series, as `rerun` where those so far carry derivatives.

    Args:
        so_far: Their sum, or anything in place of it: whether derivatives are known to be asked
            for. Where they are not, and the function closes over what they are taken in, the
            first piece keeps what it needs for its gradient.
        fn: Makes the piece.
        args: Of the function.
    """
    moving = so_far.requires_grad if torch.is_tensor(so_far) else bool(so_far)
    return rerun(fn, *args) if moving else fn(*args)


class _Search:
    """Carries the mesh out of a function that may only return tensors."""

    found: Mesh

    def __init__(self, problem: Problem, find: Callable[[tuple[Any, ...]], Mesh]) -> None:
        self.problem, self.find = problem, find


class _CellValues(torch.autograd.Function):
    """The rule's values on a mesh that is found on the way, as a function of the arguments."""

    generate_vmap_rule = True

    @staticmethod
    def forward(search: _Search, *tensors: Tensor) -> Tensor:
        search.found = search.find(search.problem.with_tensors(tensors).args)
        return search.found.found.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.search, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        mesh, problem, tensors = ctx.search.found, ctx.search.problem, ctx.saved_tensors
        floating = [i for i, t in enumerate(tensors) if t.is_floating_point() or t.is_complex()]
        total: list[Tensor | None] = [None] * len(tensors)
        for index in mesh.chunks():

            def values(*some: Tensor, index: Tensor = index) -> Tensor:
                every = list(tensors)
                for i, t in zip(floating, some, strict=True):
                    every[i] = t
                return mesh.values(problem.with_tensors(tuple(every)), index)

            pull = vjp(values, *(tensors[i] for i in floating))[1]
            for i, part in zip(floating, pull(slope[index]), strict=True):
                total[i] = part if total[i] is None else total[i] + part
        return None, *total
