"""Names of the sources, for whoever must not wait for the sources themselves, such as `--help`."""

from typing import Final

CORPUS_NAMES: Final = ("librispeech", "ami", "covost", "coco")
"""Sources that have a folder of their own, so that they are found without being named."""
SOURCE_NAMES: Final = (*CORPUS_NAMES, "jsonl", "hf", "text", "units")
"""What `--source` accepts, in the order of the registry."""
