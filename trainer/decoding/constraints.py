"""What may come out: the tokens of the target's modality, and the one that ends it.

Text ends with the end token; speech and images end with their closing tag, as in training.
"""

from dataclasses import dataclass

from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.pipeline.vocabulary import TokenRange, Vocabulary
from dmlm.trainer.data.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Ids that may be emitted."""

    allowed: TokenRange
    end_id: int
    """Ends an output and is no part of it; it may lie outside of `allowed`."""

    @property
    def ids(self) -> list[int]:
        """All ids that may be emitted, the end among them, in the order of the logits."""
        ids = list(range(self.allowed.start, self.allowed.stop))
        return ids if self.end_id in self.allowed else [*ids, self.end_id]

    @property
    def end_column(self) -> int:
        """Place of the end in `ids`."""
        return self.end_id - self.allowed.start if self.end_id in self.allowed else len(self.allowed)


def constraint_of(task: str, vocabulary: Vocabulary) -> Constraint:
    """Constraint on the target of a task, a key of `TASKS`."""
    modality = MODALITY_OF[TASKS[task].target]
    is_text = modality is Modality.TEXT
    return Constraint(
        allowed=vocabulary.range_of(modality),
        end_id=vocabulary.eos_id if is_text else vocabulary.special_id(f"</{modality}>"),
    )
