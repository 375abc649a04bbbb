"""Shares as tasks of an existing Ray cluster, whose machines all see the same folders.

Ray starts the tasks of a lost machine again on another one; what was finished is kept.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import MissingDependencyError, RankError
from dmlm.pipeline.sources.hub import HUB
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize_share
from dmlm.pipeline.tokenizers.pretrained import absolute_name

MAX_RETRIES: Final = 10
"""How often a task may lose its machine."""


def run_on_ray(config: TokenizeConfig, num_shares: int | None, address: str) -> None:
    """Finishes all shards in `num_shares` tasks; None: one per GPU of the cluster, or per processor.

    Raises:
        MissingDependencyError: Ray is not installed.
        RankError: The cluster does not answer, or a task could not be brought to its end.
        DmlmError, OSError: What `tokenize_share` raised in a task.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise MissingDependencyError('--engine ray needs Ray: pip install "dmlm[ray]"') from None
    try:
        ray.init(address=address, log_to_driver=False)
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0)) if config.device != "cpu" else 0
        count = num_shares or num_gpus or int(resources["CPU"])
        share = ray.remote(num_gpus=min(num_gpus, 1), max_retries=MAX_RETRIES)(tokenize_share)
        ray.get([share.remote(_absolute(config), index, count) for index in range(count)])
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, ConnectionError) as error:
        raise RankError(f"Ray at {address}: {error}; run the same command again") from error
    finally:
        ray.shutdown()


def _absolute(config: TokenizeConfig) -> TokenizeConfig:
    """The same paths, for machines that are in another folder."""
    speech, image, text = config.choice.speech, config.choice.image, config.choice.text
    choice = replace(
        config.choice,
        speech=speech and absolute_name(speech),
        image=image and absolute_name(image),
        text=str(Path(text).resolve()) if text and Path(text).exists() else text,
    )
    return replace(
        config,
        choice=choice,
        root=config.root if str(config.root).startswith(HUB) else config.root.resolve(),
        codebook_dir=config.codebook_dir and config.codebook_dir.resolve(),
        out_dir=config.out_dir.resolve(),
        reuse_dir=config.reuse_dir and config.reuse_dir.resolve(),
    )
