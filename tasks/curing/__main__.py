"""`python -m tasks.curing job.json`: the base answers general prompts in a process of its own."""

from infra import stage_process
from tasks.curing.answering import answer

if __name__ == "__main__":
    stage_process.main(answer)
