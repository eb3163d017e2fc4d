"""What an exception of Ray's means to the caller of a worker: it is lost, it is silent, or it refused.

Ray's exceptions are many, and most do not derive from the one that a dead actor raises: a worker that the system killed
for its memory raises ``OutOfMemoryError``. Each is decided here on purpose; a test notices one that a later Ray adds.
"""

from typing import Literal

from ray import exceptions
from ray.exceptions import RayError

Meaning = Literal["lost", "silent", "refused"]
"""``lost``: the worker is dead, and what it ran with it. ``silent``: nobody knows whether it heard, and it may go on;
its lease decides. ``refused``: it is alive, and the call itself failed in it."""

MEANINGS: dict[type[RayError], Meaning] = {
    # The worker, its node or its place is gone.
    exceptions.RayActorError: "lost",
    exceptions.ActorDiedError: "lost",
    exceptions.ActorHandleNotFoundError: "lost",
    exceptions.ActorPlacementGroupRemoved: "lost",
    exceptions.ActorUnschedulableError: "lost",
    exceptions.AsyncioActorExit: "lost",
    exceptions.LocalRayletDiedError: "lost",
    exceptions.NodeDiedError: "lost",
    exceptions.OutOfMemoryError: "lost",
    exceptions.RuntimeEnvSetupError: "lost",
    exceptions.TaskPlacementGroupRemoved: "lost",
    exceptions.TaskUnschedulableError: "lost",
    exceptions.WorkerCrashedError: "lost",
    # The question or the answer is lost on its way. What no other line names is taken for this: nothing is given up
    # that may still run, and nothing is kept that does not renew its lease.
    RayError: "silent",
    exceptions.ActorUnavailableError: "silent",
    exceptions.AuthenticationError: "silent",
    exceptions.GetTimeoutError: "silent",
    exceptions.ObjectFetchTimedOutError: "silent",
    exceptions.ObjectFreedError: "silent",
    exceptions.ObjectLostError: "silent",
    exceptions.ObjectReconstructionFailedError: "silent",
    exceptions.ObjectStoreFullError: "silent",
    exceptions.OutOfDiskError: "silent",
    exceptions.OwnerDiedError: "silent",
    exceptions.PendingCallsLimitExceeded: "silent",
    exceptions.PlasmaObjectNotAvailable: "silent",
    exceptions.RayCgraphCapacityExceeded: "silent",
    exceptions.RayChannelError: "silent",
    exceptions.RayChannelTimeoutError: "silent",
    exceptions.RayDirectTransportError: "silent",
    exceptions.RaySystemError: "silent",
    exceptions.ReferenceCountingAssertionError: "silent",
    exceptions.RpcError: "silent",
    exceptions.StreamingGeneratorReplayInconsistentError: "silent",
    exceptions.TaskCancelledError: "silent",
    # The method raised, or what it was given or gave back cannot be read.
    exceptions.RayTaskError: "refused",
    exceptions.ActorAlreadyExistsError: "refused",
    exceptions.CrossLanguageError: "refused",
    exceptions.ObjectRefStreamEndOfStreamError: "refused",
    exceptions.OufOfBandObjectRefSerializationException: "refused",
    exceptions.UnserializableException: "refused",
    exceptions.UserCodeException: "refused",
}


def meaning_of(error: RayError) -> Meaning:
    """What the error means. One that a method raised derives from ``RayTaskError`` and from the method's own error, and
    means what the first of them does: the worker is alive, also where another worker that it asked is not."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)
