"""The options that say who does the work of `tokenize`; Ray and torch are imported only when it begins."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from dmlm.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from dmlm.pipeline.tokenization.planning import TokenizeConfig

Command = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--engine",
        "name",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who does the work: processes of this machine, or a Ray cluster.",
    ),
    click.option(
        "--workers",
        "num_workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="local: processes; with several GPUs one each.",
    ),
    click.option(
        "--ray-address", default="auto", show_default=True, help="ray: HOST:PORT of a running cluster."
    ),
    click.option(
        "--task-index",
        type=click.IntRange(min=0),
        help="Do one share of the shards and publish nothing, as a task of a job array; from 0.",
    ),
    click.option(
        "--num-tasks",
        type=click.IntRange(min=1),
        help="Number of shares.  [default: ray: one per GPU, or per processor]",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Who does the work, as the options say."""

    name: Literal["local", "ray"] = "local"
    num_workers: int = 1
    ray_address: str = "auto"
    task_index: int | None = None
    num_tasks: int | None = None

    def __post_init__(self) -> None:
        if self.name == "ray" and (self.task_index is not None or self.num_workers > 1):
            raise ConfigError("--engine ray starts its own tasks: leave out --task-index and --workers")
        if self.task_index is not None and (self.num_tasks is None or self.num_workers > 1):
            raise ConfigError(
                "--task-index is one of --num-tasks, in one process: give both, without --workers"
            )
        if self.num_tasks is not None and self.task_index is None and self.name == "local":
            raise ConfigError("--num-tasks goes with --task-index, or with --engine ray")
        if self.ray_address != "auto" and self.name != "ray":
            raise ConfigError("--ray-address goes with --engine ray")

    def tokenize(self, config: "TokenizeConfig") -> str:
        """Does the work of `config`, or this task's share of it; what came of it, for people."""
        from dmlm.pipeline.tokenization.running import tokenize, tokenize_share

        if self.task_index is not None and self.num_tasks is not None:
            tokenize_share(config, self.task_index, self.num_tasks)
            return (
                f"share {self.task_index} of {self.num_tasks} is done; when all are, run the same command "
                "without --task-index and --num-tasks: it publishes"
            )
        return tokenize(config, self._spread()).table()

    def _spread(self) -> "Callable[[TokenizeConfig], None] | None":
        if self.name == "ray":
            from dmlm.pipeline.executors.ray_cluster import run_on_ray

            return partial(run_on_ray, num_shares=self.num_tasks, address=self.ray_address)
        if self.num_workers > 1:
            from dmlm.pipeline.executors.local import run_locally

            return partial(run_locally, num_workers=self.num_workers)
        return None


def engine_options(command: Command) -> Command:
    """Adds the options; the command gets `engine: Engine`."""

    @wraps(command)
    def with_engine(**settings: Any) -> Any:
        engine = Engine(**{name: settings.pop(name) for name in Engine.__slots__})
        return command(engine=engine, **settings)

    for option in reversed(_OPTIONS):
        with_engine = option(with_engine)
    return with_engine
