"""Recipes: what a training run does, as strict YAML; and TrainConfig: one run of a recipe.

YAML -> Recipe -> TrainConfig -> `loop.train`. A recipe fixes every number of a run but its data and its seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.strict_config import build_strictly
from dmlm.trainer.recipe_rules import check_recipe

TaskName = Literal["asr", "s2tt", "t2s", "i2t", "speech", "text", "image"]
TrackerName = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A language model from scratch, or a pretrained one."""

    architecture: Literal["opt", "llama"] = "opt"
    """Of a model from scratch. OPT is the paper's; Llama's rotary positions learn to listen from far less."""
    init: str | None = None
    """Hugging Face name or folder, GGUF file, checkpoint or run; its shape replaces the fields below."""
    num_layers: int = 4
    """Of a model from scratch."""
    width: int = 192
    """Of a model from scratch; a multiple of `num_heads`, of Llama an even one."""
    num_heads: int = 4
    """Of a model from scratch."""
    dropout: float = 0.1
    """Llama has it in its attention only; see docs/models.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """How a sample becomes a token sequence."""

    max_length: int = 2048
    """Longest sequence; samples with longer ones are left out and named, never cropped. Also the number of
    positions."""
    collapse_runs: bool = False
    """Runs of equal speech units become one unit, in source and target alike."""
    target_only: bool = False
    """Source tokens carry no loss."""
    unit_noise: float = 0.0
    """Share of the source's speech units that the model sees replaced by random ones while it trains."""
    text_noise: float = 0.0
    """Share of the target's text tokens that it sees replaced by others of the same text while it trains."""
    target_unit_noise: float = 0.0
    """Share of the target's speech units that it sees replaced by others of the same speech, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEntry:
    """One stream of the mix: a task on the sources that have what it needs."""

    task: TaskName
    """`asr`, `s2tt`, `t2s`, `i2t`, or a modality alone: `speech`, `text`, `image`."""
    weight: float
    """Share of the tokens of a run, relative to the other entries."""
    source: str = "*"
    """Glob on the corpus, such as `librispeech`."""
    split: str = "*"
    """Glob on the split, such as `train-ivr`; of those that the recipe trains on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The length-normalised tri-modal loss of arXiv 2406.06582; the weights are never renormalised."""

    text: float = 0.93
    """λ of text: weight of the mean cross-entropy of its tokens."""
    speech: float = 0.25
    """λ of speech."""
    image: float = 0.25
    """λ of images."""
    normalise: Literal["batch", "sequence", "none"] = "batch"
    """`batch`: means over the tokens of the step; `sequence`: of each sequence, then averaged.
    `none` is the paper's control: one mean over all tokens, every weight 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How sequences are packed."""

    max_tokens: int = 4096
    """Capacity of a packed row, the micro-batch."""
    num_micro_batches: int = 1
    """Packed rows per optimizer step."""
    pool_size: int = 64
    """Samples that a row is chosen from; more fill rows better where lengths hardly vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From the warm-up to the last step."""
    num_warmup_steps: int = 100
    """Steps in which the learning rate grows from 0."""
    final_share: float = 0.0
    """Learning rate of the last step, as a share of `learning_rate`."""
    betas: tuple[float, ...] = (0.9, 0.98)
    """AdamW's decay of both moments."""
    weight_decay: float = 0.01
    """Of matrices only."""
    max_gradient_norm: float = 1.0
    """A longer gradient is scaled down to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Losses and a few outputs on held-out samples while the run goes on; nothing is learnt from them."""

    every_steps: int = 0
    """0: never."""
    splits: tuple[str, ...] = ("dev*", "val", "valid*")
    """Globs on the splits to look at; what is trained on is left out. COCO's `val2017` counts as test."""
    num_sequences: int = 64
    """Of each task, at most; the same ones every time."""
    num_decoded: int = 2
    """Of those, how many are decoded where the task answers a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run does, apart from its data and its seed."""

    name: str
    num_steps: int
    """Optimizer steps."""
    mix: tuple[MixEntry, ...]
    """What is trained on: tasks and their shares of the tokens."""
    splits: tuple[str, ...] = ("train*",)
    """Globs on the splits to train on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How ranks share the work: with `ddp` each has the whole model, with `fsdp2` a shard of it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; weights and sums are float32. `auto`: bfloat16 on a GPU, else float32."""
    attention: Literal["auto", "sequences", "dense", "flex", "varlen"] = "auto"
    """Kernel; see docs/training.md. `auto`: the fastest that fits the device and the model."""
    torch_compile: bool = False
    """Layers run through torch.compile."""
    gradient_checkpointing: bool = False
    """Layers are computed again in the backward pass: less memory, more time, equal gradients."""
    save_every_steps: int = 500
    """Steps from checkpoint to checkpoint; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the newest stay, besides the best one; more than one, as the last may be damaged."""
    log_every_steps: int = 10
    """Steps of a line on the console and in metrics.jsonl."""

    def trains_on(self, source: str, split: str) -> bool:
        """Whether an entry of the mix draws from this split of this corpus."""
        return matches(split, self.splits) and any(
            fnmatchcase(source, entry.source) and fnmatchcase(split, entry.split) for entry in self.mix
        )

    def to_json(self) -> dict[str, Any]:
        """Plain mapping that `recipe_from_json` reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of a recipe."""

    shards: tuple[Path, ...]
    recipe: Recipe
    out_dir: Path
    init: str | None = None
    """Replaces the recipe's `model.init`."""
    resume: bool = False
    seed: int = 0
    limit: int | None = None
    """Samples of each split of each source and data set."""
    device: str = "auto"
    trackers: tuple[TrackerName, ...] = ()
    """Where figures go, besides the run's own files."""


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name, such as that of a split, matches one of the globs."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a packaged recipe or a YAML file.

    Args:
        name_or_path: `demo`, `paper`, or the path of a file that ends in `.yaml` or `.yml`.
        overrides: Values by dotted key, such as `{"optimizer.learning_rate": 1e-3}`.

    Raises:
        ConfigError: There is no such recipe, a key is unknown, or a value is of a wrong type or out of range.
    """
    name, text = _read_recipe(str(name_or_path))
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name_or_path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {name_or_path}: must hold keys and values")
    for key, value in (overrides or {}).items():
        _override(content, key.split("."), value, f"recipe {name_or_path}")
    return recipe_from_json({"name": name, **content}, where=f"recipe {name_or_path}")


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Values by dotted key from texts such as `loss.speech=0.5`; a value is YAML.

    Raises:
        ConfigError: A text is no key and value, a value is no YAML, or a key comes twice.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set {text}: must be KEY=VALUE, such as loss.speech=0.5")
        if key in overrides:
            raise ConfigError(f"--set {text}: {key} was set before; leave out one of them")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: the value is not YAML: {error}") from error
    return overrides


def recipe_from_json(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Builds a recipe from a plain mapping; ConfigError names `where` and the key at fault."""
    recipe = build_strictly(Recipe, content, where)
    check_recipe(recipe, where)
    return recipe


def _read_recipe(name_or_path: str) -> tuple[str, str]:
    folder = resources.files("dmlm.trainer.recipes")
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return path.stem, _read_text(path)
    if (packaged := folder / f"{name_or_path}.yaml").is_file():
        return name_or_path, packaged.read_text(encoding="utf-8")
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    raise ConfigError(
        f"no recipe {name_or_path!r}: give a file that ends in .yaml, or one of {', '.join(names)}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: cannot be read as UTF-8 text: {error}") from error


def _override(content: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    part: Any = content
    for depth, key in enumerate(keys[:-1]):
        part = part.setdefault(key, {})
        if not isinstance(part, dict):
            section = ".".join(keys[: depth + 1])
            raise ConfigError(
                f"{where}: {section} must hold keys and values for {'.'.join(keys)}, not {part!r}"
            )
    part[keys[-1]] = value
