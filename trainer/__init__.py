"""Shards to a trained model, and the model to transcripts and scores."""
