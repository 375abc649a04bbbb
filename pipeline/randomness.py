"""Every consumer of randomness gets a generator of its own, named after its purpose."""

import hashlib

import numpy as np


def generator_for(seed: int, *names: str | int) -> np.random.Generator:
    """Random generator that depends on `seed` and `names` only, never on call order.

    Example: `generator_for(seed, "stream", epoch, shard_name)`.
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
