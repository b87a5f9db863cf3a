"""The `tunefleet` command. Heavy libraries are imported by the verb that needs them, never by `--help`.

stdout carries the answer, stderr the progress. Exit codes: 0 done and all gates passed; 2 the request is wrong;
3 finished, but some adapter failed its gate or was inconclusive; 1 anything else; 130 interrupted.
"""

import signal
import sys
from collections.abc import Callable

import cyclopts

from flows.commands import (
    dashboards,
    deployments,
    exporting,
    merging,
    operations,
    publishing,
    recipes,
    releases,
    results,
    serving,
)
from infra.errors import RequestError, TunefleetError

app = cyclopts.App(
    name="tunefleet",
    help="Train a fleet of LoRA adapters, prove that they learned and forgot nothing, publish those that passed.",
    version_flags=["--version"],
)
VERBS: dict[str, dict[str, Callable[..., int]]] = {
    "Recipes": {
        **{"run": recipes.run, "validate": recipes.validate, "preview": recipes.preview, "plan": recipes.plan},
        **{"init": recipes.init, "schema": recipes.schema},
    },
    "Results": {
        **{"dashboard": dashboards.dashboard, "flips": results.flips},
        **{"compare": serving.compare, "chat": serving.chat},
    },
    "Releases": {
        **{"publish": publishing.publish, "list": releases.list_releases, "show": releases.show_release},
        **{"promote": releases.promote_release, "rollback": releases.rollback_release},
        **{"verify": releases.verify_release, "gc": releases.collect_garbage, "vllm": serving.vllm},
    },
    "Cluster": {"deploy": deployments.deploy, "doctor": operations.doctor},
    "By hand": {"merge": merging.merge, "export": exporting.export},
}
for group, verbs in VERBS.items():
    in_this_order = cyclopts.Group.create_ordered(group)
    for name, verb in verbs.items():
        app.command(verb, name=name, group=in_this_order)
app.command(deployments.deployment)


def main() -> None:
    # Ended by SIGTERM, every verb cleans up behind itself, as when it is interrupted; Prefect hands the signal on to
    # whoever handled it before, and its temporary server would outlive the default.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        code = app(result_action="return_value")
    except RequestError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TunefleetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
