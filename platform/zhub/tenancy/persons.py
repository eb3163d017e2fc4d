"""Who a caller is where two people are needed for something: one approves what another one asked for."""

from zhub.ids import public_id
from zhub.tenancy.keys import Caller


def person_of(caller: Caller) -> str:
    """The person or service account behind a caller; two keys that are nobody's are taken to be two people's."""
    return public_id("API key", caller.key_id) if caller.user_id is None else public_id("user", caller.user_id)
