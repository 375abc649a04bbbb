"""R2: the same bytes from one process, several, a job array in any order, and Ray with a node killed."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, DmlmError, ExitCode, RankError
from dmlm.pipeline.executors.local import run_locally
from dmlm.pipeline.executors.options import Engine
from dmlm.pipeline.executors.ray_cluster import _absolute, run_on_ray
from dmlm.pipeline.shards import load_dataset_card
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize, tokenize_share
from dmlm.pipeline.tokenizers.choosing import TokenizerChoice

Settings = Callable[[Path], TokenizeConfig]
Content = Callable[[Path], dict[str, bytes]]
LIMIT_SECONDS = 250


def wait_for(condition: Callable[[], bool], limit_seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_array_in_any_order_gives_the_same_bytes(
    settings: Settings,
    content: Content,
    undisturbed: Path,
    assert_no_data_set: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    config = settings(tmp_path / "out")
    for index in (2, 0, 2, 1):  # one of them twice
        tokenize_share(config, index, 3)
        assert_no_data_set(config.out_dir)
    written = {path: path.stat().st_mtime_ns for path in config.out_dir.glob("*.tar")}
    tokenize(config)
    assert content(config.out_dir) == content(undisturbed)
    assert written == {path: path.stat().st_mtime_ns for path in config.out_dir.glob("*.tar")}


def test_what_a_lost_task_of_a_job_array_did_not_do_the_last_run_does(
    settings: Settings, content: Content, undisturbed: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "out")
    tokenize_share(config, 1, 2)
    assert 0 < len(list(config.out_dir.glob("*.tar"))) < len(list(undisturbed.glob("*.tar")))
    tokenize(config)
    assert content(config.out_dir) == content(undisturbed)


def test_the_command_does_one_share(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenize", "--source", "coco", "--root", root, "--codebook", root / "codebook"]
    command += ["--out", tmp_path / "out", "--task-index"]
    assert run([*map(str, command), "0", "--num-tasks", "4"]) == ExitCode.OK
    assert "share 0 of 4 is done" in capsys.readouterr().out
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert run([*map(str, command), "4", "--num-tasks", "4"]) == ExitCode.USAGE
    assert "task 4 of 4: must be from 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_index": 1}, "is one of --num-tasks"),
        ({"num_tasks": 2}, "--num-tasks goes with --task-index"),
        ({"task_index": 1, "num_tasks": 2, "num_workers": 2}, "without --workers"),
        ({"name": "ray", "num_workers": 2}, "starts its own tasks"),
        ({"ray_address": "head:6379"}, "--ray-address goes with --engine ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Engine(), **change)


def test_any_number_of_workers_gives_the_same_bytes(
    amount: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]],
    settings: Settings,
    content: Content,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    for num_workers in amount((2,), (1, 2, 4)):
        config = settings(tmp_path / str(num_workers))
        run_locally(config, num_workers)
        num_tars = len(list(config.out_dir.glob("*.tar")))
        assert num_tars == len(list(undisturbed.glob("*.tar")))
        tokenize(config)
        assert content(config.out_dir) == content(undisturbed)


def test_a_worker_that_dies_is_seen_and_nothing_is_left_behind(
    settings: Settings, content: Content, undisturbed: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "out")
    killed: list[float] = []

    def kill_the_second() -> None:
        wait_for(lambda: any(process.name == "worker 1" for process in multiprocessing.active_children()))
        (second,) = (p for p in multiprocessing.active_children() if p.name == "worker 1")
        killed.append(time.monotonic())
        second.kill()

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(RankError, match=r"worker 1 died \(exit code -9\)"):
        run_locally(config, 2)
    assert time.monotonic() - killed[0] < 10
    killer.join()
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("worker ")]
    tokenize(config)
    assert content(config.out_dir) == content(undisturbed)


RUN_LOCALLY = """
import sys
from pathlib import Path
from dmlm.pipeline.executors.local import run_locally
from dmlm.pipeline.tokenization.planning import TokenizeConfig
root, out_dir = map(Path, sys.argv[1:])
config = TokenizeConfig(
    source="coco", root=root, codebook_dir=root / "codebook", out_dir=out_dir, samples_per_shard=1
)
run_locally(config, 2)
"""


def test_workers_end_with_a_parent_that_is_killed(root: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_LOCALLY, str(root), str(tmp_path / "out")]
    parent = subprocess.Popen(command, start_new_session=True)
    wait_for((tmp_path / "out" / "run.json").exists)
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    wait_for(lambda: not _is_running(group=parent.pid), limit_seconds=10)
    num_finished = len(list((tmp_path / "out").glob("*.parquet")))
    assert num_finished < load_dataset_card(undisturbed).totals.num_in // 2


def _is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_error_of_a_worker_is_that_of_the_run(root: Path, settings: Settings, tmp_path: Path) -> None:
    config = replace(settings(tmp_path / "out"), codebook_dir=root / "none")
    with pytest.raises(DmlmError, match="none: no codebook"):
        run_locally(config, 2)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_ray_tasks_find_a_text_tokenizer_that_was_named_from_another_folder(
    kind: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name, expected in ((kind, str(tmp_path / kind)), ("facebook/opt-125m", "facebook/opt-125m")):
        config = replace(settings(tmp_path / "out"), choice=TokenizerChoice(text=name))
        assert _absolute(config).choice.text == expected


def test_ray_with_a_node_killed_in_the_middle_gives_the_same_bytes(
    settings: Settings, content: Content, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "dmlm[ray]"')
    from ray.cluster_utils import Cluster

    config = settings(tmp_path / "out")
    num_shards = len(list(undisturbed.glob("*.tar")))
    seen: list[int] = []
    plain = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=plain)
    try:
        node = cluster.add_node(**plain)

        def kill_the_node() -> None:
            wait_for(lambda: any(config.out_dir.glob("*.parquet")))
            seen.append(len(list(config.out_dir.glob("*.parquet"))))
            cluster.remove_node(node, allow_graceful=False)

        killer = threading.Thread(target=kill_the_node)
        killer.start()
        run_on_ray(config, num_shards, cluster.address)
        killer.join()
    finally:
        cluster.shutdown()
    assert seen[0] < num_shards
    assert len(list(config.out_dir.glob("*.tar"))) == num_shards
    tokenize(config)
    assert content(config.out_dir) == content(undisturbed)
