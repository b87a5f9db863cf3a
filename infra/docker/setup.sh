#!/bin/sh
# What a new cluster needs before its first run, and an old one keeps: the bucket, work pools, deployments, automations.
set -eu
python - <<'PYTHON'
import os

import boto3

bucket = os.environ["TUNEFLEET_STORE"].removeprefix("s3://").split("/")[0]
s3 = boto3.client("s3")
if bucket not in [known["Name"] for known in s3.list_buckets()["Buckets"]]:
    s3.create_bucket(Bucket=bucket)
PYTHON
exec tunefleet deploy
