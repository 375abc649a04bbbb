"""What the numbers of a recipe may be: each by itself, and together."""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from dmlm.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from dmlm.trainer.config import Recipe

_RANGES: Final[Sequence[tuple[Sequence[str], Callable[[float], bool], str]]] = (
    (
        (
            *("num_steps", "save_every_steps", "log_every_steps", "model.num_layers", "model.width"),
            *("model.num_heads", "batch.num_micro_batches", "batch.pool_size", "validation.num_sequences"),
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        ("optimizer.num_warmup_steps", "validation.every_steps", "validation.num_decoded"),
        lambda value: value >= 0,
        "0 or more",
    ),
    (
        ("loss.text", "loss.speech", "loss.image", "optimizer.weight_decay"),
        lambda value: 0 <= value < inf,
        "0 or more, and finite",
    ),
    (
        ("optimizer.learning_rate", "optimizer.max_gradient_norm"),
        lambda value: 0 < value < inf,
        "above 0, and finite",
    ),
    (
        ("model.dropout", "sequence.unit_noise", "sequence.text_noise", "sequence.target_unit_noise"),
        lambda value: 0 <= value < 1,
        "in [0, 1)",
    ),
    (("keep_checkpoints",), lambda value: value >= 2, "at least 2, as the last one may be damaged"),
    (("optimizer.final_share",), lambda value: 0 <= value <= 1, "in [0, 1]"),
    (("sequence.max_length",), lambda value: value >= 8, "at least 8"),
)
"""Keys, what holds for each, and the same in words."""


def check_recipe(recipe: "Recipe", where: str) -> None:
    """Raises ConfigError, naming key and rule, where a value is out of its range or two do not fit."""
    for names, is_in_range, rule in _RANGES:
        for name in names:
            if not is_in_range(value := attrgetter(name)(recipe)):
                raise ConfigError(f"{where}: {name} must be {rule}, not {value!r}")
    for holds, rule in _joint_rules(recipe):
        if not holds:
            raise ConfigError(f"{where}: {rule}")


def recipe_warnings(recipe: "Recipe") -> Iterator[str]:
    """What is allowed, but hardly meant."""
    optimizer, num_steps = recipe.optimizer, recipe.num_steps
    if optimizer.num_warmup_steps >= num_steps:
        last_rate = optimizer.learning_rate * num_steps / optimizer.num_warmup_steps
        yield (
            f"the warm-up lasts for the whole run, which ends with learning rate {last_rate:.3g}: "
            f"optimizer.num_warmup_steps {optimizer.num_warmup_steps}, num_steps {num_steps}"
        )
    if optimizer.schedule == "constant" and optimizer.final_share:
        yield f"optimizer.final_share {optimizer.final_share} has no effect: optimizer.schedule is constant"


def _joint_rules(recipe: "Recipe") -> Iterator[tuple[bool, str]]:
    """What concerns several values, or each of a list."""
    entries = [(entry.task, entry.source, entry.split) for entry in recipe.mix]
    weights = [entry.weight for entry in recipe.mix]
    loss, betas = recipe.loss, recipe.optimizer.betas
    yield bool(entries), "mix needs at least one entry"
    yield (
        all(0 < weight < inf for weight in weights),
        f"mix: every weight must be above 0 and finite: {weights}",
    )
    yield len(entries) == len(set(entries)), "mix names a task, source and split twice"
    yield (
        loss.normalise == "none" or max(loss.text, loss.speech, loss.image) > 0,
        "loss: text, speech and image must not all be 0: nothing would be learnt",
    )
    yield len(betas) == 2, "optimizer.betas must be two numbers"
    yield all(0 <= beta < 1 for beta in betas), f"optimizer.betas must be in [0, 1), not {betas}"
    yield (
        recipe.sequence.max_length <= recipe.batch.max_tokens,
        "sequence.max_length must not be above batch.max_tokens",
    )
    model = recipe.model
    yield not model.width % model.num_heads, "model.width must be a multiple of model.num_heads"
    yield (
        model.architecture != "llama" or not model.width % (2 * model.num_heads),
        "model.width must be an even multiple of model.num_heads: rotary positions turn pairs of dimensions",
    )
