"""Files that claim or unfold to far more than they are: refused in under 2 s and within 64 MiB."""

import gzip
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.converters.dalle import read_pickled_module
from dmlm.pipeline.converters.whisper import load_whisper_weights
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.images import load_image
from dmlm.pipeline.manifests import parse_corpus_manifest
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.shards.format import TOKEN_MEMBERS, encode_npy, npy_header
from dmlm.pipeline.shards.ustar import END_OF_TAR, padding_of, tar_header
from dmlm.pipeline.sources.ami_annotations import read_words

MAX_SECONDS = 2.0
MAX_GROWTH_BYTES = 64 << 20
BOMB_BYTES = 96 << 20
"""Enough to be seen if it is ever unfolded, and quick to pack."""

Bombs = dict[str, tuple[Callable[[Path], object], str]]
"""By name: what writes the file, and what the outcome begins with behind the file's name."""


def check_bombs(measure_costs: Callable[..., list], read: Callable, folder: Path, bombs: Bombs) -> None:
    """The first bomb is harmless: what it costs to read at all is not counted."""
    paths = [folder / name for name in bombs]
    for path, (write, _) in zip(paths, bombs.values(), strict=True):
        write(path)
    for path, cost in zip(paths, measure_costs(read, paths[0], paths), strict=True):
        assert bombs[path.name][1] in cost.outcome.replace(str(path), path.name), path.name
        assert cost.seconds < MAX_SECONDS, path.name
        assert cost.num_bytes < MAX_GROWTH_BYTES, path.name


def silence(seconds: int, rate_hz: int = 16_000) -> Callable[[Path], None]:
    """Writes digital silence, which FLAC packs 600-fold."""
    return lambda path: soundfile.write(path, np.zeros(seconds * rate_hz, np.int16), rate_hz)


def wav(seconds: int, riff_bytes: int, data_bytes: int) -> Callable[[Path], None]:
    """Writes a sparse file whose header may claim more than there is."""

    def write(path: Path) -> None:
        header = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
        head = b"RIFF" + struct.pack("<I", riff_bytes) + b"WAVEfmt " + header
        path.write_bytes(head + b"data" + struct.pack("<I", data_bytes))
        os.truncate(path, 44 + 32_000 * seconds)

    return write


def mp3(num_frames: int) -> Callable[[Path], None]:
    """Writes three seconds whose Xing header claims `num_frames` of 72 ms."""

    def write(path: Path) -> None:
        soundfile.write(path, np.sin(np.arange(48_000) / 5), 16_000)
        content = bytearray(path.read_bytes())
        place = content.index(b"Xing") + 8
        content[place : place + 4] = struct.pack(">I", num_frames)
        path.write_bytes(content)

    return write


HOURS = 3_600 * 32_000

AUDIO: Bombs = {
    "harmless.wav": (wav(1, 32_036, 32_000), "read (16000,)"),
    "silence.flac": (silence(3_000), "claim to hold 96000000; limit 200-fold"),
    "data.wav": (wav(1, 32_036, 2**31 - 1), "read (16000,)"),
    "riff.wav": (wav(1, 2**31 + 35, 2**31 - 1), "cut off, 32044 of 2147483691 bytes"),
    "pipe.wav": (wav(1, 2**32 - 1, 2**32 - 1), "read (16000,)"),
    "13h.wav": (wav(13 * 3_600, 13 * HOURS + 36, 13 * HOURS), "more than 12 h"),
    "11h.wav": (wav(11 * 3_600, 11 * HOURS + 36, 11 * HOURS), "39600 s, limit 3600 s"),
    "year.mp3": (mp3(2**32 - 1), "more than 12 h or no length at all"),
    "hour.mp3": (mp3(100_000), "limit 200-fold"),
}


def test_audio_bombs(measure_costs: Callable[..., list], tmp_path: Path) -> None:
    check_bombs(measure_costs, load_waveform, tmp_path, AUDIO)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def deflated_zeros(num_bytes: int) -> bytes:
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block[: num_bytes - start]) for start in range(0, num_bytes, len(block))]
    return b"".join(parts) + packer.flush()


def png(width: int, height: int, *extra: bytes, num_bytes: int | None = None) -> Callable[[Path], object]:
    """Writes a black picture, or the first `num_bytes` of its pixels."""

    def write(path: Path) -> None:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        pixels = deflated_zeros(height * (1 + 3 * width) if num_bytes is None else num_bytes)
        end = chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end)

    return write


def large_jpeg(path: Path) -> None:
    """Writes a picture of 8 × 8 pixels whose header claims 65,500 × 65,500."""
    Image.new("RGB", (8, 8)).save(path)
    size = struct.pack(">HH", 8, 8)
    path.write_bytes(path.read_bytes().replace(size, struct.pack(">HH", 65_500, 65_500), 1))


TEXT = deflated_zeros(BOMB_BYTES)

IMAGES: Bombs = {
    "harmless.png": (png(64, 64), "read (64, 64, 3)"),
    "65k.png": (png(65_000, 65_000, num_bytes=BOMB_BYTES), "exceeds limit"),
    "89mpx.png": (png(9_400, 9_400), "9400 × 9400 pixels; limit 200-fold"),
    "strip.png": (png(1_000_000, 8), "1000000 × 8 pixels; limit 200-fold"),
    "65k.jpg": (large_jpeg, "exceeds limit"),
    "text.png": (png(8, 8, chunk(b"zTXt", b"a\0\0" + TEXT)), "Decompressed data too large"),
    "colours.png": (png(8, 8, chunk(b"iCCP", b"a\0\0" + TEXT)), "Decompressed data too large"),
}


def test_image_bombs(measure_costs: Callable[..., list], tmp_path: Path) -> None:
    check_bombs(measure_costs, load_image, tmp_path, IMAGES)


def member(name: str, payload: bytes, claims: int | None = None) -> bytes:
    """A member of a tar, which may claim more bytes than there are."""
    header = tar_header(name, len(payload) if claims is None else claims)
    return header + payload + bytes(padding_of(len(payload)))


SAMPLES = b"".join(
    member(f"k{number}.json", b'{"key":"k%d","source":"s","split":"train"}' % number) for number in range(3)
)
IDS_OF_2_TO_62 = npy_header(2**62) + bytes(64)
TOO_MANY_IDS = encode_npy(np.zeros(BOMB_BYTES // 4, np.int32))
LONG_TEXT = {
    **{"key": "k0", "source": "s", "split": "train", "text": "a" * BOMB_BYTES, "num_speech_runs": 0},
    **{f"num_{name}_tokens": 0 for name in TOKEN_MEMBERS},
}
TARS: dict[str, tuple[bytes, str]] = {
    "harmless": (SAMPLES, "its rows differ from what the tar holds"),
    "shape": (SAMPLES + member("k2.text.npy", IDS_OF_2_TO_62), "not an npy array of int32 tokens"),
    "array": (SAMPLES + member("k2.text.npy", TOO_MANY_IDS), "more than 16777216 bytes"),
    "size": (SAMPLES + member("k3.json", b"{}", 2**33 - 1), "more than 16777216 bytes"),
    "json": (SAMPLES + member("k3.json", b"[" * (8 << 20)), "more bytes than a sample may have"),
    "gzip": (gzip.compress(bytes(BOMB_BYTES)), "not a tar header that dmlm writes"),
    "index": (SAMPLES, "bytes, too many for a tar of 4096"),
}
"""Without their ends. Every sum of their data sets fits, as in one that was made on purpose."""


def test_tar_and_index_bombs(
    measure_costs: Callable[..., list], dataset: Path, plant_tar: Callable[..., None], tmp_path: Path
) -> None:
    def write(path: Path) -> None:
        rows = [LONG_TEXT] if path.name == "index" else None
        plant_tar(shutil.copytree(dataset, path), TARS[path.name][0] + END_OF_TAR, rows)

    bombs = {name: (write, message) for name, (_, message) in TARS.items()}
    check_bombs(measure_costs, verify_dataset, tmp_path, bombs)


def save_tensors(path: Path, **tensors: torch.Tensor) -> None:
    torch.save({"dims": {"n_audio_head": 6}, "model_state_dict": tensors}, path)


def deflate_entries(path: Path, pickled: bytes | None = None) -> None:
    """Packs a checkpoint as torch never does; `pickled` takes the place of its pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, payload in entries.items():
            archive.writestr(name, pickled if pickled and name.endswith("data.pkl") else payload)


def deflated_tensor(path: Path) -> None:
    save_tensors(path, **{"encoder.conv1.weight": torch.zeros(BOMB_BYTES // 4)})
    deflate_entries(path)


def deflated_pickle(path: Path) -> None:
    save_tensors(path)
    deflate_entries(path, b"\x80\x02X" + struct.pack("<I", BOMB_BYTES) + b"a" * BOMB_BYTES + b".")


def expanded_tensor(path: Path) -> None:
    """Writes one number that is said to be 2.7 GB of numbers."""
    weight = torch.zeros(1, dtype=torch.float16).expand(1 << 12, 80, 1 << 12)
    save_tensors(path, **{"encoder.conv1.weight": weight, "encoder.positional_embedding": torch.zeros(1, 1)})


def expanded_parameter(path: Path) -> None:
    module = torch.nn.Sequential()
    module.weight = torch.nn.Parameter(torch.zeros(1).expand(1 << 15, 1 << 15))
    torch.save(module, path)


CHECKPOINTS: Bombs = {
    "harmless.pt": (lambda path: torch.save({}, path), "no dims or model_state_dict"),
    "tensor.pt": (deflated_tensor, "holds compressed entries"),
    "pickle.pt": (deflated_pickle, "holds compressed entries"),
    "expanded.pt": (expanded_tensor, "claim to hold tensors of 2684354564"),
    "zip.pt": (lambda path: zipfile.ZipFile(path, "w").writestr("x", b""), "not a readable torch checkpoint"),
    "pickled.pt": (lambda path: path.write_bytes(pickle.dumps({})), "not a torch checkpoint"),
}
MODULES: Bombs = {
    "tensor.pkl": (deflated_tensor, "holds compressed entries"),
    "expanded.pkl": (expanded_parameter, "claim to hold tensors of 4294967296"),
}


def test_checkpoint_bombs(measure_costs: Callable[..., list], tmp_path: Path) -> None:
    check_bombs(measure_costs, load_whisper_weights, tmp_path, CHECKPOINTS)


@pytest.mark.parametrize("name", MODULES)
def test_pickled_modules_are_refused_for_the_same_reasons(name: str, tmp_path: Path) -> None:
    write, message = MODULES[name]
    write(tmp_path / name)
    with pytest.raises(CorruptInputError, match=message):
        read_pickled_module(tmp_path / name)


def laughs(path: Path) -> None:
    """Writes entities that each name the one before ten times."""
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><x><w>&a11;</w></x>'
    path.write_text(text)


def large_xml(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


ANNOTATIONS: Bombs = {
    "harmless.xml": (lambda path: path.write_text("<x/>"), "read"),
    "laughs.xml": (laughs, "document type 'x' is not accepted"),
    "large.xml": (large_xml, "1073741824 bytes, limit 16777216"),
    "nested.xml": (lambda path: path.write_text("<x>" * 100_000), "not readable XML"),
}


def test_annotation_bombs(measure_costs: Callable[..., list], tmp_path: Path) -> None:
    check_bombs(measure_costs, read_words, tmp_path, ANNOTATIONS)


@pytest.mark.parametrize(
    ("place", "message"), [("licence", "must be str"), ("counted", "must be one of samples")]
)
def test_manifest_bomb_has_a_short_message(place: str, message: str) -> None:
    lists = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    keys = {"name", "licence", "default_root", "corpus_dir", "text_rule"} - {place}
    text = f"{place}: [&a0 [ha], {lists}]\n" + "".join(f"{key}: a\n" for key in keys) + "splits: []\n"
    with pytest.raises(ConfigError, match=f"{place} {message}") as raised:
        parse_corpus_manifest(text, "bomb.yaml")
    assert len(str(raised.value)) < 1 << 20
