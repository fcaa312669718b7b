from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probcalc._tree import Layout

shapes = st.dictionaries(
    st.sampled_from("abcdef"),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    min_size=1,
    max_size=4,
)
batches = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@given(shapes, batches)
def test_flatten_and_unflatten_undo_each_other(shapes: dict, batch: tuple[int, ...]):
    layout = Layout(shapes)
    flat = torch.arange(math.prod(batch) * layout.size).reshape(*batch, layout.size)
    values = layout.unflatten(flat)
    assert {name: tuple(v.shape) for name, v in values.items()} == {
        name: (*batch, *shape) for name, shape in shapes.items()
    }
    assert torch.equal(layout.flatten(values), flat)


@given(shapes)
def test_every_entry_has_its_label(shapes: dict):
    """The label is the index expression that finds the entry."""
    layout = Layout(shapes)
    flat = torch.arange(layout.size)
    values = layout.unflatten(flat)
    assert len(set(layout.labels)) == layout.size
    for entry, label in enumerate(layout.labels):
        name, _, index = label.rstrip("]").partition("[")
        where = tuple(int(i) for i in index.split(",")) if index else ()
        assert int(values[name][where]) == entry


def test_labels_of_scalars_have_no_brackets():
    labels = Layout({"mu": (), "theta": (2,), "omega": (2, 2)}).labels
    assert labels == (
        "mu",
        "theta[0]",
        "theta[1]",
        "omega[0,0]",
        "omega[0,1]",
        "omega[1,0]",
        "omega[1,1]",
    )


def test_leading_axes_are_broadcast():
    flat = Layout({"a": (), "b": (2,)}).flatten({"a": torch.ones(3, 1), "b": torch.zeros(5, 2)})
    assert flat.shape == (3, 5, 3)
    assert (flat[..., 0] == 1).all()
    assert (flat[..., 1:] == 0).all()


def test_order_is_the_layout_s_not_the_values():
    flat = Layout({"a": (), "b": ()}).flatten({"b": torch.tensor(2.0), "a": torch.tensor(1.0)})
    assert flat.tolist() == [1.0, 2.0]


def test_gradients_and_dtypes_pass_through():
    x = torch.ones(3, dtype=torch.float32, requires_grad=True)
    layout = Layout({"a": (), "b": (2,)})
    values = layout.unflatten(x)
    assert values["b"].dtype == torch.float32
    (layout.flatten(values) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_value_of_the_wrong_size_is_refused():
    with pytest.raises(RuntimeError, match="shape"):
        Layout({"a": (2,)}).flatten({"a": torch.zeros(3)})


def test_a_missing_value_is_named():
    with pytest.raises(KeyError, match="b"):
        Layout({"a": (), "b": ()}).flatten({"a": torch.zeros(())})
