"""The guards of base models, files, versions and places, and those of a training against its own steps."""

from mutant import Mutant

BASES, DELETION = "platform/zhub/registry/base_models.py", "platform/zhub/registry/deletion.py"
TRUST_REGION, COURSE, TRAINER = (
    "workers/zhub_workers/training/trust_region.py",
    "workers/zhub_workers/training/course.py",
    "workers/zhub_workers/training/trainer.py",
)
ON_BASES = ("tests/integration/api/test_base_models.py",)
ON_DELETION = ("tests/integration/registry/test_deletion.py",)
ON_STEPS = ("tests/unit/training/test_trust_region.py",)
ON_COURSE = ("tests/unit/training/test_course.py",)
SEARCH = "workers/zhub_workers/training/few_shot.py"
ON_SEARCH = ("tests/unit/training/test_few_shot.py",)

MUTANTS = (
    Mutant(
        "an upload of a base is its organisation's",
        BASES,
        "if base.owner_org_id != caller.org_id:",
        "if base.owner_org_id is None:",
        ON_BASES,
    ),
    Mutant(
        "an upload that broke off is begun again by its organisation alone",
        BASES,
        "return base.owner_org_id in (None, caller.org_id)",
        "return True",
        ON_BASES,
    ),
    Mutant(
        "a base for everybody is an operator's right",
        BASES,
        "    if not private:\n        caller.require(OPERATOR_SCOPE)\n",
        "",
        ON_BASES,
    ),
    Mutant(
        "a training waits until its base is decomposed",
        "platform/zhub/training/bases.py",
        "WHERE b.status IN ('ready', 'error')",
        "WHERE b.status IN ('ready', 'error', 'decomposing')",
        ("tests/integration/queue/test_undecomposed_bases.py",),
    ),
    Mutant(
        "no training waits for a base that serves only",
        "platform/zhub/training/bases.py",
        "elif refusal := _refusal(base):",
        'elif refusal := "":',
        ("tests/integration/queue/test_undecomposed_bases.py",),
    ),
    Mutant(
        "a version that something needs is not deleted",
        DELETION,
        '    needs.refuse(needs.of_versions(session, expert, _kept(which), "delete", by=_by(caller)))\n',
        "",
        ON_DELETION,
    ),
    Mutant(
        "nothing comes to need a version that is deleted meanwhile",
        "platform/zhub/registry/versions.py",
        "            .where(ExpertVersion.deleted_at.is_(None))\n            .with_for_update(read",
        "            .with_for_update(read",
        ON_DELETION,
    ),
    Mutant(
        "bytes stay while another version has them",
        DELETION,
        "if version.id not in kept:",
        "if version.id:",
        ON_DELETION,
    ),
    Mutant(
        "what still has to run keeps its file",
        "platform/zhub/datasets/usage.py",
        "    if not also_trained:\n        needs += _versions",
        "    if also_trained:\n        needs = []\n    else:\n        needs += _versions",
        ("tests/integration/api/test_file_usage.py",),
    ),
    Mutant(
        "an organisation holds no more places than its share",
        "platform/zhub/process/shares.py",
        "if self._held[org_id] >= self._per_org:",
        "if False:",
        ("tests/integration/api/test_shares.py",),
    ),
    Mutant(
        "who grades leaves processes to others",
        "platform/zhub/graders/processes.py",
        "most = max(1, self._places // 2)",
        "most = self._places",
        ("tests/unit/graders/test_bounds.py", "-k", "one_owner"),
    ),
    Mutant(
        "a step that is too long is shortened",
        TRUST_REGION,
        "while caused > TOLERANCE * bound:",
        "while caused > math.inf:",
        ON_STEPS,
    ),
    Mutant(
        "the rate follows a step that was shortened",
        TRUST_REGION,
        "return rate * max(step.share, LEAST_SHARE)",
        "return rate",
        ON_STEPS,
    ),
    Mutant(
        "two bad steps are a collapse",
        COURSE,
        "self.bad_steps = self.bad_steps + 1 if problem else 0",
        "self.bad_steps = 1 if problem else 0",
        ON_COURSE,
    ),
    Mutant(
        "a collapse goes back to the best parameters",
        TRAINER,
        "                state.parameters[name].copy_(value)\n",
        "                pass\n",
        ON_COURSE,
    ),
    Mutant(
        "a policy that collapses again and again ends its training",
        TRAINER,
        "if state.course.rollbacks > MAX_ROLLBACKS:",
        "if state.course.rollbacks > 1000 * MAX_ROLLBACKS:",
        ON_COURSE,
    ),
    Mutant(
        "each expert alone is a candidate before anything is drawn",
        SEARCH,
        "return [base, *alone, Candidate(mean.name, bounded)]",
        "return [base, Candidate(mean.name, bounded)]",
        ON_SEARCH,
    ),
    Mutant(
        "the best mixture so far keeps its place in the population",
        SEARCH,
        'candidates = torch.cat([search["leader"].unsqueeze(0), drawn])',
        "candidates = torch.cat([drawn[:1], drawn])",
        ON_SEARCH,
    ),
    Mutant(
        "a search that tells no mixtures apart ends",
        SEARCH,
        'search["alike"] = torch.tensor([float(min(rewards) == max(rewards))], dtype=torch.float64)',
        'search["alike"] = torch.tensor([0.0], dtype=torch.float64)',
        ON_SEARCH,
    ),
    Mutant(
        "no mixture is worse than the base on validation rows",
        SEARCH,
        "if fmean(rewards) > fmean(state.best_rewards):",
        "if rewards:",
        ON_SEARCH,
    ),
    Mutant(
        "weights keep to their bounds",
        "workers/zhub_workers/training/cem.py",
        ".clamp(low, high)",
        "",
        ("tests/unit/training/test_cem.py",),
    ),
    Mutant(
        "a mixture that blows up is no other's error",
        "workers/zhub_workers/compute/batches.py",
        " and not isinstance(o, NonFiniteLogitsError)",
        "",
        ("tests/unit/compute/test_each.py",),
    ),
    Mutant(
        "each group of matrices has gradient weights of its own",
        "workers/zhub_workers/model/gradient_mixture.py",
        "totals = helping.sum(0)",
        "totals = helping.sum()",
        ("tests/unit/model/test_gradient_mixture.py",),
    ),
    Mutant(
        "multipliers of another basis are not mixed",
        "platform/zhub/training/few_shot.py",
        'record.version.manifest["basis_fingerprint"] != basis.basis_fingerprint:',
        'record.version.manifest["basis_fingerprint"] == "":',
        ("tests/integration/api/test_few_shot_requests.py",),
    ),
)
