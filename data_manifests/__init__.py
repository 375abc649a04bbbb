"""Manifests (YAML) of corpora and weights, read by `dmlm.pipeline.manifests`."""
