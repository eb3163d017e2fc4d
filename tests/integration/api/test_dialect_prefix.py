from collections.abc import Callable

import httpx


def test_a_client_that_appends_v1_to_an_address_that_ends_in_it_is_answered(
    api_url: str, make_key: Callable[..., str]
) -> None:
    headers = {"authorization": f"Bearer {make_key()}"}
    assert api_url.endswith("/v1")
    assert (
        httpx.get(f"{api_url}/v1/models", headers=headers).json()
        == httpx.get(f"{api_url}/models", headers=headers).json()
    )
