"""Decoding: prompts in, tokens of one modality out; the same engine for every task.

    prompts -> engine -> rows (the model and its cache) -> search (which token comes next) -> Decoded

`rows` hold the prompts that are decoded side by side: `fast_rows` for Llama and OPT, `transformers_rows` for
every other causal language model. The search is greedy, sampling or beam.
"""

from dmlm.trainer.decoding.config import DecodingConfig
from dmlm.trainer.decoding.constraints import Constraint, constraint_of
from dmlm.trainer.decoding.engine import Decoded, decode

__all__ = ["Constraint", "Decoded", "DecodingConfig", "constraint_of", "decode"]
