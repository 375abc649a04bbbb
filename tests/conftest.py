"""Fixtures shared by all tests."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.vocabulary import Vocabulary

REPOSITORY = Path(__file__).parent.parent

# Read as the hub is imported. Without it a name that is no folder is looked for online, for a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A slow machine is no fault of the code, and in a fresh clone the first text drawn waits for tables.
settings.register_profile("dmlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dmlm")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real corpus slices; tests that use it are marked `realdata`."""
    folder = Path(os.environ.get("DMLM_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "LibriSpeech").is_dir():
        pytest.skip(f"no real corpus slices at {folder}; set DMLM_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """Function that reads the checksummed files of a data set, by relative path."""

    def read(directory: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name not in ("run.json", "report.json")
        }

    return read


LONG = [pytest.mark.soak, pytest.mark.timeout(6 * 3600)]


@pytest.fixture(params=["short", pytest.param("long", marks=LONG)])
def amount(request: pytest.FixtureRequest) -> Callable[[Any, Any], Any]:
    """Function that says how much of a test to do: `amount(short, long)`; `make soak` runs the long form."""
    return lambda short, long: long if request.param == "long" else short


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that have the slow imports behind them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "dmlm.pipeline.tokenization.running",
            "dmlm.trainer.loop",
            "transformers.models.opt.modeling_opt",
            "pandas",
        ]
    )
    return context


NUM_UNITS, NUM_CODES = 20, 16
WriteShards = Callable[..., Path]


@pytest.fixture(scope="session")
def write_shards() -> WriteShards:
    """Function that publishes a data set: `write_shards(directory, samples, speech_mark="...")`."""
    from dmlm.pipeline.shards import DatasetCard, DatasetTotals, write_dataset_card, write_shard
    from dmlm.pipeline.shards.card import LEDGER_NAME, encode_ledger
    from dmlm.pipeline.storage import sha256_file
    from dmlm.pipeline.tokenizers.text import train_bpe

    text_tokenizer = train_bpe([], 256)
    joint = Vocabulary(
        num_text=text_tokenizer.num_tokens, num_speech=NUM_UNITS, num_image=NUM_CODES, bos_id=0, eos_id=0
    )

    def write(
        directory: Path,
        samples: Sequence[Sample],
        speech_mark: str = "speech",
        num_shards: int = 2,
        has_images: bool = True,
    ) -> Path:
        vocabulary = joint if has_images else replace(joint, num_image=0)
        for modality in Modality:
            (directory / "codebook" / modality).mkdir(parents=True)
        for modality in ("speech", "image"):
            (directory / "codebook" / modality / "codebook.json").write_text("{}")
        text_tokenizer.save(directory / "codebook" / "text")
        size = len(samples) // num_shards + 1
        parts = {f"toy-{i:06d}": samples[i * size : (i + 1) * size] for i in range(num_shards)}
        finished = [
            write_shard(directory, name, part, vocabulary, task_sha256=name, num_in=len(part))
            for name, part in parts.items()
        ]
        records, footers = tuple(shard.record for shard in finished), [shard.footer for shard in finished]
        (directory / LEDGER_NAME).write_bytes(encode_ledger(footers))
        card = DatasetCard(
            name="toy",
            shards=records,
            totals=DatasetTotals.of(records, footers),
            fingerprints={
                Modality.SPEECH: {"sha256": speech_mark},
                **({Modality.IMAGE: {"sha256": "image"}} if has_images else {}),
                Modality.TEXT: {"sha256": "text"},
            },
            text_rule="toy",
            vocabulary=vocabulary,
            versions={},
            settings={},
            licence="none",
            files={LEDGER_NAME: sha256_file(directory / LEDGER_NAME)},
        )
        write_dataset_card(directory, card)
        return directory

    return write


@pytest.fixture(scope="session")
def token_shards(write_shards: WriteShards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of every task; texts follow from units and codes, so that it can be learnt."""
    return write_shards(tmp_path_factory.mktemp("shards") / "toy", list(toy_samples()))


def toy_samples(num_utterances: int = 40, num_images: int = 8) -> Iterator[Sample]:
    """Utterances with text and translation, every fifth without; images with two captions each."""
    rng = np.random.default_rng(0)
    for i in range(num_utterances):
        letters = rng.integers(0, NUM_UNITS, int(rng.integers(3, 9))).astype(np.int32)
        silent = i % 5 == 0
        yield Sample(
            key=f"utterance-{i:03d}",
            source="toy",
            split="test" if i % 10 == 9 else "train",
            language="en",
            translation_language=None if silent else "de",
            speech_tokens=np.repeat(letters, rng.integers(1, 5, len(letters))),
            text_tokens=None if silent else letters + np.int32(100),
            translation_tokens=None if silent else letters[::-1] + np.int32(130),
        )
    for i in range(2 * num_images):
        codes = np.roll(np.arange(NUM_CODES, dtype=np.int32), i // 2)
        yield Sample(
            key=f"caption-{i:03d}",
            source="toy_pictures",
            split="train",
            image_id=str(i // 2),
            language="en",
            image_tokens=codes,
            text_tokens=codes[:3] + np.int32(100),
        )
