"""Sample corpora made without any download: what `dmlm-cli sample` writes."""
