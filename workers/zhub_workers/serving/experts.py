"""The experts that a replica holds: fetched by digest, checked, and dropped again, the least recently used first."""

from collections import OrderedDict
from pathlib import Path

from zhub.answering import ExpertReference
from zhub.generation import GenerationRequest
from zhub.storage.attested import fetch_attested
from zhub.storage.cached_files import drop_unused
from zhub.storage.object_store import ObjectStore
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import read_routing
from zhub_workers.model.changes import Change, read_change, restricted
from zhub_workers.model.routing import Centroid

MAX_CHANGES_BYTES = 2 << 30  # some thousands of z, or a hundred LoRAs of a base of 135 M parameters
MAX_CENTROIDS = 512


class Experts:
    """What experts change and where their prompts lie, by the digests of their files."""

    def __init__(self, store: ObjectStore, cache_dir: Path) -> None:
        self._store = store
        self._directory = cache_dir / "experts"
        self._changes: OrderedDict[str, Change] = OrderedDict()
        self.size_bytes = 0  # of the changes: counted along, because a replica holds thousands
        self._centroids: OrderedDict[str, Centroid] = OrderedDict()

    def fetch(self, request: GenerationRequest) -> None:
        """Bring the files that a request needs to this machine's disk. From any thread.

        Raises:
            DigestMismatchError, ArtifactError: a file is not what its reference says, or was signed.
        """
        candidates = request.candidates or []
        asked = [request.classifier.expert] if request.classifier else []
        for expert in [*request.experts, *candidates, *asked]:
            if expert.z_sha256 not in self._changes:
                self._fetch(expert, expert.z_key, expert.z_sha256)
        for expert in [*candidates, *request.others]:
            if expert.routing_sha256 not in self._centroids:
                self._fetch(expert, expert.routing_key, expert.routing_sha256)

    def change(self, adapted: AdaptedModel, expert: ExpertReference) -> Change:
        """What the expert changes in this model, in the layers that the reference names.

        Raises:
            DigestMismatchError, ArtifactError, BasisMismatchError: its file is not what the reference says, or does not
                fit the model.
            InvalidRequestError: the model has no such layer.
        """
        change = self._whole(adapted, expert)
        return change if expert.layers is None else restricted(change, expert.layers, adapted)

    def _whole(self, adapted: AdaptedModel, expert: ExpertReference) -> Change:
        sha256 = expert.z_sha256
        if sha256 not in self._changes:
            path = self._fetch(expert, expert.z_key, sha256)
            change = self._changes[sha256] = read_change(path, sha256=sha256, adapted=adapted)
            self.size_bytes += change.size_bytes
            # Never the new one, however large it is.
            while len(self._changes) > 1 and self.size_bytes > MAX_CHANGES_BYTES:
                _, dropped = self._changes.popitem(last=False)
                self.size_bytes -= dropped.size_bytes
        self._changes.move_to_end(sha256)
        return self._changes[sha256]

    def centroid(self, adapted: AdaptedModel, expert: ExpertReference) -> Centroid:
        """Where the expert's training prompts lie. Raises as ``change``."""
        sha256 = expert.routing_sha256
        if sha256 not in self._centroids:
            path = self._fetch(expert, expert.routing_key, sha256)
            fingerprint = adapted.basis.fingerprint
            self._centroids[sha256] = read_routing(path, sha256=sha256, basis_fingerprint=fingerprint)
            if len(self._centroids) > MAX_CENTROIDS:
                self._centroids.popitem(last=False)
        self._centroids.move_to_end(sha256)
        return self._centroids[sha256]

    def _fetch(self, expert: ExpertReference, key: str, sha256: str) -> Path:
        path = self._directory / f"{sha256}.safetensors"
        if not path.exists():
            drop_unused(self._directory.parent)
        return fetch_attested(self._store, key, path, sha256=sha256, attested=expert.attested)
