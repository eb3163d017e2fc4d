"""Two organisations that share the workers of a cluster."""

from collections.abc import Callable

import pytest

from zhub.tenancy.keys import Caller


@pytest.fixture
def acme(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller("acme")


@pytest.fixture
def globex(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller("globex")
