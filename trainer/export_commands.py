"""The command that publishes a model: parse -> one call."""

from pathlib import Path

import click

from dmlm.pipeline.remote.options import local_path
from dmlm.trainer.generation_commands import checkpoint_option


@click.command(short_help="Write a checkpoint as a folder for transformers and vLLM.")
@checkpoint_option
@click.option("--out", "out_dir", type=local_path, required=True, help="Folder, not there yet or empty.")
def export(checkpoint: Path, out_dir: Path) -> None:
    """Write a checkpoint as a Hugging Face folder with a model card, without trainer state.

    Stock AutoModelForCausalLM and AutoTokenizer load it, and so does dmlm-cli.

    \b
    Example:
      dmlm-cli export --checkpoint runs/first --out models/first
    """
    from dmlm.trainer.export import export_checkpoint

    exported = export_checkpoint(checkpoint, out_dir)
    click.echo(f"step {exported.step} of {exported.path} -> {out_dir}; see {out_dir / 'README.md'}")
