"""Shards: plain WebDataset tars, a Parquet index beside each, and a card that vouches for all of them.

Writing: `write_shard`, `write_dataset_card`. Reading, without torch: `load_dataset_card` says what there is,
`open_shard` gives random access, `iter_samples` everything in order. `verify_dataset` reads every byte.
"""

from dmlm.pipeline.shards.card import (
    CODEBOOK_NAME,
    DatasetCard,
    DatasetTotals,
    ShardRecord,
    load_dataset_card,
    write_dataset_card,
)
from dmlm.pipeline.shards.format import TokenCounts, TokenMember
from dmlm.pipeline.shards.index import ShardFooter
from dmlm.pipeline.shards.reading import ShardReader, iter_samples, open_shard
from dmlm.pipeline.shards.verifying import VerifyReport, verify_dataset
from dmlm.pipeline.shards.writing import FinishedShard, finished_shard, write_shard

__all__ = [
    "CODEBOOK_NAME",
    "DatasetCard",
    "DatasetTotals",
    "FinishedShard",
    "ShardFooter",
    "ShardReader",
    "ShardRecord",
    "TokenCounts",
    "TokenMember",
    "VerifyReport",
    "finished_shard",
    "iter_samples",
    "load_dataset_card",
    "open_shard",
    "verify_dataset",
    "write_dataset_card",
    "write_shard",
]
