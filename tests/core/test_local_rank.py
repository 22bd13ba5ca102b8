"""The number of a process among those of its machine, from what its launcher tells it."""

import re

import pytest

from siglip_ref.backend import LOCAL_RANK, local_rank


@pytest.mark.parametrize("launcher", LOCAL_RANK)
def test_every_launcher_says_it_in_a_variable_of_its_own(launcher):
    assert local_rank({launcher: "12", "RANK": "3"}) == 12


def test_without_a_launcher_there_is_none():
    assert local_rank({"RANK": "3"}) is None


@pytest.mark.parametrize("launcher", LOCAL_RANK[:-1])
def test_a_launcher_goes_before_the_batch_system_that_started_it(launcher):
    assert local_rank({"SLURM_LOCALID": "0", launcher: "1"}) == 1


@pytest.mark.parametrize("value", ["", "-1", "two"])
def test_what_is_no_number_is_refused_by_name(value):
    wanted = f"SLURM_LOCALID must be a whole number from 0, got {value!r}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        local_rank({"SLURM_LOCALID": value})
