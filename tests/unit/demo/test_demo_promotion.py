"""What the demo promotes, for ``auto`` to choose from."""

import api_double
import api_examples
import pytest

from zhub.client import Client
from zhub.demo.plans import tiny_plan
from zhub.demo.walk import Course, promote

PROD = "/v1/experts/default.sorting/aliases/prod"


@pytest.mark.parametrize(("gain", "promoted"), [(0.5, True), (0.0, False), (-0.1, False)])
def test_the_demo_promotes_what_is_better_than_the_base_on_held_out_rows(gain: float, promoted: bool) -> None:
    api = api_double.Api()
    with api_double.served(api) as url, Client(url, api_examples.KEY) as client:
        version = client.experts.get("default.sorting@v1")
        (test,) = (entry for entry in version.manifest["evaluations"] if entry["split"] == "test")
        test["expert"]["mean"] = test["base"]["mean"] + gain
        promote(client, Course(next(task for task in tiny_plan().tasks if task.name == "sorting"), version=version))
    assert api.bodies("PUT", PROD) == ([{"version": "default.sorting@v1", "reason": None}] if promoted else [])
