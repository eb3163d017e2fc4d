"""Which training jobs may share a worker, and with it one base model on one device."""

from zhub.specs import DpoHyperparameters, ReinforcementHyperparameters, TrainSpec

# Answers in one step. With so many in each of eight jobs, training together is still a tenth faster (benchmarks/
# multi_expert_training.py); a larger step fills the device by itself.
MAX_PACKED_ROWS = 256


def pack_key(spec: TrainSpec) -> str | None:
    """Equal for jobs that may train in one worker together; None for one that needs a worker of its own.

    The rows of one forward pass can have different z on one base and basis; LoRA has no such path. A job with shards needs whole
    devices. Packed or alone, a seed gives the same z up to the rounding of matrix products of another shape.
    """
    hyper = spec.hyperparameters
    if hyper.adapter != "svf" or hyper.data_parallel > 1:
        return None
    rows = hyper.batch_size
    if isinstance(hyper, ReinforcementHyperparameters):
        rows *= hyper.group_size
    elif isinstance(hyper, DpoHyperparameters):
        rows *= 2
    return f"{spec.base.digest}/{spec.basis.basis_fingerprint}" if rows <= MAX_PACKED_ROWS else None
