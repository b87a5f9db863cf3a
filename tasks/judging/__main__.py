"""`python -m tasks.judging job.json`: ask a local judge in a process of its own."""

from infra import stage_process
from tasks.judging.local import run

if __name__ == "__main__":
    stage_process.main(run)
