"""Which training jobs may share a worker, and with it one base model on one device."""

from zhub.recipes import DpoHyperparameters, FewShotHyperparameters, Hyperparameters, ReinforcementHyperparameters
from zhub.specs import TrainPlan

# Answers in one step. With so many in each of eight jobs, training together is still a tenth faster (benchmarks/
# multi_expert_training.py); a larger step fills the device by itself.
MAX_PACKED_ROWS = 256


def pack_key(plan: TrainPlan) -> str | None:
    """Equal for jobs that may train in one worker together; None for one that needs a worker of its own.

    The rows of one forward pass can have different z on one base and basis. Packed or alone, a seed gives the same z up
    to the rounding of matrix products of another shape. While its base has no basis, a job has no key yet.
    """
    if plan.basis is None or not shares_a_worker(plan.hyperparameters):
        return None
    return f"{plan.base.digest}/{plan.basis.basis_fingerprint}"


def shares_a_worker(hyper: Hyperparameters) -> bool:
    """Whether a job needs no worker of its own.

    Only multipliers train for several jobs in one forward; shards need whole devices.
    """
    if hyper.adapter != "svf" or hyper.data_parallel > 1:
        return False
    return _rows_of_a_step(hyper) <= MAX_PACKED_ROWS


def _rows_of_a_step(hyper: Hyperparameters) -> int:
    match hyper:
        case FewShotHyperparameters():
            return hyper.population * hyper.shots
        case ReinforcementHyperparameters():
            return hyper.batch_size * hyper.group_size
        case DpoHyperparameters():
            return hyper.batch_size * 2
        case _:
            return hyper.batch_size
