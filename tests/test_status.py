from __future__ import annotations

import itertools

import pytest
import torch

from probcalc.status import EstimateWarning, Status


def test_every_flag_is_one_bit_of_its_own():
    assert Status.OK == 0
    assert [int(flag) for flag in Status] == [2**i for i in range(len(Status))]


@pytest.mark.parametrize("flag", Status)
def test_every_flag_has_words_and_advice(flag: Status):
    """The words are the name; the advice is whole sentences."""
    assert flag.words == flag.name.lower().replace("_", " ")
    assert flag.advice[0].isupper()
    assert flag.advice.endswith(".")


def test_advice_is_not_shared():
    assert len({flag.advice for flag in Status}) == len(Status)


def test_several_flags_read_as_a_list():
    both = Status.NOT_CONVERGED | Status.NON_FINITE
    assert both.words == "non finite, not converged"
    assert both.advice == f"{Status.NON_FINITE.advice} {Status.NOT_CONVERGED.advice}"


def test_good_news_has_words_too():
    assert Status.OK.words == "ok"
    assert Status.OK.advice == "nothing to report."


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_joined_is_the_or_of_all_elements(shape: tuple[int, ...]):
    for flags in itertools.product([0, 1, 6, 1024], repeat=len(torch.zeros(shape).flatten())):
        expected = 0
        for bits in flags:
            expected |= bits
        joined = Status.joined(torch.tensor(flags).reshape(shape))
        assert joined == expected
        assert isinstance(joined, Status)


def test_joined_takes_numbers_and_empty_batches():
    assert Status.joined(12) == Status.INFINITE_VARIANCE | Status.NON_FINITE
    assert Status.joined(torch.zeros(0, dtype=torch.long)) == Status.OK


def test_flags_go_into_tensors_and_back():
    """The members are integers, so that a tensor of bits can be built from them."""
    bits = torch.where(torch.tensor([True, False]), Status.ROUNDOFF, Status.OK)
    assert bits.tolist() == [32, 0]
    assert Status(int(bits[0])) is Status.ROUNDOFF


def test_the_warning_is_a_user_warning():
    assert issubclass(EstimateWarning, UserWarning)
