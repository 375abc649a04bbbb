"""Recipes: what a training run does, as strict YAML; and TrainConfig: one run of a recipe.

YAML -> Recipe -> TrainConfig -> `loop.train`. A recipe fixes every number of a run but its data and its seed.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.suggestions import did_you_mean

T = TypeVar("T")
TaskName = Literal["asr", "s2tt", "t2s", "i2t", "speech", "text", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A language model from scratch, or a pretrained one."""

    architecture: Literal["opt", "llama"] = "opt"
    """Of a model from scratch. OPT is the paper's; Llama's rotary positions learn to listen from far less."""
    init: str | None = None
    """Hugging Face name or folder, GGUF file, or checkpoint of dmlm; its shape replaces the fields below."""
    num_layers: int = 4
    width: int = 192
    num_heads: int = 4
    dropout: float = 0.1
    """Llama has it in its attention only; see docs/models.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """How a sample becomes a token sequence."""

    max_length: int = 2048
    """Longest sequence; longer ones are refused by name, never cropped. Also the number of positions."""
    collapse_runs: bool = False
    """Runs of equal speech units become one unit, in source and target alike."""
    target_only: bool = False
    """Source tokens carry no loss."""
    unit_noise: float = 0.0
    """Share of the source's speech units that the model sees replaced by random ones while it trains."""
    text_noise: float = 0.0
    """Share of the target's text tokens that it sees replaced by others of the same text while it trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEntry:
    """One stream of the mix: a task on the sources that have what it needs."""

    task: TaskName
    weight: float
    """Share of the tokens of a run, relative to the other entries."""
    source: str = "*"
    """Glob on the corpus, such as `librispeech`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The length-normalised tri-modal loss of mission.md; the weights are never renormalised."""

    text: float = 0.93
    speech: float = 0.25
    image: float = 0.25
    normalise: Literal["batch", "sequence", "none"] = "batch"
    """`none` is the paper's control: one mean over all tokens, every weight 1."""


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
    num_warmup_steps: int = 100
    final_share: float = 0.0
    """Learning rate of the last step, as a share of `learning_rate`."""
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 0.01
    """Of matrices only."""
    max_gradient_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run does, apart from its data and its seed."""

    name: str
    num_steps: int
    mix: tuple[MixEntry, ...]
    splits: tuple[str, ...] = ("train*",)
    """Globs on the splits to train on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How ranks share the work: with `ddp` each has the whole model, with `fsdp2` a shard of it."""
    save_every_steps: int = 500
    log_every_steps: int = 10

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
    """Samples of each data set."""
    device: str = "auto"


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
        _override(content, key.split("."), value)
    return recipe_from_json({"name": name, **content}, where=f"recipe {name_or_path}")


def recipe_from_json(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Builds a recipe from a plain mapping; ConfigError names `where` and the key at fault."""
    recipe = _build(Recipe, content, where)
    _check_ranges(recipe, where)
    return recipe


def _read_recipe(name_or_path: str) -> tuple[str, str]:
    folder = resources.files("dmlm.trainer.recipes")
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if path.is_file():
            return path.stem, path.read_text(encoding="utf-8")
    elif (packaged := folder / f"{name_or_path}.yaml").is_file():
        return name_or_path, packaged.read_text(encoding="utf-8")
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    raise ConfigError(
        f"no recipe {name_or_path!r}: give a file that ends in .yaml, or one of {', '.join(names)}"
    )


def _override(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        content = content.setdefault(key, {})
    content[keys[-1]] = value


def _build(kind: type[T], content: Any, where: str) -> T:
    """Instance of a dataclass from a mapping with exactly its fields."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: must hold keys and values, not {content!r}")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), hints)}")
    for required in fields(kind):  # type: ignore[arg-type]
        if (
            required.default is MISSING
            and required.default_factory is MISSING
            and required.name not in content
        ):
            raise ConfigError(f"{where}: {required.name} is missing")
    return kind(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in content.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, Literal, tuple of one kind, optional, or a plain type."""
    if is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choose(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is types.UnionType:
        return None if value is None else _convert(arguments[0], value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        hint = " (YAML wants 1.0e-3 for 1e-3)" if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"{where} must be {kind.__name__}, not {value!r}{hint}")
    return value


def _choose(choices: tuple[str, ...], value: Any, where: str) -> str:
    if value in choices:
        return typing.cast(str, value)
    hint = did_you_mean(str(value), choices)
    raise ConfigError(f"{where} must be one of {', '.join(choices)}, not {value!r}{hint}")


def _check_ranges(recipe: Recipe, where: str) -> None:
    model, sequence, batch, optimizer = recipe.model, recipe.sequence, recipe.batch, recipe.optimizer
    steps = (recipe.num_steps, recipe.save_every_steps, recipe.log_every_steps)
    sizes = (model.num_layers, model.width, model.num_heads, batch.num_micro_batches, batch.pool_size)
    weights = (recipe.loss.text, recipe.loss.speech, recipe.loss.image)
    shares = (model.dropout, sequence.unit_noise, sequence.text_noise, *optimizer.betas)
    entries = [(entry.task, entry.source) for entry in recipe.mix]
    rules = (
        (min(steps) >= 1, "num_steps, save_every_steps and log_every_steps must be at least 1"),
        (min(sizes) >= 1, "sizes of model and batch must be at least 1"),
        (bool(entries), "mix needs at least one entry"),
        (all(entry.weight > 0 for entry in recipe.mix), "mix: every weight must be above 0"),
        (len(entries) == len(set(entries)), "mix names a task and source twice"),
        (min(weights) >= 0, "weights of the loss must not be negative"),
        (len(optimizer.betas) == 2, "optimizer.betas must be two numbers"),
        (
            all(0 <= share < 1 for share in shares),
            "dropout, unit_noise, text_noise and betas must be in [0, 1)",
        ),
        (optimizer.learning_rate > 0, "optimizer.learning_rate must be above 0"),
        (optimizer.max_gradient_norm > 0, "optimizer.max_gradient_norm must be above 0"),
        (
            8 <= sequence.max_length <= batch.max_tokens,
            "sequence.max_length must be in [8, batch.max_tokens]",
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise ConfigError(f"{where}: {rule}")
    if model.width % model.num_heads:
        raise ConfigError(f"{where}: model.width must be a multiple of model.num_heads")
