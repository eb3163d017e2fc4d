"""Bases and experts for the benchmarks of serving, and a lane over each, moved by hand."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import shipped
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from zhub.answering import ExpertReference
from zhub.generation import GenerationRequest, Line
from zhub.manifest import sha256_file
from zhub.specs import BaseModelSource
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.artifact import ExpertFile, write_expert
from zhub_workers.model.base_model import BaseModel, load_base_model
from zhub_workers.model.basis import decompose_base, load_basis
from zhub_workers.model.reading import tried
from zhub_workers.serving.asked import Asked
from zhub_workers.serving.experts import Experts
from zhub_workers.serving.lane import Lane

CONTEXT = 4096
CACHE_BYTES = 1 << 30


def save_wide(directory: Path) -> Path:
    """A random Llama of 8 layers, 512 wide, with the shipped base's tokenizer."""
    base = load_base_model(shipped.DIRECTORY)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(base.tokenizer),
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=base.eos_id,
            pad_token_id=base.pad_id,
        )
    )
    model.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)
    return directory


def bases(scratch: Path, real: Path | None) -> dict[str, Path]:
    """The directories of the shipped base, of the wide one, and of a real one if there is one, by name."""
    found = {shipped.NAME: shipped.DIRECTORY, "llama 8 x 512": save_wide(scratch / "wide")}
    return found if real is None else found | {real.name: real}


def load(directory: Path) -> BaseModel:
    """The base in a directory, tried."""
    return tried(load_base_model(directory))


def with_basis(base: BaseModel, scratch: Path) -> AdaptedModel:
    """The base on a basis that is made in ``scratch``."""
    return AdaptedModel(base, load_basis(scratch, decompose_base(base, scratch)))


class Bench:
    """A lane over a base, and experts of random multipliers.

    Args:
        root: for the experts' files.
    """

    def __init__(self, adapted: AdaptedModel, root: Path) -> None:
        self.adapted = adapted
        self._root = root
        root.mkdir(exist_ok=True)
        self._store = DirectoryStore(root / "store")
        self.experts = Experts(self._store, root / "cache")
        self.lane = Lane(adapted, self.experts, CACHE_BYTES)

    def expert(self, seed: int, *, only: tuple[str, ...] = ("",)) -> ExpertReference:
        """An expert that changes the matrices whose names end with one of ``only``."""
        z = random_z(self.adapted, seed, only)
        path = self._root / f"{seed}-{len(only)}.safetensors"
        basis = self.adapted.basis
        write_expert(path, ExpertFile("svf", z, {}), basis_fingerprint=basis.fingerprint, base_model="bench")
        put_path(self._store, path.name, path)
        sha256 = sha256_file(path)
        return ExpertReference(
            name=path.name, digest=sha256, z_key=path.name, z_sha256=sha256, routing_key="", routing_sha256=""
        )

    def start(
        self,
        messages: list[dict[str, str]],
        new_tokens: int,
        on_line: Callable[[Line], object],
        experts: Sequence[ExpertReference] = (),
    ) -> None:
        """Begin a greedy answer; it goes on with each ``step`` of the lane."""
        request = GenerationRequest(
            base=BaseModelSource(name="bench"),
            basis=None,
            messages=messages,
            experts=list(experts),
            max_new_tokens=new_tokens,
            temperature=0.0,
        )
        asked = Asked(request, on_line, lambda _asked: None)
        self.lane.prepare(asked)
        self.lane.start(asked)

    def finish(self) -> None:
        """Until all has ended."""
        while not self.lane.is_idle:
            self.lane.step()


def random_z(adapted: AdaptedModel, seed: int, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Multipliers near one, of the matrices whose names end with one of ``only``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 + 0.1 * torch.randn(s.shape, generator=generator)
        for name, (_, s, _) in adapted.basis.factors.items()
        if name.endswith(only)
    }


Bars = Mapping[str, tuple[float, str]]  # by what is measured: the bar, and which is better


def report(title: str, results: Mapping[str, Mapping[str, float]], bars: Bars, path: Path | None) -> None:
    """Print what each base came to, and write it to ``path``, with the worst of the bases for each bar."""
    table = Table(title=title)
    for column in ("", *results, "bar"):
        table.add_column(column)
    told: dict[str, dict[str, float | str]] = {}
    for what in dict.fromkeys(what for result in results.values() for what in result):
        values = [f"{result[what]:.2f}" if what in result else "-" for result in results.values()]
        table.add_row(what, *values, "{} {}".format(*bars[what]) if what in bars else "")
        if what in bars:
            bar, better = bars[what]
            of_base = {result[what]: base for base, result in results.items() if what in result}
            worst = min(of_base) if better == "higher" else max(of_base)
            told[f"{what} (worst: {of_base[worst]})"] = {"value": round(worst, 3), "bar": bar, "better": better}
    Console().print(table)
    if path is None:
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one used, torch {torch.__version__}"
    whole = {"name": path.stem, "machine": machine, "results": results, "bars": told}
    path.write_text(json.dumps(whole, indent=2) + "\n")
