"""The plain way from a sample to its sequence, which the rows built at once must equal."""

from collections.abc import Callable

import numpy as np
import pytest

from dmlm.pipeline.samples import Sample, TokenArray
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import SequenceConfig
from dmlm.trainer.data.tasks import Part, Task, TaskSequence, collapse_runs, make_template

BuildSequence = Callable[[Task, Sample, Vocabulary, SequenceConfig], TaskSequence]


@pytest.fixture(scope="session")
def build_sequence() -> BuildSequence:
    """Function that gives the sequence of one sample."""

    def build(task: Task, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> TaskSequence:
        template = make_template(task, sample.language, sample.translation_language, vocabulary, config)
        pieces = [_fill(part, sample, vocabulary, config) for part in template.parts]
        return TaskSequence(
            tokens_T=np.concatenate(pieces),
            modality_T=np.concatenate(
                [
                    np.full(len(piece), part.code, np.int8)
                    for piece, part in zip(pieces, template.parts, strict=True)
                ]
            ),
            num_prompt=sum(map(len, pieces[: len(template.prompt)])),
        )

    return build


def _fill(part: Part, sample: Sample, vocabulary: Vocabulary, config: SequenceConfig) -> TokenArray:
    if part.tokens is not None:
        return part.tokens
    tokens = getattr(sample, f"{part.member}_tokens")
    is_collapsed = part.member == "speech" and config.collapse_runs
    return vocabulary.to_global(MODALITY_OF[part.member], collapse_runs(tokens) if is_collapsed else tokens)
