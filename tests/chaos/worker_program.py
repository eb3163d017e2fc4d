"""A worker as a process of its own: the real ``Worker``, whose training is a script.

Arguments: the path of its unix socket, its pool, and the process that it ends with.
"""

import hashlib
import io
import os
import sys
import threading
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import psutil

from zhub.manifest import MANIFEST_FILE, Z_FILE, FileEntry, Manifest
from zhub.storage.keys import checkpoints_prefix
from zhub.storage.object_store import ObjectStore, fetch, open_store
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.attempts.worker import Worker
from zhub_workers.worker import light_runner

CHECKPOINT_EVERY = 3
AGAIN_S = 0.7  # an attempt after the first lasts long enough for the one before it to come back meanwhile


def main() -> None:
    path, pool, owner = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    threading.Thread(target=end_with, args=(owner,), daemon=True).start()
    worker = Worker({"light": light_runner.run, "torch": train}[pool], exit_process=os._exit)
    with Listener(str(path), backlog=64) as listener:
        # Last: the file says that somebody listens.
        path.with_name(f"{path.name}.pid").write_text(str(os.getpid()))
        while True:
            # Each in a thread, because an agent may be frozen in the middle of a question.
            threading.Thread(target=answer, args=(worker, listener.accept()), daemon=True).start()


def end_with(owner: int) -> None:
    while psutil.pid_exists(owner):
        time.sleep(1)
    os._exit(0)


def answer(worker: Worker, connection: "Connection[Any, Any]") -> None:
    with connection:
        try:
            method, arguments = connection.recv()
            try:
                connection.send(getattr(worker, method)(*arguments))
            except RuntimeError as exc:
                connection.send(exc)
        except (OSError, EOFError):
            return  # who asked is gone


def train(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Take the spec's steps from the newest checkpoint on, leave checkpoints, and write an artifact."""
    store = open_store(attempt.store_url)
    step = 0
    if attempt.checkpoint is not None:
        kept = attempt.checkpoint
        place = attempt.cache_dir / "checkpoints" / attempt.key.job_id.hex / str(attempt.key.fence)
        step = int(fetch(store, f"{kept['key_prefix']}/{Z_FILE}", place, sha256=kept["digest"]).read_text())
        context.emit("info", f"Goes on from step {step}.")
    if attempt.key.fence > 1:
        time.sleep(AGAIN_S)
    while step < attempt.spec["steps"]:
        context.raise_if_stopped()
        time.sleep(attempt.spec["step_s"])
        step += 1
        context.emit("info", f"Step {step}.", {"type": "metrics", "step": step})
        if step % CHECKPOINT_EVERY == 0:
            prefix = f"{checkpoints_prefix(attempt.org_id, attempt.key.job_id)}/f{attempt.key.fence}-{step}"
            z = put(store, prefix, Z_FILE, str(step).encode())
            report = {"type": "checkpoint", "step": step, "key_prefix": prefix, "digest": z.sha256, "metrics": {}}
            context.emit("info", f"Checkpoint {step}.", report | {"size_bytes": z.size_bytes, "z": z.model_dump()})
    files = [put(store, attempt.key_prefix, Z_FILE, f"{attempt.key} after step {step}".encode())]
    manifest = manifest_of(attempt, step, files)
    put(store, attempt.key_prefix, MANIFEST_FILE, manifest.canonical())
    return {"manifest": manifest.model_dump(mode="json"), "key_prefix": attempt.key_prefix, "trained_tokens": step}


def put(store: ObjectStore, prefix: str, name: str, content: bytes) -> FileEntry:
    store.put(f"{prefix}/{name}", io.BytesIO(content))
    return FileEntry(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def manifest_of(attempt: Attempt, steps: int, files: list[FileEntry]) -> Manifest:
    texts = "base_model base_source weights_fingerprint basis_fingerprint dataset_digest recipe code_version hardware"
    fields: dict[str, Any] = dict.fromkeys(texts.split(), "chaos")
    fields |= dict.fromkeys(("validation_digest", "grader", "parent_digest"))
    fields |= dict.fromkeys(("seed", "best_step", "parameters"), 1)
    fields |= {"evaluations": [], "hyperparameters": {}, "files": files, "steps": steps}
    return Manifest(**fields, job_id=str(attempt.key.job_id), fence=attempt.key.fence)


if __name__ == "__main__":
    main()
