"""Which credentials are present, by the names of their sources: never what they are, and nobody is asked about them."""

import os
from collections.abc import Iterator

from tasks.operations.doctor.apart import first_line
from tasks.operations.doctor.finding import Finding, absent, fault, ok

# Others that a run may need: the variable, and what for.
OTHERS = {
    "OPENAI_API_KEY": "a judge",
    "WANDB_API_KEY": "Weights & Biases",
    "MLFLOW_TRACKING_URI": "MLflow",
    "PREFECT_API_AUTH_STRING": "a Prefect server",
    "PREFECT_API_KEY": "Prefect Cloud",
}


def hugging_face() -> Iterator[Finding]:
    from huggingface_hub import get_token

    if get_token() is None:
        advice = "set HF_TOKEN, or run: hf auth login"
        yield absent("Hugging Face", "no token; gated models and publishing to the Hub need one", advice)
        return
    named = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    yield ok("Hugging Face", f"a token from {named[0] if named else 'the file that `hf auth login` wrote'}")


def aws() -> Iterator[Finding]:
    """By boto3's own chain, which an S3 store and S3 destinations use too."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = f"; for {endpoint} (AWS_ENDPOINT_URL)" if endpoint else ""
    try:
        found = boto3.Session().get_credentials()
    except (BotoCoreError, ClientError) as error:
        yield fault("AWS", f"the set-up is broken: {first_line(error)}", "correct AWS_PROFILE, or ~/.aws/config")
        return
    if found is None:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        yield absent("AWS", f"no credentials; a store or a destination on S3 needs some{where}", advice)
        return
    source = {"env": "the environment", "shared-credentials-file": "the shared credentials file"}
    profile = f", profile {os.environ['AWS_PROFILE']}" if os.environ.get("AWS_PROFILE") else ""
    yield ok("AWS", f"credentials from {source.get(found.method, found.method)}{profile}{where}")


def others() -> Iterator[Finding]:
    present = [f"{name} ({what})" for name, what in OTHERS.items() if os.environ.get(name)]
    if present:
        yield ok("other secrets", f"set: {', '.join(present)}")


def look_at_credentials() -> Iterator[Finding]:
    yield from hugging_face()
    yield from aws()
    yield from others()
