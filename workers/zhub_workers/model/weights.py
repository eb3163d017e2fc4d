"""Where the weights of a base are read: in the loaded model, or one tensor at a time from its safetensors files.

A decomposition needs every tensor once, and no model. The files have the names of the loaded model, or transformers
knows how to make its tensors of theirs; its own functions do that here too. What cannot be read as ``from_pretrained``
would give it is not read at all: see ``open_weight_files``.
"""

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from zhub.errors import UnsupportedModelError
from zhub_workers.model.base_model import (
    LOAD_ERRORS,
    BaseModel,
    load_base_model,
    tensor_bytes,
    tensor_header,
    weights_fingerprint,
)
from zhub_workers.model.weight_files import INDEX_FILE

SINGLE_FILE = "model.safetensors"
PIECE_BYTES = 4 << 20  # of a tensor at a time


class Weights(Protocol):
    """All tensors of one base."""

    def tensor(self, name: str) -> Tensor:
        """One tensor by its name in the model's ``state_dict``."""

    @property
    def fingerprint(self) -> str:
        """See ``weights_fingerprint``."""


@dataclass(frozen=True)
class LoadedWeights:
    """Those of a model in memory."""

    model: Any

    def tensor(self, name: str) -> Tensor:
        parameter: Tensor = self.model.get_parameter(name)
        return parameter

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)


def open_base(path: Path, *, name: str | None = None, device: torch.device | str = "cpu") -> tuple[BaseModel, Weights]:
    """The base in ``path`` with its weights: on the device ``meta`` where its files can be read by themselves.

    Raises:
        UnsupportedModelError: see ``load_base_model``.
    """
    base = load_base_model(path, name=name, device="meta")
    files = open_weight_files(path, base.model)
    if files is not None:
        return base, files
    base = load_base_model(path, name=name, device=device)
    return base, LoadedWeights(base.model)


@dataclass
class _Source:
    """The tensors of the files that make one of the model: themselves, or what ``converter`` makes of several.

    ``tensors``: name in the files, and which of the converter's patterns it is.
    """

    converter: WeightConverter | None = None
    tensors: list[tuple[str, str | None]] = field(default_factory=list)


class WeightFiles:
    """The tensors of ``model``, which is on the meta device, in its files."""

    def __init__(self, model: Any, sources: dict[str, _Source], files: dict[str, Path]) -> None:
        self._model = model
        self._sources = sources
        self._files = files
        self._described: dict[str, Tensor] = model.state_dict(keep_vars=True)

    def tensor(self, name: str) -> Tensor:
        """One tensor of the model, on the CPU, in the model's dtype.

        Raises:
            UnsupportedModelError: its file cannot be read.
        """
        source, described = self._source(name), self._described[name]
        if source.converter is None:
            ((stored, _),) = source.tensors
            return self._read(stored).to(described.dtype)
        converter = deepcopy(source.converter)
        for stored, pattern in source.tensors:
            converter.add_tensor(name, stored, pattern, partial(self._read, stored, described))
        try:
            made: Tensor = converter.convert(name, model=self._model, config=self._model.config)[name]
        except LOAD_ERRORS as exc:
            raise UnsupportedModelError(f"transformers cannot make '{name}' of what is in the files: {exc}") from exc
        return made

    def stored_form(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What the files hold where ``tensor`` stands in the model under this name: by name in the files.

        Raises:
            UnsupportedModelError: transformers makes it of several, and does not take it apart into the same again.
        """
        source = self._source(name)
        if source.converter is None:
            return {source.tensors[0][0]: tensor}
        try:
            parts: dict[str, Tensor] = revert_weight_conversion(self._model, {name: tensor})
        except LOAD_ERRORS as exc:
            raise UnsupportedModelError(
                f"transformers cannot take '{name}' apart into what is in the files: {exc}"
            ) from exc
        if parts.keys() != {stored for stored, _ in source.tensors}:
            raise UnsupportedModelError(
                f"transformers takes '{name}' apart into other tensors than the files have: '{min(parts)}'."
            )
        return parts

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            raise UnsupportedModelError(f"The files of the weights have no tensor for '{name}'.")
        return self._sources[name]

    def file_of(self, stored: str) -> Path:
        """The file that has this tensor."""
        return self._files[stored]

    @cached_property
    def fingerprint(self) -> str:
        """The ``weights_fingerprint`` of the loaded model."""
        digest = hashlib.sha256()
        seen: set[int] = set()
        for name, described in sorted(self._described.items()):
            if described.numel() and id(described) in seen:
                continue
            seen.add(id(described))
            digest.update(tensor_header(name, described))
            for piece in self._pieces(name):
                digest.update(tensor_bytes(piece))
        return digest.hexdigest()

    def _pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor cut along its first axis."""
        source, described = self._sources[name], self._described[name]
        if source.converter is not None or described.ndim < 2:
            yield self.tensor(name)
            return
        ((stored, _),) = source.tensors
        count = len(described)
        rows = max(1, PIECE_BYTES * count // max(1, described.nbytes))
        for start in range(0, count, rows):
            yield self._read(stored, rows=slice(start, min(start + rows, count))).to(described.dtype)

    def _read(self, stored: str, cast: Tensor | None = None, rows: slice | None = None) -> Tensor:
        """A tensor of the files, or some rows of it, in the dtype of ``cast``."""
        file = self._files[stored]
        try:
            # Opened anew each time, so that no page of what was read before stays mapped.
            with safe_open(file, framework="pt") as opened:
                read: Tensor = opened.get_tensor(stored) if rows is None else opened.get_slice(stored)[rows]
        except (OSError, SafetensorError) as exc:
            raise UnsupportedModelError(f"{file.name}: cannot read the tensor '{stored}': {exc}") from exc
        return read if cast is None else read.to(cast.dtype)


def find_weight_files(path: Path, model: Any) -> WeightFiles:
    """The files in ``path`` of a ``model`` on the meta device, for those of its tensors that they have.

    Raises:
        UnsupportedModelError: a file cannot be read, or one tensor of the files makes several of the model.
    """
    try:
        files = _files_by_tensor(path)
    except (OSError, SafetensorError, ValueError, KeyError) as exc:
        raise UnsupportedModelError(f"{path.name}: the files of its weights cannot be read: {exc}") from exc
    sources = _sources(model, files, model.state_dict(keep_vars=True))
    if sources is None:
        raise UnsupportedModelError(
            f"{path.name}: one tensor of its files makes several of the model, and its matrices stand in none of them."
        )
    return WeightFiles(model, sources, files)


def open_weight_files(path: Path, model: Any) -> WeightFiles | None:
    """The files in ``path`` of a ``model`` on the meta device, or None where only a loaded model has its weights.

    None where a tensor of the model is in no file and tied to none that is, where the files hold tied tensors twice,
    where one tensor of the files makes several of the model, and where a file cannot be read.
    """
    described = model.state_dict(keep_vars=True)
    try:
        files = _files_by_tensor(path)
        shapes = {stored: shape for file in {*files.values()} for stored, shape in _shapes(file)}
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    sources = _sources(model, files, described)
    if sources is None:
        return None
    by_parameter: dict[int, list[str]] = {}
    for name in sources:
        by_parameter.setdefault(id(described[name]), []).append(name)
    if any(len(names) > 1 for names in by_parameter.values()):
        return None
    for name, tensor in described.items():
        (stored_as,) = by_parameter.get(id(tensor), [None])
        if stored_as is None:
            return None
        sources.setdefault(name, sources[stored_as])
        source = sources[name]
        if source.converter is None and [shapes[stored] for stored, _ in source.tensors] != [tuple(tensor.shape)]:
            return None
    return WeightFiles(model, sources, files)


def _sources(model: Any, files: dict[str, Path], described: dict[str, Tensor]) -> dict[str, _Source] | None:
    """What makes each tensor of the model that the files have, as transformers' loading finds it.

    None where one tensor makes several.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    sources: dict[str, _Source] = {}
    for stored in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, described)
        if name not in described and stored in described:
            name, pattern = rename_source_key(stored, [], [], prefix, described)
        if pattern is not None and len(by_pattern[pattern].target_patterns) > 1:
            return None
        if name in described:
            source = sources.setdefault(name, _Source(None if pattern is None else by_pattern[pattern]))
            source.tensors.append((stored, pattern))
    return sources


def _files_by_tensor(path: Path) -> dict[str, Path]:
    if (path / SINGLE_FILE).is_file():
        return {stored: path / SINGLE_FILE for stored, _ in _shapes(path / SINGLE_FILE)}
    index = json.loads((path / INDEX_FILE).read_bytes())
    return {stored: path / name for stored, name in index["weight_map"].items()}


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with safe_open(file, framework="pt") as opened:
        for stored in opened.keys():  # noqa: SIM118  (not a mapping)
            yield stored, tuple(opened.get_slice(stored).get_shape())
