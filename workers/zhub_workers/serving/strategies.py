"""Which experts answer a request: those that it names, or those that its prompt is for."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from zhub.answering import ChosenExpert, Classifier, ExpertReference
from zhub.generation import GenerationRequest, Started
from zhub_workers.model.adapted import AdaptedModel
from zhub_workers.model.base_model import BaseModel, render_prompt
from zhub_workers.model.classification import label_probabilities
from zhub_workers.model.question import CLASSIFIER_QUESTION, answers_for, with_question
from zhub_workers.model.routing import prompt_embeddings, route
from zhub_workers.model.row_changes import following_rows
from zhub_workers.serving.experts import Experts

OTHER = "other"
MAJORITY = 0.5  # of the probability: what a classifier says with less, it does not know
NOTHING_PROMOTED = (
    "base: no expert of this project is promoted on this base model "
    "(`zhub experts promote` points its @prod to a version)"
)

NO_TEXT = "N/A"
MAX_PRIORS, LEAST_PRIOR = 256, 1e-6

Chosen = tuple[list[ExpertReference], str]  # who answers, and why
Priors = dict[tuple[tuple[str, str], ...], list[float]]  # of one base, by the labels and what they are said to mean


def choose(
    adapted: AdaptedModel, request: GenerationRequest, prompt: list[int], held: Experts, priors: Priors
) -> tuple[Started, list[ExpertReference]]:
    """Who answers a request, and why. ``held``: the experts of this replica; ``priors``: those of this base so far.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: see ``Experts``.
        InvalidRequestError: the base's chat template refuses the messages of the first pass.
    """
    began = time.monotonic()
    experts = list(request.experts)
    asked_by = "the request gave" if request.release is None else f"the release {request.release} has"
    match request.candidates, experts:
        case None, []:
            strategy, reason = "base", "the base model was asked for by name"
            if request.release is not None:
                reason = f"the request asked for the base of the release {request.release}"
        case None, [expert] if expert.is_whole and request.release is None:
            strategy, reason = "expert", "the expert was asked for by name"
        case None, _:
            strategy, reason = "mixture", f"{asked_by} the experts and their weights"
        case _ if request.router == "prompt":
            strategy = "prompt"
            experts, reason = choose_by_prompt(adapted.base, request, priors)
        case _ if request.classifier is not None and request.router == "classifier":
            strategy = "classifier"
            experts, reason = choose_by_classifier(adapted, request, request.classifier, held)
        case _:
            strategy = request.router or "auto"
            experts, reason = _by_centroid(adapted, request, prompt, held)
    chosen = [
        ChosenExpert(name=e.name, digest=e.digest, weight=e.weight, layers=e.layers, reason=reason) for e in experts
    ]
    choice_s = time.monotonic() - began
    started = Started(
        strategy=strategy,  # type: ignore[arg-type]  # one of those above
        experts=chosen,
        reason=reason,
        prompt_tokens=len(prompt),
        choice_s=choice_s,
    )
    return started, experts


def _by_centroid(adapted: AdaptedModel, request: GenerationRequest, prompt: list[int], held: Experts) -> Chosen:
    """The candidate whose training prompts are most like this one, or none: then the base answers."""
    candidates = request.candidates or []
    if not candidates:
        return [], NOTHING_PROMOTED
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


def choose_by_prompt(base: BaseModel, request: GenerationRequest, priors: Priors) -> Chosen:
    """The candidate that the base says the prompt is for, or none, where it says another thing or hesitates."""
    candidates = request.candidates or []
    if not candidates:
        return [], NOTHING_PROMOTED
    labels = [*(_label(expert) for expert in candidates), OTHER]
    descriptions = {_label(expert): expert.description for expert in candidates}
    prompt = render_prompt(base, classification_messages(request, descriptions))
    ids = [base.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    if (too_long := _too_long(base, prompt, ids)) is not None:
        return [], too_long
    probabilities = calibrated_probabilities(base, prompt, ids, _prior(base, descriptions, ids, priors))
    ranked = sorted(range(len(labels)), key=probabilities.__getitem__, reverse=True)
    best, second = ranked[0], ranked[1]
    said = _said(labels, probabilities, ranked)
    if probabilities[best] == probabilities[second]:
        return [], f"base: asked what the prompt is for, it found '{labels[best]}' and '{labels[second]}' equal"
    if best == len(candidates):
        return [], f"base: asked what the prompt is for, it said {said}"
    return [candidates[best]], f"the base, asked what the prompt is for, said {said}"


def choose_by_classifier(
    adapted: AdaptedModel, request: GenerationRequest, classifier: Classifier, held: Experts
) -> Chosen:
    """The candidate that the classifier says the prompt is for, or none, where it says another thing or hesitates.

    Raises:
        DigestMismatchError, ArtifactError, BasisMismatchError: see ``Experts``.
    """
    base, name = adapted.base, classifier.expert.name
    prompt = render_prompt(base, with_question(_conversation(request), CLASSIFIER_QUESTION))
    ids = [
        base.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers_for(len(classifier.labels))
    ]
    if (too_long := _too_long(base, prompt, ids)) is not None:
        return [], too_long
    with following_rows(adapted, [held.change(adapted, classifier.expert)]) as assign:
        probabilities = label_probabilities(base, prompt, ids, assign=assign)
    labels = [*(label.label for label in classifier.labels), OTHER]
    ranked = sorted(range(len(labels)), key=probabilities.__getitem__, reverse=True)
    said = _said(labels, probabilities, ranked)
    if ranked[0] == len(classifier.labels):
        return [], f"base: the classifier {name} said {said}"
    if probabilities[ranked[0]] <= MAJORITY:
        return [], f"base: the classifier {name} was not sure; most likely {said}"
    candidate = classifier.labels[ranked[0]].candidate
    chosen = [expert for expert in request.candidates or [] if expert.name == candidate]
    if not chosen:
        return [], f"base: the classifier {name} said {said}, which the release does not have"
    return chosen, f"the classifier {name} said {said}"


def _too_long(base: BaseModel, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> str | None:
    """Why nothing can be asked about a prompt that leaves no room for the question; None where there is room."""
    room = None if base.context_length is None else base.context_length - max(map(len, answers))
    if room is None or len(prompt) <= room:
        return None
    return f"base: with the question what it is for, the prompt has {len(prompt)} tokens, and {room} fit"


def _said(labels: Sequence[str], probabilities: Sequence[float], ranked: Sequence[int]) -> str:
    """The likeliest label and the one after it, with their probabilities."""
    best, second = ranked[0], ranked[1]
    return f"'{labels[best]}' ({probabilities[best]:.0%}, then '{labels[second]}' {probabilities[second]:.0%})"


def calibrated_probabilities(
    base: BaseModel, prompt: Sequence[int], labels: Sequence[Sequence[int]], prior: Sequence[float]
) -> list[float]:
    """The probability of each label, over what the base gives it whatever the text is; they sum to one.

    A small base names the first label, or the commonest word, for nearly every text. Source: contextual calibration,
    arXiv 2102.09690.
    """
    ratios = [p / q for p, q in zip(label_probabilities(base, prompt, labels), prior, strict=True)]
    return [ratio / sum(ratios) for ratio in ratios]


def _prior(
    base: BaseModel, descriptions: Mapping[str, str], labels: Sequence[Sequence[int]], priors: Priors
) -> list[float]:
    """What the base gives each label where the text is none."""
    key = tuple(descriptions.items())
    if key not in priors:
        if len(priors) >= MAX_PRIORS:
            priors.clear()
        nothing = GenerationRequest.model_construct(messages=[], prompt=NO_TEXT)
        prompt = render_prompt(base, classification_messages(nothing, descriptions))
        # Never zero: it divides.
        priors[key] = [max(p, LEAST_PRIOR) for p in label_probabilities(base, prompt, labels)]
    return priors[key]


def classification_messages(request: GenerationRequest, descriptions: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """The request's conversation, whose last message goes on with the question which label it is for.

    The user's text comes first, so that what the first pass has read is the beginning of what the second reads: its
    keys and values can be used again, and are not if the question comes first. That costs no accuracy that was seen: of
    24 prompts of four tasks, SmolLM2-135M names the right one for 6, and for 7 with the question first.
    """
    choices = "".join(
        f"- {label}: {text}\n" if text != label else f"- {label}\n" for label, text in descriptions.items()
    )
    question = f"\n\nWhich task is this? One of:\n{choices}- {OTHER}\nAnswer with the name of the task only."
    return with_question(_conversation(request), question)


def _conversation(request: GenerationRequest) -> Sequence[dict[str, Any]]:
    return request.messages if request.prompt is None else [{"role": "user", "content": request.prompt}]


def _label(expert: ExpertReference) -> str:
    """The name of its expert, without project and version: ``main.sums@v3`` is ``sums``."""
    return expert.name.partition("@")[0].rpartition(".")[2]
