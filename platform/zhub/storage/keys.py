"""The layout of the object store: every key that zhub writes is made here.

``bases/`` belongs to the platform, ``t/<organisation>/`` to one tenant.
"""

import hashlib
import uuid
from collections.abc import Iterable


def base_file_key(sha256: str) -> str:
    """A file of a base model, under its digest."""
    return f"bases/files/sha256/{sha256}"


def basis_prefix(weights_fingerprint: str, matrices: Iterable[str], rank: int | None) -> str:
    """The basis (singular vectors and values) of these matrices of the weights with this fingerprint, to a rank.

    Which matrices a model has is a question of zhub's version too: another answer never overwrites a basis that
    experts were trained on.
    """
    names = hashlib.sha256("\n".join(sorted(matrices)).encode()).hexdigest()
    whole = f"bases/{weights_fingerprint}-{names[:16]}"
    return whole if rank is None else f"{whole}-rank{rank}"


def dataset_key(org_id: uuid.UUID, sha256: str) -> str:
    """A dataset file, under its digest: equal files of one organisation are one object."""
    return f"t/{org_id.hex}/datasets/sha256/{sha256}"


def job_prefix(org_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Everything that the attempts of a job write."""
    return f"t/{org_id.hex}/jobs/{job_id.hex}"


def attempts_prefix(org_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Results and logs of a job's attempts, each below its fence."""
    return f"{job_prefix(org_id, job_id)}/attempts"


def import_prefix(org_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """The files that an import was asked for with."""
    return f"{job_prefix(org_id, job_id)}/import"


def checkpoints_prefix(org_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """The checkpoints of a job."""
    return f"{job_prefix(org_id, job_id)}/checkpoints"


def checkpoint_prefix(org_id: uuid.UUID, job_id: uuid.UUID, step: int, fence: int) -> str:
    """One checkpoint. With the fence, so that two attempts never write the same object."""
    return f"{checkpoints_prefix(org_id, job_id)}/{step:06d}-f{fence}"
