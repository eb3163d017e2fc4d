"""The README of an exported folder, as the Hugging Face hub reads it: made of facts about the version."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from zhub.manifest import Evaluation, Manifest
from zhub.specs import BaseModelSource, ExportSpec

CARD_FILE = "README.md"
FACTS_FILE = "zhub.json"
RELATIONS = {"merged": "finetune", "lora": "adapter", "psoft": "adapter"}


def write_card(directory: Path, spec: ExportSpec, manifest: Manifest, facts: dict[str, Any]) -> None:
    """Write ``README.md``, and ``zhub.json`` with the same for programs."""
    told = {"version": spec.name, "digest": spec.digest, "format": spec.format, **facts}
    (directory / FACTS_FILE).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    (directory / CARD_FILE).write_text(card(spec, manifest, facts))


def card(spec: ExportSpec, manifest: Manifest, facts: dict[str, Any]) -> str:
    """The text of the README."""
    header = ModelCardData(
        base_model=spec.base.hub_id,
        base_model_relation=RELATIONS[spec.format] if spec.base.hub_id else None,
        library_name="transformers" if spec.format == "merged" else "peft",
        pipeline_tag="text-generation",
        tags=["zhub", "svf" if _kind(manifest) == "svf" else _kind(manifest)],
        model_name=spec.name,
        eval_results=[_result(evaluation) for evaluation in manifest.evaluations] or None,
    )
    sections = [f"# {spec.name}", _about(spec, manifest), *_measured(manifest), _loading(spec, facts)]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _result(evaluation: Evaluation) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=evaluation.split,
        dataset_name=f"held-out rows: {evaluation.split}",
        metric_type="mean_reward",
        metric_value=round(evaluation.expert.mean, 6),
        metric_name=f"mean reward (base: {evaluation.base.mean:.4f}, n = {evaluation.expert.n})",
    )


def _about(spec: ExportSpec, manifest: Manifest) -> str:
    rows = [
        ("version", f"`{spec.name}`, sha256 `{spec.digest}`"),
        ("base", _base(spec.base)),
        ("weights of the base", f"fingerprint `{manifest.weights_fingerprint}`"),
        ("kind", _kind(manifest)),
        ("trained", f"{manifest.recipe}, {manifest.steps} steps, by zhub {manifest.code_version}"),
        ("dataset", f"sha256 `{manifest.dataset_digest}`" if manifest.dataset_digest else "not known"),
        ("numbers", f"{manifest.parameters:,}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _base(base: BaseModelSource) -> str:
    return f"`{base.hub_id}` at `{base.hub_revision}`" if base.hub_id else f"`{base.name}`"


def _measured(manifest: Manifest) -> list[str]:
    if not manifest.evaluations:
        return []
    rows = [
        f"| {of.split} | {of.expert.n} | {of.base.mean:.4f} [{of.base.low:.4f}, {of.base.high:.4f}] "
        f"| {of.expert.mean:.4f} [{of.expert.low:.4f}, {of.expert.high:.4f}] | {of.p_value:.3g} |"
        for of in manifest.evaluations
    ]
    head = ["| rows | n | base [95 %] | expert [95 %] | p |", "|---|---:|---|---|---:|"]
    return ["\n".join(["Mean rewards on rows that it was not trained on:", "", *head, *rows])]


def _loading(spec: ExportSpec, facts: dict[str, Any]) -> str:
    base = spec.base.hub_id or f"<directory of {spec.base.name}>"
    match spec.format:
        case "merged":
            error = facts["rounding_error"]
            return (
                "The weights are those of the base with the expert folded in, each tensor in the dtype of the base's "
                f"files. Rounding to it takes them {error['of_change']:.3g} of what the expert adds away from that, "
                f"and {error['of_weights']:.3g} of the weights.\n\n"
                '```python\nmodel = AutoModelForCausalLM.from_pretrained("<this directory>")\n```'
            )
        case "lora":
            error = facts["error"]
            exact = "It is the expert, up to rounding." if not error["weights"] else (
                f"It is the best approximation of rank {facts['rank']}: {error['weights']:.3g} of the change of the "
                "weights is left out, in the Frobenius norm."
            )  # fmt: skip
            measured = (
                f" On a few prompts its logits are off by {error['logits']:.3g} of the distance between base and "
                f"expert, and its answers by {error['mean_kl']:.3g} nats a token (at most {error['max_kl']:.3g})."
            )
            return f"{exact}{measured}\n\n{_peft(base, ['.'])}"
        case _:
            return (
                "These are PSOFT adapters of peft 0.21 or later, and exactly the expert: the rotations are zeros, and "
                "`vector_b` holds its multipliers. PEFT computes the singular vectors again when it loads them. "
                "Compare with `probe.safetensors`, which has log-probabilities of next tokens after a few prompts.\n\n"
                f"{_peft(base, facts['adapters'])}"
            )


def _peft(base: str, folders: list[str]) -> str:
    """How PEFT loads an adapter, or several that are active together."""
    first, *others = folders
    within = "" if first == "." else f', subfolder="{first}"'
    lines = [
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "<this directory>"{within})',
        *(f'model.load_adapter("<this directory>", "{folder}", subfolder="{folder}")' for folder in others),
    ]
    if others:
        active = json.dumps(["default", *others])
        lines.append(f"model.base_model.set_adapter({active})  # each of other matrices")
    return "\n".join(["```python", *lines, "```"])


def _kind(manifest: Manifest) -> str:
    return str(manifest.hyperparameters.get("adapter", "svf"))
