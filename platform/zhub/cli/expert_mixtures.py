"""What is shown of a version that a few-shot search mixed."""

from zhub.manifest import MixedExpert, Mixture

WHERE = {"global": "", "layer": " in {} layers", "matrix": " in {} matrices"}


def facts_of(mixture: Mixture) -> list[tuple[str, str]]:
    """Whose multipliers were mixed, with which weights, and on how many rows that was searched."""
    lines = ", ".join(map(str, sorted(mixture.shots)))
    return [
        ("mixture of", "\n".join(_part(expert, mixture) for expert in mixture.experts)),
        ("searched on", f"{len(mixture.shots)} shots, lines {lines} of the dataset"),
    ]


def _part(expert: MixedExpert, mixture: Mixture) -> str:
    weights = list(expert.weights.values())
    low, high = f"{min(weights):.3g}", f"{max(weights):.3g}"
    share = low if low == high else f"{low} to {high}"
    return f"{share}{WHERE[mixture.granularity].format(len(weights))} of {expert.name} (sha256:{expert.digest})"
