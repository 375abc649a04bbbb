"""Corpus to data set: plan, independent shard tasks, publish; what was bad is in a ledger."""
