"""The general tasks: what a base model could do before training and an adapter must still be able to do after it.

They are ordinary lm-eval tasks that need no network: `lm_eval --include_path` on this folder runs them unchanged.
Beside each YAML stands the module that makes its documents. lm-eval loads such a module by its path and not as part
of this package, so none of them imports another one, and their dataset functions take (and ignore) keyword arguments:
lm-eval passes the task's metadata to them.
"""
