"""`verify --reencode`: tokens made again are those of the data set, and it is said when they are not."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.shards import (
    finished_shard,
    iter_samples,
    load_dataset_card,
    write_dataset_card,
    write_shard,
)
from dmlm.pipeline.tokenization.reencoding import (
    Comparison,
    ReencodeConfig,
    ReencodeReport,
    Tally,
    _count,
    _draw,
    reencode,
)


def again(tiny_corpora: Path, directory: Path, num_samples: int = 100) -> ReencodeReport:
    return reencode(ReencodeConfig(directory=directory, root=tiny_corpora, num_samples=num_samples))


def test_samples_made_again_are_those_of_the_data_set(tiny_corpora: Path, tiny_dataset: Path) -> None:
    report = again(tiny_corpora, tiny_dataset)
    together, alone, other_window, other_precision = report.comparisons
    num_units = load_dataset_card(tiny_dataset).totals.num_tokens.speech
    for comparison in (together, alone):
        assert comparison.total(Modality.SPEECH).num_tokens == num_units
        assert comparison.total(Modality.SPEECH).num_different <= 1
        assert comparison.total(Modality.TEXT).num_different == 0 < comparison.total(Modality.TEXT).num_tokens
    assert other_window.way == "(window padded)"
    assert other_window.total(Modality.SPEECH).num_different > 0
    assert other_precision.way == "(bfloat16)"
    assert 0 < other_precision.total(Modality.SPEECH).num_different < 0.1 * num_units
    report.check()


def test_command_shows_a_table_and_images_are_compared_too(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_dir, codebook = str(tmp_path / "out"), str(tiny_corpora / "codebook")
    place = ["--root", str(tiny_corpora)]
    assert run(["tokenize", "--source", "coco", *place, "--codebook", codebook, "--out", out_dir]) == 0
    assert run(["verify", "--shards", out_dir, "--reencode", "5", *place]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split("  ")[0] == "5 samples again"
    assert "0 of 80 (0.000%)" in lines[-1]


def test_pair_with_a_region_is_found_again_from_its_data_set(tiny_corpora: Path, tmp_path: Path) -> None:
    language_dir = tmp_path / "covost" / "sv-SE"
    (language_dir / "clips").mkdir(parents=True)
    chapter = tiny_corpora / "LibriSpeech" / "train-tiny" / "7" / "9"
    shutil.copy(chapter / "7-9-0001.flac", language_dir / "clips" / "a.mp3")
    (language_dir / "covost_v2.sv-SE_en.tsv").write_text("path\ttranslation\tsplit\na.mp3\tYes.\ttest\n")
    (language_dir / "validated.tsv").write_text("client_id\tpath\tsentence\ns\ta.mp3\tJa.\n")
    place, out_dir = ["--root", str(tmp_path)], str(tmp_path / "out")
    codebook = ["--codebook", str(tiny_corpora / "codebook")]
    assert run(["tokenize", "--source", "covost", *place, *codebook, "--out", out_dir]) == 0
    assert run(["verify", "--shards", out_dir, "--reencode", "1", *place]) == 0


def test_swapped_units_are_found_though_every_checksum_fits(
    tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Two recordings of the same shard have each other's units: no byte of the data set says so."""
    directory = shutil.copytree(tiny_dataset, tmp_path / "swapped")
    card = load_dataset_card(directory)
    name, sha256 = card.shards[0].name, card.shards[0].task_sha256
    shard = finished_shard(directory, name, sha256)
    assert shard is not None
    first, second, *rest = [
        _copy(sample) for sample in list(iter_samples(directory))[: shard.record.num_samples]
    ]
    swapped = [
        replace(first, speech_tokens=second.speech_tokens),
        replace(second, speech_tokens=first.speech_tokens),
        *rest,
    ]
    changed = write_shard(
        directory, name, swapped, card.vocabulary, task_sha256=sha256, num_in=shard.footer.num_in
    )
    write_dataset_card(directory, replace(card, shards=(changed.record, *card.shards[1:])))
    with pytest.raises(CorruptInputError, match=f"more than rounding.*{first.key}"):
        again(tiny_corpora, directory).check()


def _copy(sample: Sample) -> Sample:
    assert sample.speech_tokens is not None
    return replace(sample, speech_tokens=sample.speech_tokens.copy())


def test_other_corpus_is_refused(root: Path, tiny_dataset: Path) -> None:
    (root / "LibriSpeech" / "train-tiny" / "7" / "9" / "7-9-0003.flac").write_bytes(b"another recording")
    with pytest.raises(FingerprintMismatchError, match="other items or files"):
        again(root, tiny_dataset)


def test_samples_are_drawn_from_all_shards_by_the_seed(tiny_dataset: Path) -> None:
    card = load_dataset_card(tiny_dataset)

    def drawn(seed: int) -> list[str]:
        config = ReencodeConfig(directory=tiny_dataset, root=tiny_dataset, num_samples=4, seed=seed)
        return [sample.key for sample in _draw(config, card)]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1
    for seed in range(8):
        numbers = np.array([int(key[-4:]) for key in drawn(seed)])
        assert (numbers // 2).tolist() == [0, 1, 2, 3]


def test_tokens_that_only_one_side_has_are_different() -> None:
    shorter = Sample(key="k", source="s", split="train", speech_tokens=np.array([1, 2], np.int32))
    longer = replace(
        shorter, speech_tokens=np.array([1, 2, 3], np.int32), text_tokens=np.array([4], np.int32)
    )
    for tallies in (_count(longer, shorter), _count(shorter, longer)):
        assert (tallies[Modality.SPEECH], tallies[Modality.TEXT]) == (Tally(1, 3), Tally(1, 1))
    assert _count(longer, None)[Modality.SPEECH] == Tally(3, 3)


@pytest.mark.parametrize(
    ("modality", "num_different", "num_tokens", "is_fault"),
    [
        (Modality.SPEECH, 2, 10, False),
        (Modality.SPEECH, 3, 10, True),
        (Modality.SPEECH, 10, 10_000, False),
        (Modality.SPEECH, 11, 10_000, True),
        (Modality.TEXT, 1, 10_000, True),
    ],
)
def test_more_than_rounding_is_a_fault(
    modality: Modality, num_different: int, num_tokens: int, is_fault: bool
) -> None:
    tallies = dict.fromkeys(Modality, Tally()) | {modality: Tally(num_different, num_tokens)}
    comparison = Comparison(way="together", samples={"a": tallies})
    assert bool(list(comparison.faults())) is is_fault
    assert not list(replace(comparison, is_judged=False).faults())
