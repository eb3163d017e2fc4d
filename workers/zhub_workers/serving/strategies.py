"""Which experts answer a request: those that it names, or those that its prompt is for."""

from zhub.generation import ChosenExpert, ExpertReference, GenerationRequest, Started
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.routing import prompt_embeddings, route
from zhub_workers.serving.experts import Experts


def choose(
    adapted: AdaptedModel, request: GenerationRequest, prompt: list[int], held: Experts
) -> tuple[Started, list[ExpertReference]]:
    """Who answers a request, and why. ``held``: the experts of this replica.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: see ``Experts``.
    """
    experts = list(request.experts)
    match request.candidates, experts:
        case None, []:
            strategy, reason = "base", "the base model was asked for by name"
        case None, [expert] if expert.is_whole:
            strategy, reason = "expert", "the expert was asked for by name"
        case None, _:
            strategy, reason = "mixture", "the request gave the experts and their weights"
        case _:
            strategy = "auto"
            experts, reason = _route(adapted, request, prompt, held)
    chosen = [ChosenExpert(name=e.name, digest=e.digest, weight=e.weight, layers=e.layers) for e in experts]
    return (
        Started(strategy=strategy, experts=chosen, reason=reason, prompt_tokens=len(prompt)),  # type: ignore[arg-type]
        experts,
    )


def _route(
    adapted: AdaptedModel, request: GenerationRequest, prompt: list[int], held: Experts
) -> tuple[list[ExpertReference], str]:
    """The candidate whose training prompts are most like this one, or none: then the base answers."""
    candidates = request.candidates or []
    if not candidates:
        return [], (
            "base: no expert of this project is promoted on this base model "
            "(`zhub experts promote` points its @prod to a version)"
        )
    centroids, others = (
        [held.centroid(adapted, expert) for expert in experts] for experts in (candidates, request.others)
    )
    routed = route(prompt_embeddings(adapted.base, [prompt])[0], centroids, others)
    nearest = candidates[min(range(len(routed.scores)), key=routed.scores.__getitem__)]
    if routed.other is not None:
        index, score = routed.other
        return [], (
            f"base: the prompt is most like the training prompts of {request.others[index].name}, which is not "
            f"promoted ({score:.2f} × its threshold; nearest promoted {nearest.name} at {routed.score:.2f})"
        )
    if routed.index is None:
        return [], (
            f"base: the prompt is unlike every expert's training prompts "
            f"(nearest {nearest.name} at {routed.score:.2f} × its threshold)"
        )
    return [nearest], f"nearest training prompts: {nearest.name} at {routed.score:.2f} × its threshold"
