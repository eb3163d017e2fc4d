"""Expert versions that a training may begin from, brought from the store."""

from pathlib import Path

from zhub.manifest import ROUTING_FILE, Z_FILE
from zhub.specs import StartingPoint
from zhub.storage.attested import fetch_attested
from zhub.storage.object_store import ObjectStore
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import read_routing, read_z
from zhub_workers.training.warm_start import Start


def fetch_start(start: StartingPoint, model: AdaptedModel, store: ObjectStore, cache_dir: Path) -> Start:
    directory = cache_dir / "experts"
    z = directory / f"{start.z_sha256}.safetensors"
    fetch_attested(store, f"{start.key_prefix}/{Z_FILE}", z, sha256=start.z_sha256, attested=start.attested)
    centroid = None
    if start.routing_sha256 is not None:
        routing = directory / f"{start.routing_sha256}.safetensors"
        key = f"{start.key_prefix}/{ROUTING_FILE}"
        fetch_attested(store, key, routing, sha256=start.routing_sha256, attested=start.attested)
        centroid = read_routing(routing, sha256=start.routing_sha256, basis_fingerprint=model.basis.fingerprint)
    return Start(start.name, start.digest, read_z(z, sha256=start.z_sha256, basis=model.basis), centroid)
