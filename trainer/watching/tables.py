"""Tables for the console: what a run will do, and what it did.

Suffixes: G group of the mix, M modality.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.source_names import CORPUS_NAMES
from dmlm.trainer.config import MixEntry
from dmlm.trainer.data.mix import Group
from dmlm.trainer.data.tasks import MODALITIES
from dmlm.trainer.recipe_rules import recipe_warnings
from dmlm.trainer.watching.metrics import Record
from dmlm.trainer.watching.plan import Plan

NUM_NAMED: Final = 5
LOSS_SHARE: Final = "loss share"


def describe_plan(plan: Plan) -> str:
    """Tokens, padding and shares of the loss, by task and by modality, before the first step.

    A share of the loss is that of the weights: what it would be if all tokens were equally hard.
    """
    recipe = plan.recipe
    tokens_per_step = recipe.batch.num_micro_batches * recipe.batch.max_tokens
    return "\n".join(
        [
            f"{recipe.num_steps} steps of at most {tokens_per_step} tokens, "
            f"{count(plan.tokens_G.sum())} in all; rows are {plan.fill:.1%} full, the rest is free",
            *_plan_by_task(plan),
            "",
            *_plan_by_modality(plan),
            *(_describe_refused(group, recipe.sequence.max_length) for group in plan.groups if group.refused),
            *(f"warning: {text}" for text in recipe_warnings(recipe)),
            *(
                f"warning: {group.name} has no samples, its share goes to the others: {group.lack}"
                for group, entry in zip(plan.groups, recipe.mix, strict=True)
                if group.lack and not _may_lack(entry)
            ),
        ]
    )


def describe_total(total: Record, last: Record) -> str:
    """The same of the steps that were done, with the losses."""
    return "\n".join(
        [
            f"loss {total.loss:.3f} on average, {last.loss:.3f} at the end; {total.speed()}, "
            f"padding {total.padding:.1%}",
            *_total_by_modality(total, last),
            "",
            *_total_by_task(total),
        ]
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of one width; the first is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (header, *rows)
    ]


def count(number: float) -> str:
    """A number in about three digits: 950, 12.0 k, 4.56 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            shown = f"{number / size:#.3g}" if number < 99.95 * size else f"{number / size:.0f}"
            return f"{shown} {unit}"
    return f"{number:.0f}"


def _plan_by_task(plan: Plan) -> list[str]:
    loss_tokens_G, weights_G = plan.loss_tokens_GM.sum(axis=1), plan.weights_GM.sum(axis=1)
    columns = zip(
        plan.groups, plan.epochs_G, plan.tokens_G, _shares(plan.tokens_G), loss_tokens_G, _shares(weights_G),
        strict=True,
    )  # fmt: skip
    rows = [
        [
            group.name,
            str(len(group.rows_N)),
            f"{group.lengths_N.mean() if len(group.rows_N) else 0:.1f}",
            f"{epochs:.1f}",
            *(count(tokens), f"{share:.1%}", count(loss_tokens), f"{loss_share:.1%}"),
        ]
        for group, epochs, tokens, share, loss_tokens, loss_share in columns
    ]
    return format_table(
        ["task", "samples", "tokens/sample", "epochs", "tokens", "share", "with loss", LOSS_SHARE], rows
    )


def _plan_by_modality(plan: Plan) -> list[str]:
    loss_tokens_M, weights_M = plan.loss_tokens_GM.sum(axis=0), plan.weights_GM.sum(axis=0)
    loss = plan.recipe.loss
    rows = [
        [
            modality,
            "1" if loss.normalise == "none" else f"{getattr(loss, modality):g}",
            *(count(loss_tokens), f"{share:.1%}", f"{loss_share:.1%}"),
        ]
        for modality, loss_tokens, share, loss_share in zip(
            MODALITIES, loss_tokens_M, _shares(loss_tokens_M), _shares(weights_M), strict=True
        )
        if loss_tokens
    ]
    return format_table(["modality", "weight", "with loss", "share", LOSS_SHARE], rows)


def _total_by_modality(total: Record, last: Record) -> list[str]:
    rows = [
        [
            modality,
            *(count(total.loss_tokens_by_modality[modality]), f"{total.share_by_modality[modality]:.1%}"),
            f"{loss:.3f}",
            f"{last.loss_by_modality[modality]:.3f}" if modality in last.loss_by_modality else "-",
            f"{total.loss_share_by_modality[modality]:.1%}",
        ]
        for modality, loss in total.loss_by_modality.items()
    ]
    return format_table(["modality", "with loss", "share", "nats/token", "at the end", LOSS_SHARE], rows)


def _total_by_task(total: Record) -> list[str]:
    rows = [
        [
            task,
            *(count(share * total.num_tokens), f"{share:.1%}", count(total.loss_tokens_by_task[task])),
            f"{total.loss_share_by_task[task]:.1%}",
        ]
        for task, share in total.share_by_task.items()
    ]
    return format_table(["task", "tokens", "share", "with loss", LOSS_SHARE], rows)


def _shares(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values / values.sum() if values.any() else values


def _may_lack(entry: MixEntry) -> bool:
    """Whether an entry without samples is nothing to warn of, as one recipe serves any choice of corpora.

    Who names a split, or a source of their own, has it.
    """
    return entry.split == "*" and entry.source in ("*", *CORPUS_NAMES)


def _describe_refused(group: Group, max_length: int) -> str:
    named = [f"{key} ({length})" for key, length in list(group.refused.items())[:NUM_NAMED]]
    more = f" and {len(group.refused) - NUM_NAMED} more" if len(group.refused) > NUM_NAMED else ""
    return (
        f"{group.name}: {len(group.refused)} samples refused, over {max_length} tokens: "
        f"{', '.join(named)}{more}"
    )
