"""Corpora to tokens to shards: everything that runs once, offline, before training."""
