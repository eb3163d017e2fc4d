"""Who a caller is where two people are needed for something: one approves what another one asked for."""

from zhub.ids import public_id
from zhub.tenancy.keys import Caller


def person_of(caller: Caller) -> str:
    """The person behind a caller. Nobody knows yet whose a key is: two keys are taken to be two people's."""
    return public_id("API key", caller.key_id)
