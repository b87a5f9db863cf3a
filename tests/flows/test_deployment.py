"""The deployment's parameters; that it runs is shown in tests/cluster."""

import json
import subprocess
import sys

from infra.settings import PROJECT


def test_the_deployment_takes_a_recipe_as_its_parameter() -> None:
    """What the Prefect UI shows as a form: the recipe's own schema."""
    code = (
        "from flows.train_adapters import train_adapters; import json;"
        "print(json.dumps(train_adapters.parameters.model_dump()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    parameters = json.loads(done.stdout)
    assert {"Recipe", "Adapter", "Lora", "Training"} <= parameters["definitions"].keys()
    assert "recipe" in parameters["properties"]
