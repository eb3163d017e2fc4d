"""A serving engine over a store that holds one tiny base model, its basis and some experts."""

import hashlib
import queue
from pathlib import Path
from typing import Any

import torch

from zhub.answering import ExpertReference
from zhub.generation import Ended, Failed, GenerationRequest, Line, Text
from zhub.manifest import sha256_file
from zhub.specs import BaseModelSource, BasisReference, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.model.artifact import ExpertFile, write_expert, write_routing
from zhub_workers.model.base_model import load_base_model, render_prompt, weights_fingerprint
from zhub_workers.model.basis import Basis, decompose_base, load_basis
from zhub_workers.model.routing import make_centroid, prompt_embeddings
from zhub_workers.serving.engine import Engine


class Served:
    """An engine over a store that holds one base model, its basis and some experts."""

    def __init__(self, root: Path, model: Path) -> None:
        self.store = DirectoryStore(root / "store")
        files = [self.add_file(path) for path in sorted(model.iterdir())]
        base = load_base_model(model)
        fingerprint = decompose_base(base, root / "basis")
        for path in (root / "basis").iterdir():
            put_path(self.store, f"basis/{path.name}", path)
        self.base = base
        self.basis: Basis = load_basis(root / "basis", fingerprint)
        self.source = BaseModelSource(name="tiny", files=files)
        self.reference = BasisReference(
            weights_fingerprint=weights_fingerprint(base.model), basis_fingerprint=fingerprint, key_prefix="basis"
        )
        self.root = root
        self.engine = Engine(self.store, root / "cache", "cpu")

    def add_file(self, path: Path) -> StoredFile:
        """Store a file of a base model."""
        sha256 = sha256_file(path)
        put_path(self.store, f"bases/{sha256}", path)
        return StoredFile(name=path.name, key=f"bases/{sha256}", sha256=sha256, size_bytes=path.stat().st_size)

    def expert(self, name: str, seed: int, prompts: list[str]) -> ExpertReference:
        """Store an expert with random multipliers whose training prompts were these."""
        generator = torch.Generator().manual_seed(seed)
        z = {
            matrix: 1 + 0.8 * torch.randn(len(s), generator=generator)
            for matrix, (_, s, _) in self.basis.factors.items()
        }
        return self.expert_of(name, ExpertFile("svf", z, {}), prompts)

    def expert_of(self, name: str, expert: ExpertFile, prompts: list[str]) -> ExpertReference:
        """Store an expert of any kind whose training prompts were these."""
        z_path, routing_path = self.root / f"{name}.z", self.root / f"{name}.routing"
        write_expert(z_path, expert, basis_fingerprint=self.basis.fingerprint, base_model="tiny")
        ids = [render_prompt(self.base, [{"role": "user", "content": prompt}]) for prompt in prompts]
        embeddings = prompt_embeddings(self.base, ids)
        centroid = make_centroid(embeddings[::2], embeddings[1::2])
        write_routing(routing_path, centroid, basis_fingerprint=self.basis.fingerprint)
        put_path(self.store, f"experts/{name}.z", z_path)
        put_path(self.store, f"experts/{name}.routing", routing_path)
        return ExpertReference(
            name=name,
            digest=hashlib.sha256(name.encode()).hexdigest(),
            z_key=f"experts/{name}.z",
            z_sha256=sha256_file(z_path),
            routing_key=f"experts/{name}.routing",
            routing_sha256=sha256_file(routing_path),
        )

    def request(self, content: str, **more: Any) -> GenerationRequest:
        body = {"temperature": 0.0, "max_new_tokens": 12} | more
        return GenerationRequest(
            base=self.source, basis=self.reference, messages=[{"role": "user", "content": content}], **body
        )

    def ask_all(self, requests: list[GenerationRequest]) -> list[list[Line]]:
        """Submit the requests at once and return each one's lines."""
        answers: list[queue.Queue[Line]] = [queue.Queue() for _ in requests]
        for request, lines in zip(requests, answers, strict=True):
            self.engine.submit(request, lines.put)
        return [until_end(lines) for lines in answers]

    def ask(self, request: GenerationRequest) -> list[Line]:
        return self.ask_all([request])[0]


def until_end(lines: "queue.Queue[Line]") -> list[Line]:
    found = []
    while True:
        found.append(lines.get(timeout=60))
        if isinstance(found[-1], Ended | Failed):
            return found


def text_of(lines: list[Line]) -> str:
    return "".join(line.text for line in lines if isinstance(line, Text))
