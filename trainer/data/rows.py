"""From draws to packed rows: the tokens of many samples and the fixed tokens around them, laid end to end.

What one sequence is made of stands in `tasks.py`; here the same is done to all sequences of a row at once,
because a Python call per sample and array would cost more than all the copying.

Suffixes: S sequence of the row, P part of a sequence, A part that is read from a shard, T token of the row,
F field.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.pipeline.shards.format import MODALITY_OF, TOKEN_MEMBERS
from dmlm.pipeline.shards.token_table import NUM_MEMBERS
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import SequenceConfig
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.mix import Mix
from dmlm.trainer.data.packing import IntArray, PackedBatch, Parts, count_up, pack_rows
from dmlm.trainer.data.tasks import Part, Template


class _Fields(NamedTuple):
    """What is known of the parts of all templates, one number per part."""

    is_read: npt.NDArray[np.bool_]
    """From a shard; else the same tokens always."""
    member: IntArray
    length: IntArray
    """Of a part that is not read."""
    shift: npt.NDArray[np.int32]
    """From ids of the member to ids of the vocabulary."""
    modality: npt.NDArray[np.int8]
    is_speech: npt.NDArray[np.bool_]
    is_source_units: npt.NDArray[np.bool_]
    is_target_text: npt.NDArray[np.bool_]
    is_target_units: npt.NDArray[np.bool_]

    def take(self, numbers_P: IntArray) -> "_Fields":
        """Fields of these parts."""
        return _Fields._make(column.take(numbers_P) for column in self)


class RowBuilder:
    """Builds the rows of a stream."""

    def __init__(self, data: TrainingData, mix: Mix, config: SequenceConfig, seed: int) -> None:
        self._data, self._mix, self._config, self._seed = data, mix, config, seed
        self.reading = ""
        """Name of the shard that is, or was last, read."""
        self._is_noisy = max(config.unit_noise, config.text_noise, config.target_unit_noise) > 0
        templates = [template for group in mix.groups for template in group.templates]
        num_templates = np.array([len(group.templates) for group in mix.groups])
        self._template_D = mix.template_D + (num_templates.cumsum() - num_templates)[mix.group_D]
        fixed = [
            b"" if part.tokens is None else part.tokens.astype("<i4").tobytes()
            for template in templates
            for part in template.parts
        ]
        self._fixed = np.array(fixed, object)
        self._fields = _tabulate(templates, data.vocabulary)
        self._num_parts = np.array([len(template.parts) for template in templates])
        """Of each template; they are numbered through."""
        self._task_names = np.array([group.task.name for group in mix.groups], object)

    def build_rows(self, rows: Mapping[int, Sequence[int]]) -> list[PackedBatch]:
        """Packed rows of draws; what is random about a row follows from its number in the run.

        Raises:
            ShardCorruptError: A sample's tokens are damaged, or are not as many as its index says.
        """
        if self._is_noisy:  # each row has a generator of its own
            return [pack_rows(self.build(draws, number), [len(draws)])[0] for number, draws in rows.items()]
        parts = self.build(list(chain.from_iterable(rows.values())), number=0)
        return pack_rows(parts, list(map(len, rows.values())))

    def build(self, draws: Sequence[int], number: int) -> Parts:
        """Sequences of draws; what is random about them follows from `number`.

        Raises:
            ShardCorruptError: A sample's tokens are damaged, or are not as many as its index says.
        """
        draws_S = np.array(draws)
        rows_S, template_S = self._mix.rows_D.take(draws_S), self._template_D.take(draws_S)
        num_parts_S = self._num_parts.take(template_S)
        first_S = self._num_parts.cumsum().take(template_S) - num_parts_S
        numbers_P = first_S.repeat(num_parts_S) + count_up(num_parts_S)
        fields = self._fields.take(numbers_P)
        tokens_T, lengths_P = self._read(rows_S.repeat(num_parts_S), numbers_P, fields)
        if self._config.collapse_runs:
            tokens_T, lengths_P = _collapse_runs(tokens_T, lengths_P, fields.is_speech)
        self._check_lengths(draws_S, np.add.reduceat(lengths_P, num_parts_S.cumsum() - num_parts_S))
        tokens_T += fields.shift.repeat(lengths_P)
        return Parts(
            tokens_T=tokens_T,
            inputs_T=self._inputs(tokens_T, lengths_P, fields, number),
            lengths_P=lengths_P,
            modality_P=fields.modality,
            num_parts_S=num_parts_S,
            keys=self._data.keys.take(rows_S),
            tasks=self._task_names.take(self._mix.group_D.take(draws_S)).tolist(),
        )

    def _read(self, rows_P: IntArray, numbers_P: IntArray, fields: _Fields) -> tuple[TokenArray, IntArray]:
        """Tokens as they lie in the shards, with the fixed ones around them, and the length of each part."""
        table, is_read_P = self._data.tokens, fields.is_read
        places_A = (NUM_MEMBERS * rows_P + fields.member)[is_read_P]
        for self.reading in table.fetch(places_A):
            pass
        pieces: list[bytes | memoryview] = self._fixed.take(numbers_P).tolist()
        for part, payload in zip(is_read_P.nonzero()[0].tolist(), table.payloads(places_A), strict=True):
            pieces[part] = payload
        tokens_T = np.frombuffer(bytearray().join(pieces), "<i4")
        lengths_P = fields.length  # a copy that `take` has made
        lengths_P[is_read_P] = table.counts(places_A)
        table.check_ids(places_A, tokens_T, (lengths_P.cumsum() - lengths_P)[is_read_P])
        return tokens_T, lengths_P

    def _check_lengths(self, draws_S: IntArray, lengths_S: IntArray) -> None:
        if (wrong_S := lengths_S != self._mix.lengths_D[draws_S]).any():
            row = self._mix.rows_D.item(draws_S[wrong_S][0])
            raise ShardCorruptError(
                f"{self._data.tokens.shard_of(row)}.parquet: sample {self._data.keys[row]}: "
                "does not fit its tokens; rerun `dmlm-cli tokenize`"
            )

    def _inputs(
        self, tokens_T: TokenArray, lengths_P: IntArray, fields: _Fields, number: int
    ) -> TokenArray | None:
        if not self._is_noisy:
            return None
        rng = generator_for(self._seed, "noise", number)
        inputs_T, units_T = tokens_T.copy(), fields.is_source_units.repeat(lengths_P)
        _replace_units(inputs_T, units_T, self._config.unit_noise, self._data.vocabulary, rng)
        _replace_within(inputs_T, lengths_P, fields.is_target_text, self._config.text_noise, rng)
        _replace_within(inputs_T, lengths_P, fields.is_target_units, self._config.target_unit_noise, rng)
        return inputs_T


def _tabulate(templates: Sequence[Template], vocabulary: Vocabulary) -> _Fields:
    rows = []
    for template in templates:
        rows += [_fields_of(part, True, vocabulary) for part in template.prompt]
        rows += [_fields_of(part, False, vocabulary) for part in template.target]
    types = (np.bool_, np.int64, np.int64, np.int32, np.int8, *[np.bool_] * 4)
    return _Fields(
        *(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True))
    )


def _fields_of(part: Part, is_source: bool, vocabulary: Vocabulary) -> tuple[int, ...]:
    if part.member is None:
        length = 0 if part.tokens is None else len(part.tokens)
        return False, 0, length, 0, part.code, False, False, False, False
    modality = MODALITY_OF[part.member]
    is_speech, is_text = modality is Modality.SPEECH, modality is Modality.TEXT
    return (
        *(True, TOKEN_MEMBERS.index(part.member), 0, vocabulary.range_of(modality).start, part.code),
        *(is_speech, is_speech and is_source, is_text and not is_source, is_speech and not is_source),
    )


def _collapse_runs(
    tokens_T: TokenArray, lengths_P: IntArray, speech_P: npt.NDArray[np.bool_]
) -> tuple[TokenArray, IntArray]:
    """Runs of equal tokens inside the speech parts become one token; the parts left, and their lengths."""
    starts_P = lengths_P.cumsum() - lengths_P
    kept_T = np.empty(len(tokens_T), np.bool_)
    np.not_equal(tokens_T[1:], tokens_T[:-1], out=kept_T[1:])
    kept_T[starts_P] = True
    kept_T |= (~speech_P).repeat(lengths_P)
    return tokens_T[kept_T], np.add.reduceat(kept_T, starts_P, dtype=np.int64)


def _replace_units(
    tokens_T: TokenArray,
    units_T: npt.NDArray[np.bool_],
    share: float,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> None:
    """Replaces a share of the units by random ones, which stand for another speaker's."""
    places = np.flatnonzero(units_T)
    places = places[rng.random(len(places)) < share]
    tokens_T[places] = rng.integers(vocabulary.speech.start, vocabulary.speech.stop, len(places))


def _replace_within(
    tokens_T: TokenArray,
    lengths_P: IntArray,
    chosen_P: npt.NDArray[np.bool_],
    share: float,
    rng: np.random.Generator,
) -> None:
    """Replaces a share of the tokens of the parts chosen, targets all, by others of the same part.

    Wrong tokens before one that is to be predicted stand for the model's own mistakes: they keep it from
    guessing on from what it has written or said, instead of listening or reading.
    """
    lengths = lengths_P[chosen_P]
    starts = (lengths_P.cumsum() - lengths_P)[chosen_P]
    part_of = np.repeat(np.arange(len(lengths)), lengths)
    places = np.flatnonzero(np.repeat(chosen_P, lengths_P))
    replaced = rng.random(len(places)) < share
    part_of, places = part_of[replaced], places[replaced]
    tokens_T[places] = tokens_T[starts[part_of] + rng.integers(0, lengths[part_of])]
