"""The guards of what a classifier learns from and of whom it lets answer."""

from mutant import Mutant

ROWS, REGISTRY = "workers/zhub_workers/worker/classification_rows.py", "platform/zhub/registry"
STRATEGIES = "workers/zhub_workers/serving/strategies.py"
ON_ROWS = ("tests/unit/worker/test_classification_rows.py",)
ON_CHOICES = ("tests/unit/serving/test_classifier.py",)
ON_RELEASES = ("tests/integration/registry/test_classifiers.py",)

MUTANTS = (
    Mutant(
        "a classifier learns from no prompt that was held out",
        ROWS,
        'validation)["train"]',
        'validation)["validation"]',
        ON_RELEASES,
    ),
    Mutant(
        "a classifier learns from no prompt that several labels have",
        ROWS,
        "if count > 1}",
        "if count > 99}",
        ON_ROWS,
    ),
    Mutant(
        "a classifier learns from no prompt to evaluate with",
        ROWS,
        " | set(excluded)",
        "",
        ON_ROWS,
    ),
    Mutant(
        "what a classifier is not sure of is the base's",
        STRATEGIES,
        "probabilities[ranked[0]] <= MAJORITY",
        "probabilities[ranked[0]] <= 0",
        ON_CHOICES,
    ),
    Mutant(
        "the question is asked of the classifier and not of the base",
        STRATEGIES,
        "[held.change(adapted, classifier.expert)]",
        "[type(held.change(adapted, classifier.expert))()]",
        ON_CHOICES,
    ),
    Mutant(
        "a classifier knows every expert of its release",
        f"{REGISTRY}/release_versions.py",
        "if pin.record.expert.id not in known]",
        "if not known]",
        ON_RELEASES,
    ),
    Mutant(
        "a release's digest has its classifier",
        f"{REGISTRY}/release_versions.py",
        'content["classifier"] = classifier.version.digest',
        "pass",
        ON_RELEASES,
    ),
)
