"""dmlm: corpora to discrete tokens, once and offline; one language model trained on them."""

__version__ = "0.1.0"
