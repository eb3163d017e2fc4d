"""LoRAs of experts on this machine's disk: exported by zhub, fetched once for each digest, and checked."""

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from zhub_vllm.settings import Settings

ENDED = ("succeeded", "failed", "cancelled")
POLL_S = 0.5
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 30.0
CONFIG_FILE = "adapter_config.json"


class NotResolvedError(Exception):
    """Why there is no LoRA of that name; for the log."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that is whole on disk. ``name`` and ``number`` are of these weights, and never of others."""

    name: str
    number: int
    directory: Path


class Loras:
    """Those that were asked for. Threads may share it."""

    def __init__(
        self,
        settings: Settings,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=settings.api_url,
            headers={"authorization": f"Bearer {settings.api_key}"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
        )
        self._lock = threading.Lock()  # one export at a time: two would fight for the same room
        self._handed_out: set[Path] = set()

    def get(self, base_model_name: str, model: str) -> Lora:
        """The LoRA of the version that ``model`` names now, for a server of this base.

        Raises:
            NotResolvedError: there is none, or none that fits.
        """
        with self._lock:
            try:
                export = self._export(model)
                directory = self._settings.cache_dir / f"{export['digest']}-r{self._settings.rank}"
                if not directory.is_dir():
                    self._fetch(export, directory)
                self._check_base(export, directory, base_model_name)
            except httpx.HTTPError as exc:
                raise NotResolvedError(f"zhub at {self._settings.api_url} does not answer: {exc}") from exc
            except OSError as exc:
                raise NotResolvedError(f"{self._settings.cache_dir}: {exc.strerror or exc}") from exc
            os.utime(directory)  # when it was used last
            self._handed_out.add(directory)
            digest: str = export["digest"]
            name = f"{export['model']}#{digest[:16]}-r{self._settings.rank}"
            return Lora(name, int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) + 1, directory)

    def _export(self, model: str) -> dict[str, Any]:
        """A finished export of the version."""
        body = {"model": model, "format": "lora", "rank": self._settings.rank}
        export = self._answer(self._http.post("/v1/expert_exports", json=body))
        deadline = time.monotonic() + self._settings.timeout_s
        while export["status"] not in ENDED:
            if time.monotonic() > deadline:
                raise NotResolvedError(f"its export {export['id']} had not ended within {self._settings.timeout_s:g} s")
            self._sleep(POLL_S)
            export = self._answer(self._http.get(f"/v1/expert_exports/{export['id']}"))
        if export["status"] != "succeeded":
            raise NotResolvedError(f"its export {export['status']}: {(export.get('error') or {}).get('message')}")
        if export["facts"].get("dora"):
            raise NotResolvedError("it is a DoRA, which vLLM does not serve")
        return export

    def _fetch(self, export: dict[str, Any], directory: Path) -> None:
        """Download the export whole, every file checked, or leave nothing."""
        self._settings.cache_dir.mkdir(parents=True, exist_ok=True)
        self._make_room(sum(file["size_bytes"] for file in export["files"]))
        unfinished = self._settings.cache_dir / f".{secrets.token_hex(8)}"
        try:
            for file in export["files"]:
                path = unfinished / file["name"]
                if not path.resolve().is_relative_to(unfinished.resolve()):
                    raise NotResolvedError(f"its export has a file '{file['name']}'")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._download(export["id"], file, path)
            unfinished.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _download(self, export_id: str, file: dict[str, Any], path: Path) -> None:
        digest, left = hashlib.sha256(), file["size_bytes"]
        with self._http.stream("GET", f"/v1/expert_exports/{export_id}/files/{quote(file['name'])}") as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                self._answer(response)
            with path.open("xb") as target:
                for piece in response.iter_bytes():
                    target.write(piece)
                    digest.update(piece)
                    left -= len(piece)
                    if left < 0:
                        break
        if digest.hexdigest() != file["sha256"]:
            raise NotResolvedError(f"'{file['name']}' came with sha256 {digest.hexdigest()}, expected {file['sha256']}")

    def _make_room(self, needed: int) -> None:
        """Remove what was not handed out here, the longest unused first, until there is room for so many bytes."""
        kept = [path for path in self._settings.cache_dir.iterdir() if path.is_dir() and not path.name.startswith(".")]
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in kept}
        free = self._settings.cache_bytes - sum(sizes.values())
        for path in sorted(set(kept) - self._handed_out, key=lambda path: path.stat().st_mtime):
            if free >= needed:
                return
            shutil.rmtree(path)
            free += sizes[path]
        if free < needed:
            raise NotResolvedError(
                f"it takes {needed:,} bytes, and those in use fill the cache of {self._settings.cache_bytes:,} "
                "(ZHUB_LORA_CACHE_BYTES)"
            )

    def _check_base(self, export: dict[str, Any], directory: Path, base_model_name: str) -> None:
        own = self._settings.base
        if own is not None:
            if export["base_model"] != own:
                raise NotResolvedError(f"it belongs to the base '{export['base_model']}', and this server has '{own}'")
            return
        claimed = json.loads((directory / CONFIG_FILE).read_text())["base_model_name_or_path"]
        if claimed != base_model_name:
            raise NotResolvedError(
                f"it belongs to '{claimed}', and this server has '{base_model_name}'. If they are the same, set "
                f"ZHUB_LORA_BASE={export['base_model']}"
            )

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = {}
        if response.is_error or not isinstance(body, dict):
            message = body.get("error", {}).get("message") if isinstance(body, dict) else None
            raise NotResolvedError(message or f"zhub answered with the status {response.status_code}")
        return body
