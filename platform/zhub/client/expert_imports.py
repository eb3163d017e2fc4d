"""Experts that were made elsewhere, sent to become versions."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from zhub.client.transport import Http, path_part, wait
from zhub.client.wire.answer import ENDED
from zhub.client.wire.experts import ImportRecord
from zhub.errors import InvalidRequestError
from zhub.expert_file import PROBE_FILE, Contract, unpack
from zhub.manifest import MANIFEST_FILE, ROUTING_FILE, Z_FILE

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
PEFT_PICKLE = "adapter_model.bin"


class ExpertImports:
    """Imports of experts."""

    def __init__(self, http: Http, poll_s: float) -> None:
        self._http = http
        self._poll_s = poll_s

    def create(
        self, name: str, directory: Path, *, base: str, dataset: str | None = None, cluster: str | None = None
    ) -> ImportRecord:
        """Send a LoRA that PEFT saved, or a version that was pulled from a zhub, to become a version of ``name``.

        ``dataset``: the id of a file whose prompts are the expert's, so that `auto` can choose it. ``cluster``: which
        workers try it, where there are several kinds.

        Raises:
            InvalidRequestError: the directory holds neither.
        """
        fields = {"name": name, "base_model": base, "dataset": dataset, "cluster": cluster}
        given = {field: value for field, value in fields.items() if value is not None}
        with ExitStack() as opened:
            files = [("files", (path.name, opened.enter_context(path.open("rb")))) for path in expert_files(directory)]
            return ImportRecord.model_validate(self._http.post_form("/v1/expert_imports", given, files))

    def create_from_file(
        self, file: Path, *, name: str | None = None, base: str | None = None, cluster: str | None = None
    ) -> ImportRecord:
        """Send a version that was exported as one file, checked whole against its contract.

        ``name``: of the expert; None: as it was called. ``base``: None: the one with the basis that it belongs to.

        Raises:
            ArtifactError, DigestMismatchError: no such file, or one that was changed.
            InvalidRequestError: no base here has its basis.
        """
        with tempfile.TemporaryDirectory() as directory:
            contract = unpack(file, Path(directory))
            own = contract.name.partition("@")[0].rpartition(".")[2]
            return self.create(name or own, Path(directory), base=base or self._base_of(contract), cluster=cluster)

    def _base_of(self, contract: Contract) -> str:
        wanted = contract.base
        bases = {str(base["id"]): base["basis_fingerprint"] for base in self._http.pages("/v1/base_models", limit=100)}
        for name, fingerprint in bases.items():
            if fingerprint == wanted.basis_fingerprint:
                return name
        here = "; ".join(f"'{name}' has {fingerprint}" for name, fingerprint in bases.items()) or "none is here"
        raise InvalidRequestError(
            f"{contract.name} belongs to the basis {wanted.basis_fingerprint} of '{wanted.hub_id or wanted.name}', "
            f"which no base here has: {here}. Add that base first (`zhub base-models add`).",
            param="base",
        )

    def get(self, import_id: str) -> ImportRecord:
        return ImportRecord.model_validate(self._http.get(f"/v1/expert_imports/{path_part(import_id)}"))

    def reason(self, import_id: str) -> str:
        """What the import waits for."""
        return str(self._http.get(f"/v1/expert_imports/{path_part(import_id)}/queue")["reason"])

    def cancel(self, import_id: str) -> ImportRecord:
        return ImportRecord.model_validate(self._http.post(f"/v1/expert_imports/{path_part(import_id)}/cancel", {}))

    def wait_ended(self, import_id: str, *, timeout_s: float = 3600.0) -> ImportRecord:
        """Return the import once it has ended.

        Raises:
            UnavailableError: it had not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while (record := self.get(import_id)).status not in ENDED:
            wait(self._poll_s, deadline, f"{import_id} had not ended within {timeout_s:g} s")
        return record


def expert_files(directory: Path) -> list[Path]:
    """The files of a directory that make an expert. Raises InvalidRequestError if it is none."""
    has = {path.name: path for path in directory.iterdir() if path.is_file()} if directory.is_dir() else {}
    for needed, more in ((PEFT_FILES, ()), ((MANIFEST_FILE, Z_FILE), (ROUTING_FILE, PROBE_FILE))):
        if all(name in has for name in needed):
            return [has[name] for name in (*needed, *more) if name in has]
    if PEFT_PICKLE in has:
        raise InvalidRequestError(
            f"{directory}: '{PEFT_PICKLE}' is a pickle, which can run code when it is loaded. Save the adapter with "
            "`save_pretrained(..., safe_serialization=True)`."
        )
    raise InvalidRequestError(
        f"{directory}: expected the directory of a LoRA that PEFT saved ({' and '.join(PEFT_FILES)}), or of a version "
        f"that `zhub experts pull` has downloaded. Found: {', '.join(sorted(has)[:10]) or 'no files'}."
    )
