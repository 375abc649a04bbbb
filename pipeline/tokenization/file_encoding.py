"""Files -> tokens: loaded ahead by a few threads while the tokenizer computes.

A file that cannot be loaded costs its own samples and nothing else.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from dmlm.pipeline.errors import DmlmError, SampleError
from dmlm.pipeline.samples import Pixels, TokenArray, Waveform

T = TypeVar("T")
Raw = TypeVar("Raw", Waveform, Pixels)

_NUM_CPUS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NUM_LOADERS: Final = min(8, _NUM_CPUS)
MAX_LOADED_AHEAD: Final = 2 * NUM_LOADERS


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one file, and the length of what was loaded: audio samples, or rows of pixels."""

    tokens: TokenArray
    length: int


Outcome = Encoded | SampleError


def encode_files(
    items: Sequence[T],
    load: Callable[[T], Raw],
    encode: Callable[[Iterable[Raw]], Iterator[TokenArray]],
    error_type: type[SampleError],
    on_file: Callable[[], None],
) -> list[Outcome]:
    """Loads each item and encodes what could be loaded; one outcome for each item, in their order."""
    failed: dict[int, SampleError] = {}
    lengths: dict[int, int] = {}

    def loaded() -> Iterator[Raw]:
        for index, raw in enumerate(load_ahead(items, load, error_type)):
            if isinstance(raw, SampleError):
                failed[index] = raw
                on_file()
            else:
                lengths[index] = len(raw)
                yield raw

    tokens = []
    for ids in encode(loaded()):
        tokens.append(ids)
        on_file()
    encoded = zip(lengths.items(), tokens, strict=True)
    outcomes = failed | {index: Encoded(ids, length) for (index, length), ids in encoded}
    return [outcomes[index] for index in range(len(items))]


def load_ahead(
    items: Iterable[T], load: Callable[[T], Raw], error_type: type[SampleError]
) -> Iterator[Raw | SampleError]:
    """Yields what `load` gives for each item, in order; a few are loaded while the consumer works.

    Whatever a decoder raises costs its own sample only; errors of settings and packages end the run.
    """

    def load_or_error(item: T) -> Raw | SampleError:
        try:
            return load(item)
        except SampleError as error:
            return error
        except (DmlmError, ImportError):
            raise
        except Exception as error:
            return error_type(f"{type(error).__name__}: {error}")

    pending: deque[Future[Raw | SampleError]] = deque()
    pool = ThreadPoolExecutor(NUM_LOADERS)
    try:
        for item in items:
            pending.append(pool.submit(load_or_error, item))
            if len(pending) > MAX_LOADED_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
