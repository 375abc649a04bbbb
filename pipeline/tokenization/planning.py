"""What `tokenize` is asked for, and the plan that follows: which shards, made with which tokenizers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.samples import Modality, SourceItem, TextLine, UnitLine, Utterance
from dmlm.pipeline.shards.format import FORMAT_VERSION
from dmlm.pipeline.sources import DEFAULT_OPTIONS, Source, SourceOptions, describe_options, open_source
from dmlm.pipeline.tokenization.completeness import nothing_to_tokenize
from dmlm.pipeline.tokenization.item_encoding import ItemEncoder, require
from dmlm.pipeline.tokenization.shard_tasks import Recipe, ShardTask, plan_shards, task_sha256
from dmlm.pipeline.tokenizers.choosing import AS_IN_CODEBOOK, TokenizerChoice, check_idle_choice
from dmlm.pipeline.tokenizers.pretrained import TRANSFORMERS
from dmlm.pipeline.tokenizers.registry import load_tokenizers
from dmlm.pipeline.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What to tokenize, with what, into which folder."""

    source: str
    root: Path
    """Folder that holds the corpus folder, or the corpus folder itself."""
    codebook_dir: Path | None
    """None: every tokenizer needed is in `choice`."""
    out_dir: Path
    remote: RemoteFolder | None = None
    """Where the data set is published; `out_dir` is its mirror then."""
    choice: TokenizerChoice = AS_IN_CODEBOOK
    unit_backend: str = TRANSFORMERS
    """What computes the Seamless codec."""
    splits: tuple[str, ...] | None = None
    """None: all."""
    options: SourceOptions = DEFAULT_OPTIONS
    limit: int | None = None
    """Items of each split to take, from its first; None: all."""
    samples_per_shard: int = 1000
    """A kill costs at most the work of one shard; training wants many more shards than readers."""
    device: str = "auto"
    reuse_dir: Path | None = None
    """Data set of the same items to take the tokens from whose tokenizer is the same."""

    def __post_init__(self) -> None:
        for name in ("limit", "samples_per_shard"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}, must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TokenizePlan:
    """All that a run does: which tasks, with which tokenizers."""

    encoder: ItemEncoder
    recipe: Recipe
    vocabulary: Vocabulary
    tasks: Mapping[str, ShardTask]
    """By the sha256 of what the shard is made from, in order."""

    @property
    def modalities(self) -> set[Modality]:
        """Parts of the codebook that the data set is made with."""
        ready_made = {Modality.SPEECH} if self.encoder.units else set()
        return {Modality(name) for name in self.recipe["fingerprints"]} - ready_made


def plan_tokenization(config: TokenizeConfig, codebook_dir: Path) -> TokenizePlan:
    """Opens the source and the tokenizers that it needs, and says which shards there will be.

    Raises:
        ConfigError: The corpus or a tokenizer is not there, or there is nothing to tokenize.
    """
    tokenizers = load_tokenizers(codebook_dir, config.device, config.unit_backend)
    source = open_source(config.source, config.root, config.splits, config.options)
    _check_names(source.splits)
    items = list(source.iter_items(config.limit))
    tasks = plan_shards(config.source, items, config.samples_per_shard)
    has_speech = any(task.utterances for task in tasks)
    has_images = any(task.image_paths for task in tasks)
    units = next((item.inventory for item in items if isinstance(item, UnitLine)), None)
    has_texts = any(isinstance(item, TextLine) for item in items)
    if not (has_speech or has_images or units or has_texts):
        raise nothing_to_tokenize(config.source, config.root, items)
    check_idle_choice(config.choice, config.unit_backend, config.source, has_speech, has_images)
    encoder = ItemEncoder(
        speech=require(tokenizers.speech, Modality.SPEECH) if has_speech else None,
        image=require(tokenizers.image, Modality.IMAGE) if has_images else None,
        text=tokenizers.text,
        text_rule=source.text_rule,
        units=units,
    )
    recipe = {
        "format_version": FORMAT_VERSION,
        "settings": _settings(config, source, items),
        "text_rule": source.text_rule,
        "fingerprints": encoder.fingerprints,
    }
    return TokenizePlan(
        encoder=encoder,
        recipe=recipe,
        vocabulary=encoder.vocabulary,
        tasks={task_sha256(task, recipe): task for task in tasks},
    )


def _check_names(splits: Iterable[str]) -> None:
    """Raises ConfigError for a split named by a file or folder whose name is not UTF-8."""
    for split in splits:
        if (shown := split.encode(errors="backslashreplace").decode()) != split:
            raise ConfigError(
                f"split {shown}: the name of its file or folder is not UTF-8; rename it, or "
                "name other splits by --split"
            )


def _settings(config: TokenizeConfig, source: Source, items: Iterable[SourceItem]) -> dict[str, Any]:
    """Settings as resolved: what was left open is filled in."""
    pairs = {
        f"{item.language}_{item.translation_language}"
        for item in items
        if isinstance(item, Utterance) and item.translation
    }
    return {
        "source": config.source,
        "splits": list(source.splits),
        **({"revision": source.revision} if source.revision else {}),
        **describe_options(config.options),
        "lang_pair": pairs.pop() if len(pairs) == 1 else None,
        "limit": config.limit,
        "samples_per_shard": config.samples_per_shard,
    }
