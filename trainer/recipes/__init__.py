"""Training recipes (YAML), read by `dmlm.trainer.config`."""
