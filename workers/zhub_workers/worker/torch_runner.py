"""What a worker with torch does: decompose a base model, train an expert, measure, import or export one.

The base that was used last stays loaded, so that the next attempt on it begins at once.
"""

import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

import zhub
from zhub.graders import Grader, GradingTools, ScoreModelGrader, needs_sandbox
from zhub.ids import public_id
from zhub.manifest import MANIFEST_FILE
from zhub.process import tracing
from zhub.registry.model_sizes import ModelSizes
from zhub.sandbox import Sandbox
from zhub.specs import (
    DecomposeSpec,
    EvaluateSpec,
    ExportSpec,
    ImportSpec,
    JobSpec,
    StoredFile,
    TrainSpec,
)
from zhub.storage.attested import fetch_attested
from zhub.storage.keys import basis_prefix
from zhub.storage.object_store import ObjectStore, fetch, open_store, put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptStoppedError
from zhub_workers.cluster.flavour import Flavour
from zhub_workers.compute.cores import sharing_cores
from zhub_workers.compute.group import ComputeGroup, Member, Stopped, compute_stream_count
from zhub_workers.compute.requests import Generate
from zhub_workers.compute.sharded import ShardedMember
from zhub_workers.compute.sizes import sizes_of
from zhub_workers.evaluation.evaluate import ROWS_FILE, following, run_evaluation
from zhub_workers.evaluation.grading import Grading
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.adapters import adapter_of, make_adapter
from zhub_workers.model.artifact import ExpertFile, read_expert
from zhub_workers.model.base_model import load_base_model, model_of_config, render_prompt
from zhub_workers.model.basis import BASIS_FILE, carried_shares, decompose_base
from zhub_workers.model.layers import adapted_layers, unreached_weights
from zhub_workers.model.model_cache import WEIGHTS_SUFFIX, ModelCache, base_directory
from zhub_workers.model.trial import try_base
from zhub_workers.model.weight_files import device_memory_bytes
from zhub_workers.model.weights import open_base
from zhub_workers.serving.experts import Experts
from zhub_workers.training.forgetting import KeptAnswers
from zhub_workers.training.metric_sinks import Run, sending_metrics
from zhub_workers.training.spans import traced_steps
from zhub_workers.training.state import TrainState
from zhub_workers.training.train import TrainResult, train
from zhub_workers.worker.checkpoints import Checkpoints
from zhub_workers.worker.exports import run_export
from zhub_workers.worker.imports import run_import
from zhub_workers.worker.published_files import write_version
from zhub_workers.worker.ray_shards import RayShards
from zhub_workers.worker.release_answers import ReleaseAnswers
from zhub_workers.worker.room import check_disk, check_memory, told_basis, told_unreached
from zhub_workers.worker.starting_points import fetch_start

PROGRESS_EVENTS = 200  # of one decomposition, at most


class TorchRunner:
    """Runs attempts on one device, those of one pack at the same time; holds the last base model that they used.

    A pack is divided between compute streams: groups that compute side by side, each on its own view of the same
    weights. One stream fills a GPU.
    """

    def __init__(self, device: str | None, flavour: Flavour) -> None:
        self._flavour = flavour
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._models = ModelCache(self.device, capacity=1)
        names = [f"{os.getpid()}-{index}" for index in range(compute_stream_count(self.device))]
        self._streams = [ComputeGroup(name if self.device.type == "cpu" else None) for name in names]
        self._attempts = [0] * len(self._streams)
        self._lock = threading.Lock()

    def __call__(self, attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
        """Run the attempt that ``attempt.spec`` describes, and return what its job's row needs."""
        spec = TypeAdapter[Any](JobSpec).validate_python(attempt.spec)
        store = open_store(attempt.store_url)
        if isinstance(spec, DecomposeSpec):
            return self._decompose(spec, attempt, context, store)
        if isinstance(spec, EvaluateSpec):
            return self._evaluate(spec, attempt, context, store)
        if isinstance(spec, ImportSpec):
            model = self._models.get(spec.base, spec.basis, store, attempt.cache_dir)
            return run_import(spec, model, attempt, context, store, hardware=self._hardware())
        if isinstance(spec, ExportSpec):
            load = partial(self._models.get, store=store, cache_dir=attempt.cache_dir)
            return run_export(spec, load, attempt, context, store)
        return self._train(spec, attempt, context, store)

    def _decompose(
        self, spec: DecomposeSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore
    ) -> dict[str, Any]:
        sizes = self._check_room(spec, attempt, context, store)
        context.emit("info", f"Loading base model {spec.base.name}, to try it.")
        files = base_directory(spec.base, store, attempt.cache_dir)
        # Tried whole, and given back: what is decomposed is read again, one matrix at a time.
        limitations = try_base(
            load_base_model(files, name=spec.base.name, device=self.device), spec.base.name
        ).limitations
        for limitation in limitations:
            context.note("warn", f"Tried base model {spec.base.name}: {limitation}.")
        context.raise_if_stopped()
        base, weights = open_base(files, name=spec.base.name, device=self.device)
        unreached = unreached_weights(base.model)
        if unreached:
            context.emit("warn", told_unreached(unreached))
        prefix = basis_prefix(weights.fingerprint, adapted_layers(base.model), spec.rank)
        directory = attempt.cache_dir / prefix
        # What an earlier attempt has stored is not computed again; decompose_base checks that it fits the weights.
        for key in store.keys(f"{prefix}/"):
            path = attempt.cache_dir / key
            if path.name != BASIS_FILE and not path.exists():
                _download(store, key, path)
                context.raise_if_stopped()
        stored = {key.rpartition("/")[2] for key in store.keys(f"{prefix}/")}

        def keep(done: int, total: int) -> None:
            path = directory / f"{done - 1:05d}.safetensors"
            if path.name not in stored:
                put_path(store, f"{prefix}/{path.name}", path)
            # A base of MoE experts has ten thousand matrices.
            if done * PROGRESS_EVENTS // total > (done - 1) * PROGRESS_EVENTS // total:
                context.emit(
                    "info", f"Decomposed matrix {done} of {total}.", {"type": "progress", "done": done, "total": total}
                )
            context.raise_if_stopped()
            torch.set_num_threads(threads())

        with sharing_cores(f"{os.getpid()}-decompose") as threads:
            torch.set_num_threads(threads())
            fingerprint = decompose_base(
                base, directory, rank=spec.rank, weights=weights, device=self.device, on_matrix=keep
            )
        # The index last: a basis that has one is complete.
        put_path(store, f"{prefix}/{BASIS_FILE}", directory / BASIS_FILE)
        model = base.model
        carried = carried_shares(directory)
        return {
            "weights_fingerprint": weights.fingerprint,
            "basis_fingerprint": fingerprint,
            "basis_key_prefix": prefix,
            "details": {
                "architecture": type(model).__name__,
                "parameters": sizes.parameters,
                "matrices": sizes.matrices,
                "adapted_parameters": sizes.adapted_parameters,
                "basis_bytes": sizes.basis_bytes,
                **({"not_adapted": unreached} if unreached else {}),
                **({"rank": spec.rank, "carried": min(carried)} if carried else {}),
                "context_length": base.context_length,
                "vocabulary": len(base.tokenizer),
                "limitations": [limitation.model_dump() for limitation in limitations],
            },
        }

    def _check_room(
        self, spec: DecomposeSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore
    ) -> ModelSizes:
        """Tell what the base takes before its weights are fetched. Raises UnsupportedModelError if it does not fit."""
        directory = base_directory(spec.base, store, attempt.cache_dir, with_weights=False)
        sizes = sizes_of(*model_of_config(directory, spec.base.name), rank=spec.rank)
        # An earlier attempt that has fetched them has had room for them, and for a part of the basis.
        if not any(directory.glob(f"*{WEIGHTS_SUFFIX}")):
            check_disk(spec.base.name, sizes, attempt.cache_dir, store)
        warning = check_memory(spec.base.name, sizes, device_memory_bytes(self.device))
        if warning is not None:
            context.emit("warn", warning)
        context.emit("info", told_basis(sizes), {"type": "basis_size", "file_bytes": sizes.basis_bytes})
        return sizes

    def _train(self, spec: TrainSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore) -> dict[str, Any]:
        context.note("info", f"Attempt {attempt.key.fence} on {self._hardware()}, zhub {zhub.__version__}.")
        with self._stream() as stream:
            result = self._train_in(stream, spec, attempt, context, store)
            if result.stopped:
                raise AttemptStoppedError
            model = self._models.get(spec.base, spec.basis, store, attempt.cache_dir, stream=stream)
            return self._store_version(result, model, spec, attempt, context, store)

    def _store_version(
        self,
        result: TrainResult,
        model: AdaptedModel,
        spec: TrainSpec,
        attempt: Attempt,
        context: AttemptContext,
        store: ObjectStore,
    ) -> dict[str, Any]:
        """Store what training has made, and return what the job's row needs."""
        for evaluation in filter(None, (result.validation, result.test)):
            means = f"expert {evaluation.expert.mean:.3f}, base {evaluation.base.mean:.3f}"
            message = f"On {evaluation.base.n} {evaluation.split} rows: {means}, p = {evaluation.p_value:.3g}."
            context.note("info", message)
        with tempfile.TemporaryDirectory(dir=attempt.cache_dir) as directory:
            manifest = write_version(Path(directory), model, spec, attempt, result, self._hardware())
            # The manifest last: a prefix that has one is whole.
            for name in (*(file.name for file in manifest.files), MANIFEST_FILE):
                put_path(store, f"{attempt.key_prefix}/{name}", Path(directory) / name)
        return {
            "manifest": manifest.model_dump(mode="json"),
            "key_prefix": attempt.key_prefix,
            "trained_tokens": result.trained_tokens,
        }

    def _train_in(
        self, stream: int, spec: TrainSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore
    ) -> TrainResult:
        """Fetch what the job needs, and train in this compute stream."""
        began = time.monotonic()
        model = self._models.get(spec.base, spec.basis, store, attempt.cache_dir, stream=stream)
        context.note("info", f"Base {spec.base.name} and its basis are loaded, {time.monotonic() - began:.1f} s.")
        training = _dataset(spec.training_file, store, attempt.cache_dir)
        validation = _dataset(spec.validation_file, store, attempt.cache_dir) if spec.validation_file else None
        for file in filter(None, (spec.training_file, spec.validation_file)):
            context.note("info", f"{file.name} is here, {file.size_bytes:,} bytes.")
        checkpoints = Checkpoints(spec, attempt, context, store)
        resumed = checkpoints.newest(attempt.checkpoint) if attempt.checkpoint else None
        needed = spec.starts if resumed is None or spec.recipe == "few_shot" else []
        starts = [fetch_start(start, model, store, attempt.cache_dir) for start in needed]
        adapter = make_adapter(model, spec.hyperparameters)
        token_limit = spec.hyperparameters.micro_batch_tokens
        with (
            self._streams[stream].join(adapter, context.should_stop, token_limit=token_limit) as local,
            self._sharded(local, spec, attempt, context) as member,
            _grading(spec.grader, member, spec.base.name, context) as grading,
            traced_steps(context.emit) as traced,
            sending_metrics(attempt.metric_sinks, _run(attempt, spec, resumed), traced, context.note) as on_event,
        ):
            return train(
                spec,
                member=member,
                grading=grading,
                training_path=training,
                validation_path=validation,
                on_event=on_event,
                on_checkpoint=checkpoints.write,
                starts=starts,
                resumed=resumed,
                kept_answers=KeptAnswers(attempt.cache_dir / "general"),
            )

    @contextmanager
    def _stream(self) -> Iterator[int]:
        """The compute stream with the fewest attempts, counted with one more for as long as the context lasts."""
        with self._lock:
            stream = min(range(len(self._streams)), key=self._attempts.__getitem__)
            self._attempts[stream] += 1
        try:
            yield stream
        finally:
            with self._lock:
                self._attempts[stream] -= 1

    @contextmanager
    def _sharded(self, local: Member, spec: TrainSpec, attempt: Attempt, context: AttemptContext) -> Iterator[Member]:
        """The member with as many shards as the job asks for beside it, itself where it asks for none.

        Where Ray reserves resources for shards, there are no more of them than the job was given workers.
        """
        asked = spec.hyperparameters.data_parallel
        processes = min(asked, attempt.workers) if self._flavour.bundle else asked
        if processes < asked:
            context.emit("warn", f"The cluster has room for {processes} of the {asked} processes asked for.")
        if processes == 1:
            yield local
            return

        def tell(message: str) -> None:
            context.emit("info", message)

        with RayShards(
            processes - 1,
            attempt.key,
            spec,
            attempt.store_url,
            attempt.cache_dir,
            device=str(self.device),
            flavour=self._flavour,
            check=context.raise_if_stopped,
            on_change=tell,
        ) as shards:
            yield ShardedMember(local, shards)

    def _evaluate(
        self, spec: EvaluateSpec, attempt: Attempt, context: AttemptContext, store: ObjectStore
    ) -> dict[str, Any]:
        model = self._models.get(spec.base, spec.basis, store, attempt.cache_dir)
        rows = _dataset(spec.file, store, attempt.cache_dir)
        expert = ExpertFile("svf", {}, {})  # the base
        if spec.z is not None:
            path = attempt.cache_dir / "experts" / f"{spec.z.sha256}.safetensors"
            fetch_attested(store, spec.z.key, path, sha256=spec.z.sha256, attested=spec.z.attested)
            expert = read_expert(path, sha256=spec.z.sha256, basis=model.basis)
        adapter = adapter_of(model, expert)
        values = adapter.imported(expert.tensors) if expert.tensors else None
        with (
            tempfile.TemporaryDirectory(dir=attempt.cache_dir) as directory,
            self._streams[0].join(adapter, context.should_stop) as member,
            _grading(spec.grader, member, spec.base.name, context) as grading,
            ExitStack() as held,
        ):
            if spec.release is None:
                answering = following(member, values, spec.max_new_tokens)
            else:
                threads = held.enter_context(sharing_cores(f"{os.getpid()}-release"))
                experts = Experts(store, attempt.cache_dir)
                view = self._models.own_view(spec.base, spec.basis, store, attempt.cache_dir)
                answering = ReleaseAnswers(view, spec.release, spec, experts, partial(_before_step, context, threads))
            try:
                with tracing.span("evaluate"):
                    result = run_evaluation(
                        spec, member, answering, grading, rows, Path(directory), on_event=context.emit
                    )
            except Stopped:
                raise AttemptStoppedError from None
            key = f"{attempt.key_prefix}/{ROWS_FILE}"
            put_path(store, key, Path(directory) / ROWS_FILE)
        return {**result, "rows_key": key}

    def _hardware(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu {platform.machine()}"


@contextmanager
def _grading(grader: Grader | None, member: Member, base_name: str, context: AttemptContext) -> Iterator[Grading]:
    """What a grader needs for as long as a job lasts: a sandbox for code, the base for its judgement.

    Raises:
        SandboxUnavailableError: the grader runs code, and this machine cannot contain it.
    """

    def judge(grader: ScoreModelGrader, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
        prompts = [render_prompt(member.base, messages) for messages in conversations]
        answers = member.run(Generate(None, prompts, grader.sampling_params.max_completions_tokens))
        return [answer.text for answer in answers]

    if grader is None:
        yield Grading(None)
        return
    with Sandbox() if needs_sandbox(grader) else nullcontext() as sandbox:
        yield Grading(grader, GradingTools(sandbox=sandbox, judge=judge, note=context.note))


def _before_step(context: AttemptContext, threads: Callable[[], int]) -> None:
    if context.should_stop():
        raise Stopped
    torch.set_num_threads(threads())


def _run(attempt: Attempt, spec: TrainSpec, resumed: TrainState | None) -> Run:
    settings = {"base": spec.base.name, "method": spec.recipe, "seed": spec.seed, "attempt": attempt.key.fence}
    return Run(
        job_id=public_id("fine-tuning job", attempt.key.job_id),
        name=spec.expert,
        settings=settings | spec.hyperparameters.model_dump(mode="json"),
        resumed_after=resumed.step if resumed else 0,
    )


def _dataset(file: StoredFile, store: ObjectStore, cache_dir: Path) -> Path:
    return fetch(store, file.key, cache_dir / "datasets" / file.sha256, sha256=file.sha256)


def _download(store: ObjectStore, key: str, path: Path) -> None:
    """Bring an object whose digest is not known yet; what comes of it is checked by its reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.download")
    with temporary.open("wb") as file:
        for piece in store.open(key):
            file.write(piece)
    shutil.move(temporary, path)
