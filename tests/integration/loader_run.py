"""A process that loads with two workers, kills one, and says on a line of json what became of it.

`python loader_run.py SHARDS RECIPE`, the recipe as json. It is not pytest's own process, as torch raises for
every child that ends, wherever the process is, until the loader is gone.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from torch.utils.data import DataLoader

from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream


def main() -> None:
    data, recipe = open_training_data([Path(sys.argv[1])]), recipe_from_json(json.loads(sys.argv[2]))
    entries = iter(
        DataLoader(TokenStream(data, recipe, seed=0).as_webdataset(), batch_size=None, num_workers=2)
    )
    next(entries)
    workers = [worker.pid for worker in multiprocessing.active_children()]
    start = time.monotonic()
    error = ""
    try:
        os.kill(workers[0], signal.SIGKILL)
        for _ in entries:
            if time.monotonic() > start + 60:
                break
    except (RuntimeError, EOFError, ConnectionError) as raised:  # the latter two while it hands over a tensor
        error = repr(raised)
    print(json.dumps({"error": error, "seconds": time.monotonic() - start, "workers": workers}), flush=True)


if __name__ == "__main__":
    main()
