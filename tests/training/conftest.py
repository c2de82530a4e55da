import pytest

from omnialpha.data.synthetic import bank as banks


@pytest.fixture(scope="module")
def bank():
    return banks.procedural(20, 6, 32, seed=3)


@pytest.fixture(scope="module")
def held_out():
    return banks.procedural(8, 4, 32, seed=4)
