"""Base models and their bases on this machine's disk and in this process's memory, fetched once and checked."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from zhub.errors import BasisMismatchError, UnavailableError, UnsupportedModelError
from zhub.registry.model_directory import FILE_SUFFIXES
from zhub.specs import BaseModelSource, BasisReference
from zhub.storage.object_store import ObjectStore, fetch
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, load_base_model, weights_fingerprint
from zhub_workers.model.basis import BASIS_FILE, load_basis
from zhub_workers.model.reading import tried

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Loaded:
    """A loaded base model: on which basis, and its views by compute stream.

    Nobody computes with ``model`` itself: a view of a model that is in the middle of a forward would have the hooks
    and weights of that moment for ever.
    """

    basis: BasisReference | None
    model: AdaptedModel
    views: list[AdaptedModel]


class ModelCache:
    """The adapted models that were used last, on one device, at most ``capacity`` of them where there is one.

    Threads may share it: one that asks for what another loads waits. Attempts that run together are on one base (see
    ``zhub.training.packing``), so none drops a model that another uses.
    """

    def __init__(self, device: torch.device, *, capacity: int | None = None) -> None:
        self._device = device
        self._capacity = capacity
        self._lock = threading.Lock()
        self._models: OrderedDict[str, _Loaded] = OrderedDict()  # by the digest of a base's files

    def get(
        self,
        source: BaseModelSource,
        basis: BasisReference | None,
        store: ObjectStore,
        cache_dir: Path,
        *,
        stream: int = 0,
    ) -> AdaptedModel:
        """The base model on its basis, loaded if it is not here. Each compute ``stream`` has a view of its own.

        ``basis`` None: the base alone, while it is not decomposed.

        Raises:
            BasisMismatchError: the files no longer give the weights that were decomposed.
        """
        with self._lock:
            loaded = self._loaded(source, basis, store, cache_dir)
            while len(loaded.views) <= stream:
                loaded.views.append(loaded.model.weight_sharing_view())
            return loaded.views[stream]

    def own_view(
        self, source: BaseModelSource, basis: BasisReference | None, store: ObjectStore, cache_dir: Path
    ) -> AdaptedModel:
        """A view on the same weights as ``get`` gives, which nobody else has. Raises as ``get``."""
        with self._lock:
            return self._loaded(source, basis, store, cache_dir).model.weight_sharing_view()

    def drop(self, digest: str) -> None:
        """Forget a base by the digest of its files; its memory is free once nobody else holds it."""
        with self._lock:
            self._models.pop(digest, None)

    def _loaded(
        self, source: BaseModelSource, basis: BasisReference | None, store: ObjectStore, cache_dir: Path
    ) -> _Loaded:
        loaded = self._models.get(source.digest)
        if loaded is None or basis not in (None, loaded.basis):
            # Loaded before it was decomposed: the weights stay, and its basis comes to them.
            base = loaded.model.base if loaded else self._load(source, store, cache_dir)
            loaded = _Loaded(basis, _adapted(base, source, basis, store, cache_dir), [])
            self._models[source.digest] = loaded
        self._models.move_to_end(source.digest)
        return loaded

    def _load(self, source: BaseModelSource, store: ObjectStore, cache_dir: Path) -> BaseModel:
        while self._capacity is not None and len(self._models) >= self._capacity:
            self._models.popitem(last=False)
        base = load_base_model(base_directory(source, store, cache_dir), name=source.name, device=self._device)
        # Tried anew: what holds on the device that decomposed it need not hold on this one, and a base may answer
        # before it is decomposed.
        return tried(base)


def _adapted(
    base: BaseModel, source: BaseModelSource, basis: BasisReference | None, store: ObjectStore, cache_dir: Path
) -> AdaptedModel:
    if basis is None:
        return AdaptedModel(base, None)
    fingerprint = weights_fingerprint(base.model)
    if fingerprint != basis.weights_fingerprint:
        raise BasisMismatchError(
            f"The weights of base model '{source.name}' are not those that were decomposed. "
            "Add it again under a new name.",
            expected=basis.weights_fingerprint,
            actual=fingerprint,
        )
    directory = fetch_basis(basis, store, cache_dir)
    return AdaptedModel(base, load_basis(directory, basis.basis_fingerprint))


def base_directory(source: BaseModelSource, store: ObjectStore, cache_dir: Path, *, with_weights: bool = True) -> Path:
    """The base model's files in one directory of this machine, each checked against its digest.

    Without its weights there is enough for a tokenizer.

    Raises:
        UnsupportedModelError: the hub has no such model at this commit.
        UnavailableError: the hub does not answer.
    """
    if source.hub_id is not None:
        return _hub_directory(source.hub_id, source.hub_revision or "", cache_dir, with_weights=with_weights)
    directory = cache_dir / "base_models" / source.digest
    for file in source.files:
        if with_weights or not file.name.endswith(WEIGHTS_SUFFIX):
            fetch(store, file.key, directory / file.name, sha256=file.sha256)
    return directory


def fetch_basis(basis: BasisReference, store: ObjectStore, cache_dir: Path) -> Path:
    """The basis's files in one directory of this machine, each checked against its digest."""
    directory = cache_dir / basis.key_prefix
    index = fetch(store, f"{basis.key_prefix}/{BASIS_FILE}", directory / BASIS_FILE, sha256=basis.basis_fingerprint)
    for matrix in json.loads(index.read_bytes())["matrices"]:
        name = matrix["file"]
        fetch(store, f"{basis.key_prefix}/{name}", directory / name, sha256=matrix["sha256"])
    return directory


def _hub_directory(hub_id: str, revision: str, cache_dir: Path, *, with_weights: bool) -> Path:
    suffixes = [suffix for suffix in FILE_SUFFIXES if with_weights or suffix != WEIGHTS_SUFFIX]
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                cache_dir=cache_dir / "hub",
                allow_patterns=[f"*{suffix}" for suffix in suffixes],
            )
        )
    except RepositoryNotFoundError as exc:
        raise UnsupportedModelError(f"The hub has no model '{hub_id}', or it is not public: {exc}") from exc
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise UnavailableError(f"The hub does not give '{hub_id}@{revision}': {exc}") from exc
