"""Objects as the API answers with them."""

import hashlib
from typing import Any

from zhub.manifest import Accuracy, Evaluation, FileEntry, Manifest

Z = b"the multipliers" * 100
ROUTING = b"the centroid" * 50
KEY = "zhub_" + "0" * 12 + "_" + "k" * 43
EXPERT = "default.sorting@v1"

MANIFEST = Manifest(
    base_model="zhub-tiny",
    base_source="files",
    weights_fingerprint="aa" * 32,
    basis_fingerprint="bb" * 32,
    dataset_digest="cc" * 32,
    validation_digest=None,
    job_id="00",
    fence=1,
    recipe="reinforcement",
    hyperparameters={},
    grader=None,
    seed=1,
    code_version="0.1.0",
    hardware="cpu",
    best_step=40,
    steps=40,
    parameters=3072,
    evaluations=[
        Evaluation(
            split="test",
            base=Accuracy(mean=0.25, low=0.2, high=0.3, n=200),
            expert=Accuracy(mean=0.75, low=0.7, high=0.8, n=200),
            p_value=1e-12,
        )
    ],
    parent_digest=None,
    files=[
        FileEntry(name="z.safetensors", size_bytes=len(Z), sha256=hashlib.sha256(Z).hexdigest()),
        FileEntry(name="routing.safetensors", size_bytes=len(ROUTING), sha256=hashlib.sha256(ROUTING).hexdigest()),
    ],
)

JOB = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "created_at": 1_700_000_000,
    "finished_at": 1_700_000_100,
    "model": "zhub-tiny",
    "fine_tuned_model": EXPERT,
    "status": "succeeded",
    "error": None,
    "training_file": "file-1",
    "method": {"type": "reinforcement", "reinforcement": {"hyperparameters": {"n_steps": 2}}},
    "hyperparameters": {"n_steps": 2},
    "seed": 1,
    "suffix": "sorting",
    "attempts": 1,
    "cluster": "default",
    "priority": 0,
}

ESTIMATE = {
    "expert": "default.sums",
    "method": JOB["method"],
    "seed": 1,
    "workers": 1,
    "shares_a_worker": True,
    "expected_seconds": 3700.0,
    "shortest_seconds": 3000.0,
    "longest_seconds": 4000.0,
    "expected_worker_seconds": 3700.0,
    "expected_tokens": 1_234_567,
    "based_on": {"trainings": 3, "same_size": True},
}
TOKEN_COUNT = dict[str, Any](status="counted", error=None, context_length=64, long_row_count=0, long_rows=[])
CHECKPOINT = {
    "id": "ftckpt-1",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1_700_000_050,
    "fine_tuned_model_checkpoint": "default.sorting@ftjob-1:step-20",
    "fine_tuning_job_id": "ftjob-1",
    "metrics": {"step": 20, "valid_reward_mean": 0.625},
    "step_number": 20,
    "size_bytes": 24_000,
}

SECRET = "whsec_c2VjcmV0"
ENDPOINT = {
    "id": "whe-1",
    "created_at": 1_700_000_400,
    "name": "ours",
    "url": "https://hook.example.com/",
    "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
    "status": "enabled",
    "status_details": None,
    "signing_secret_hint": "whsec_…cmV0",
}
DELIVERY = {
    "id": "whd-1",
    "created_at": 1_700_000_500,
    "event_id": "evt-1",
    "event_type": "fine_tuning.job.succeeded",
    "data": {"id": "ftjob-1"},
    "status": "pending",
    "next_try_at": 1_700_000_900,
    "attempts": [
        {"at": 1_700_000_600, "status_code": 503, "error": None, "duration_s": 0.1, "next_try_at": 1_700_000_900}
    ],
}

RESULTS = {"mean": 0.75, "low": 0.7, "high": 0.8, "n": 200, "parse_failures": 3, "pass_at_k": 0.9}
EVALUATION: dict[str, Any] = {
    "id": "eval-1",
    "object": "evaluation",
    "created_at": 1_700_000_200,
    "finished_at": 1_700_000_300,
    "status": "succeeded",
    "error": None,
    "cluster": "default",
    "model": EXPERT,
    "file": "file-1",
    "suite": {
        "file": {"name": "suite.jsonl", "sha256": "dd" * 32},
        "grader": {"type": "string_check", "name": "answer"},
        "max_new_tokens": 64,
        "k": 2,
        "n": 4,
        "temperature": 1.0,
        "seed": 0,
    },
    "suite_digest": "ee" * 32,
    "results": RESULTS,
    "warnings": [],
    "others": [
        {
            "id": "eval-2",
            "model": "zhub-tiny",
            "status": "succeeded",
            "results": RESULTS | {"mean": 0.25, "low": 0.2, "high": 0.3, "pass_at_k": 0.4},
            "comparison": {
                "difference": 0.5,
                "low": 0.42,
                "high": 0.58,
                "p_value": 1e-12,
                "n": 200,
                "verdict": "better",
                "sentence": f"{EXPERT} is better than zhub-tiny.",
            },
        }
    ],
}

FEEDBACK = {
    "id": "fb-1",
    "object": "feedback",
    "created_at": 1_700_000_250,
    "model": EXPERT,
    "messages": [{"role": "user", "content": 'Sort the letters of "ba".'}],
    "completion": "ba",
    "score": -1.0,
    "reference": "ab",
    "comment": None,
}

PROMOTION = {
    "id": "promo-1",
    "object": "promotion",
    "created_at": 1_700_000_300,
    "finished_at": 1_700_000_400,
    "status": "succeeded",
    "error": None,
    "model": EXPERT,
    "training_job": None,
    "alias": "prod",
    "gate": {"alias": "prod", "rule": "better", "suites": [{"file": "file-1", "grader": {}, "min_mean": None}]},
    "promoted": False,
    "findings": [
        {"file": "suite.jsonl", "passed": False, "sentences": ["The difference to zhub-tiny is inside the noise."]}
    ],
}
ALIAS = {
    "id": "default.sorting@prod",
    "object": "expert.alias",
    "alias": "prod",
    "version": EXPERT,
    "moved_at": 1_700_000_400,
}
MOVE = {
    "id": "move-1",
    "created_at": 1_700_000_400,
    "from": None,
    "to": EXPERT,
    "by": "promo-1",
    "reason": "passed its gate",
}
SCHEDULE = {
    "id": "sched-1",
    "object": "schedule",
    "created_at": 1_700_000_500,
    "name": "weekly",
    "dataset": "rows",
    "training": {"model": "zhub-tiny", "method": {"type": "reinforcement"}, "promotion": {"rule": "better"}},
    "cron": "0 3 * * 1",
    "timezone": "Europe/Paris",
    "on_new_data": True,
    "on_regression": None,
    "on_feedback": 100,
    "new_feedback": 37,
    "misfire": "fire_once",
    "overlap": "buffer_one",
    "jitter_s": 0,
    "failures": 3,
    "max_failures": 3,
    "status": "paused",
    "paused_because": "3 runs in a row failed, the last one: It broke.",
    "next_runs": [],
}
TICK = {
    "id": "tick-1",
    "created_at": 1_700_000_600,
    "tick": "2023-11-20T02:00:00Z",
    "outcome": "fired",
    "message": None,
    "job": "ftjob-1",
}
