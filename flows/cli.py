"""The `tunefleet` command. Heavy libraries are imported by the verb that needs them, never by `--help`.

stdout carries the answer, stderr the progress. Exit codes: 0 done and all gates passed; 2 the request is wrong;
3 finished, but some adapter failed its gate or was inconclusive; 1 anything else; 130 interrupted.
"""

import sys

import cyclopts

from flows.commands import recipes, results
from infra.errors import RequestError, TunefleetError

app = cyclopts.App(
    name="tunefleet",
    help="Train a fleet of LoRA adapters, prove that they learned and forgot nothing, publish those that passed.",
    version_flags=["--version"],
)
for verb in (recipes.run, recipes.validate, recipes.preview, recipes.plan, recipes.init, recipes.schema, results.flips):
    app.command(verb)


def main() -> None:
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
