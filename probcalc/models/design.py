"""Tables of numbers that models are fitted to: checked, and with a column for the intercept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_THIN = 1e-3  # least pivot of scaled information for which nothing more need be looked at
_LOST = 1e-8  # of the mean weight: rows that say nothing any more
_SAME = 1e-10  # of the largest singular value: directions that data do not tell apart


def checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Covariates ``(*batch, n, d)`` and responses ``(*batch, n)`` in float64.

    Raises:
        ValueError: If shapes do not match, there are no rows, or a number is not finite; it is
            named by row and column.
    """
    if x.ndim < 2 or y.shape != x.shape[:-1]:
        raise ValueError(
            f"`x` must be (*batch, n, d) and `y` (*batch, n), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    if x.shape[-2] == 0:
        raise ValueError("`x` has no rows: there is nothing to fit.")
    for name, t in (("x", x), ("y", y)):
        if bool(t.sum().isfinite()):  # one pass; what overflows is looked at in the other
            continue
        bad = ~t.isfinite()
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ValueError(f"`{name}` must be finite, but {name}{list(where)} is {t[where]}.")
    return x.double(), y.double()


def checked_rows(x: Tensor) -> Tensor:
    """Rows ``(n, d)`` in float64.

    Raises:
        ValueError: If it is no table, has no rows, or a number is not finite.
    """
    if x.ndim != 2:
        raise ValueError(f"`x` must be (n, d), got {tuple(x.shape)}.")
    return checked(x, torch.zeros_like(x[:, 0]) if x.shape[1] else x.sum(dim=1))[0]


def with_intercept(x: Tensor, intercept: bool) -> Tensor:
    """A column of ones in front, if there is to be one."""
    if not intercept:
        return x
    return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)


def refuse_collinear(design: Tensor, intercept: bool) -> None:
    """Refuse columns that are combinations of others, and name them.

    Raises:
        ValueError: If there are fewer rows than columns, or some are not independent.
    """
    n, p = design.shape[-2:]
    if n < p:
        raise ValueError(f"there are {p} coefficients and {n} rows; more rows are needed.")
    size = torch.linalg.vector_norm(design, dim=-2, keepdim=True).clamp(min=1e-300)
    _, s, vh = torch.linalg.svd(design / size, full_matrices=False)
    weak = s[..., -1] <= _SAME * s[..., 0]
    if not bool(weak.any()):
        return
    direction = vh[weak][0, -1] if design.ndim > 2 else vh[-1]
    names = ["intercept"] * intercept + [f"x[{i}]" for i in range(p - intercept)]
    share = direction.abs() > 1e-6
    columns = [name for name, used in zip(names, share.tolist(), strict=True) if used]
    raise ValueError(
        f"columns {', '.join(columns)} are not independent (one may be constant): their "
        "coefficients cannot be told apart. Leave one out."
    )


def starved(information: Tensor, gram: Callable[[Tensor], Tensor]) -> Tensor:
    """Whether all rows that tell of some direction have lost their weight: separation.

    Args:
        information: Xᵀ diag(w) X, or k blocks of such, ``(b, k p, k p)``.
        gram: From indices of the batch to XᵀX, ``(m, p, p)``.
    """
    size = information.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    scaled = information / size[..., :, None] / size[..., None, :]
    factor, info = torch.linalg.cholesky_ex(scaled)
    doubtful = (info != 0) | (factor.diagonal(dim1=-2, dim2=-1) < _THIN).any(dim=-1)
    if not bool(doubtful.any()):
        return doubtful
    rows = doubtful.nonzero()[:, 0]
    root, _ = torch.linalg.cholesky_ex(gram(rows))
    blocks = information.shape[-1] // root.shape[-1]
    inverse = torch.linalg.inv(root)
    some = information[rows].unflatten(-1, (blocks, -1)).unflatten(-3, (blocks, -1))
    turned = torch.einsum("mab,mkblc,mdc->mkald", inverse, some, inverse)
    weights = torch.linalg.eigvalsh(turned.flatten(-2).flatten(1, 2))
    lost = ~(weights[..., 0] > _LOST * weights.mean(dim=-1))
    return doubtful.index_copy(0, rows, lost)
