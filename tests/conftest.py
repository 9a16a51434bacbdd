"""What every test has in common: one thread, and the same examples for everybody."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only lose by more

import jaxtyping
import pytest
from hypothesis import settings

# The same examples on every machine, so that a test has one verdict; no clock, for machines differ in speed.
settings.register_profile("minimax", derandomize=True, deadline=None, database=None, max_examples=10)
settings.load_profile("minimax")


@pytest.fixture
def unchecked():
    """Leave out the shape checks of `make test` where a signature is broken on purpose: the package must notice."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
