"""Runs a command where there is no room, then where there is; test_full_disk.py starts it by `unshare -m`.

Its argument is json. For each of `num_kib` the folder `disk`, a tmpfs that only this process sees and that
ends with it, has room for so many KiB, beside `begun`, what `disk`/out starts as (null: nothing). What
`arguments` leave there is copied to `results`/KIB-full and, after another run with room, to
`results`/KIB-later. Prints the exit code and standard error of each run, in that order.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

from dmlm.cli import run


def main(
    disk: Path, results: Path, arguments: list[str], begun: str | None, num_kib: list[int]
) -> Iterator[tuple[int, str]]:
    out_dir = disk / "out"

    def run_and_keep(name: str) -> tuple[int, str]:
        with redirect_stderr(io.StringIO()) as stderr:
            code = run(arguments)
        if out_dir.is_dir():
            shutil.copytree(out_dir, results / name)
        return code, stderr.getvalue()

    mount(disk, "size=64m")
    for size in num_kib:
        shutil.rmtree(out_dir, ignore_errors=True)
        if begun:
            shutil.copytree(begun, out_dir)
        space = os.statvfs(disk)
        used_kib = (space.f_blocks - space.f_bfree) * space.f_frsize >> 10
        mount(disk, f"remount,size={used_kib + size}k")
        yield run_and_keep(f"{size}-full")
        mount(disk, "remount,size=64m")
        yield run_and_keep(f"{size}-later")


def mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


if __name__ == "__main__":  # those that decode import this file too
    request = json.loads(sys.argv[1])
    folders = {name: Path(request.pop(name)) for name in ("disk", "results")}
    print(json.dumps(list(main(**folders, **request))))
