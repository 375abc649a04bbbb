"""`export`: a checkpoint as a folder to publish, for stock transformers and vLLM.

    config.json model.safetensors generation_config.json tokenizer files    what transformers loads
    vocabulary.json dmlm.json codebook/ DONE                                what dmlm needs besides
    README.md                                                               the model card

No trainer state and no pickle; the weights are copied as they are.
"""

import json
import shutil
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import CheckpointError, ConfigError
from dmlm.pipeline.storage import (
    atomic_writer,
    is_vacant,
    publish_folder,
    scratch_for,
    sha256_file,
    write_bytes,
    write_json,
)
from dmlm.trainer.checkpoint import DONE_NAME, Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.model_card import write_card

CARD_NAME: Final = "README.md"
_SUFFIXES: Final = (".json", ".safetensors", ".jinja", ".txt", ".model")
_STATE_DIR: Final = "trainer_state"


def export_checkpoint(checkpoint_dir: Path, out_dir: Path) -> Checkpoint:
    """Writes a checkpoint to `out_dir`, whole or not at all; gives back the checkpoint that was exported.

    Args:
        checkpoint_dir: A checkpoint, or a run folder whose newest checkpoint is used.
        out_dir: A folder that does not exist yet, or is empty.

    Raises:
        ConfigError: There is no checkpoint, or `out_dir` holds something.
        CheckpointError: The checkpoint is damaged, or its ids are not those of its vocabulary.
    """
    if not is_vacant(out_dir):
        raise ConfigError(f"{out_dir} is there and not empty; choose another --out")
    checkpoint = load_checkpoint(resolve_checkpoint(checkpoint_dir))
    _check_ids(checkpoint)
    with scratch_for(out_dir) as scratch:
        _write_files(checkpoint, scratch)
        publish_folder(scratch, out_dir, last=DONE_NAME)
    return checkpoint


def _check_ids(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError unless stock transformers gives every token the id of the vocabulary."""
    from transformers import AutoTokenizer

    vocabulary, path = checkpoint.vocabulary, checkpoint.path
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir, trust_remote_code=False)
    ids = tokenizer.convert_tokens_to_ids(vocabulary.added_tokens())
    if ids != list(range(vocabulary.num_text, vocabulary.num_used)) or len(tokenizer) != vocabulary.num_used:
        raise CheckpointError(f"{path}: AutoTokenizer gives other ids than vocabulary.json; train again")
    num_rows = checkpoint.model.get_input_embeddings().weight.shape[0]
    if num_rows != vocabulary.size:
        raise CheckpointError(f"{path}: {num_rows} embeddings, vocabulary.json says {vocabulary.size}")


def _write_files(checkpoint: Checkpoint, directory: Path) -> None:
    # Only what training wrote, not what was put beside it, such as reports of `evaluate`.
    vouched_for = json.loads((checkpoint.path / DONE_NAME).read_bytes())
    for path in sorted(checkpoint.path.rglob("*")):
        name = path.relative_to(checkpoint.path)
        if name.as_posix() in vouched_for and name.suffix in _SUFFIXES and _STATE_DIR not in name.parts:
            with (checkpoint.path / name).open("rb") as source, atomic_writer(directory / name) as file:
                shutil.copyfileobj(source, file)
    _write_generation_config(checkpoint, directory)
    write_bytes(directory / CARD_NAME, write_card(checkpoint).encode())
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    write_json(directory / DONE_NAME, {p.relative_to(directory).as_posix(): sha256_file(p) for p in files})


def _write_generation_config(checkpoint: Checkpoint, directory: Path) -> None:
    """Greedy, as far as the caller says; nothing is left of how the pretrained LLM liked to chat."""
    from transformers import GenerationConfig

    vocabulary = checkpoint.vocabulary
    GenerationConfig(
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.eos_id,
        do_sample=False,
    ).save_pretrained(directory)
