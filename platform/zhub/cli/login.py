"""``zhub login`` and ``zhub logout``."""

import os
from typing import Annotated

import typer

from zhub.cli.connection import DataDirOption
from zhub.cli.output import moment, note
from zhub.client import Client
from zhub.client.credentials import (
    Credentials,
    api_address,
    forget_login,
    login_dir,
    read_credentials,
    write_credentials,
)
from zhub.client.device_login import Device, id_token_by_device
from zhub.errors import ApiError


def login(
    url: Annotated[
        str | None,
        typer.Option(envvar="ZHUB_API_URL", help="Where the zhub is.", show_default="the local zhub"),
    ] = None,
    organization: Annotated[
        str | None, typer.Option(help="Which organisation to log in to.", show_default="the only one")
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Which project to work in.", show_default="your first one")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Log in by your organisation's OpenID provider, in a browser on any device. The key lasts for some hours."""
    address = url.rstrip("/").removesuffix("/v1") if url else api_address(data_dir, os.environ)
    with Client(address, None) as client:
        provider = client.login_provider()
        id_token = id_token_by_device(provider.issuer, provider.client_id, _show)
        done = client.log_in(id_token, organization=organization, project=project)
    directory = login_dir(os.environ)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    assert done.api_key.value is not None and done.api_key.expires_at is not None
    write_credentials(directory, Credentials(address, done.api_key.value))
    note(
        f"You are {done.user.email} in {done.organization} until {moment(done.api_key.expires_at)}. "
        "`zhub logout` ends that."
    )


def logout() -> None:
    """End the login: its key is refused from now on, and forgotten here."""
    directory = login_dir(os.environ)
    credentials = read_credentials(directory)
    if credentials is None:
        return note("You are not logged in.")
    with Client(credentials.base_url, credentials.api_key) as client:
        try:
            client.log_out()
        except ApiError as exc:
            if exc.status != 401:  # a key that is refused already has nothing to end
                raise
    forget_login(directory)
    note("You are logged out.")


def _show(device: Device) -> None:
    note(f"Open {device.address} in a browser, and confirm the code {device.code}. Waiting for you …")
