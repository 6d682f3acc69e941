"""The command line of a server: the user's flags as they came, and ours."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tandem.config.engines import pipeline_stages
from tandem.engine.sglang.ports import MEETING, Ports
from tandem.errors import ConfigError

CPU = {
    "attention-backend": ("torch_native",),
    "sampling-backend": ("pytorch",),
    "grammar-backend": ("none",),
    "disable-overlap-schedule": (),
    "max-total-tokens": ("16384",),
    "mem-fraction-static": ("0.1",),
}
"""What stock SGLang needs to run without a GPU; each gives way to the user's own."""

DECODE_GRAPHS = ("cuda-graph-max-bs-decode", "cuda-graph-max-bs")
"""The largest batch that decodes in a graph: as 0.5.15 has it, and as those before it do."""
NO_PREFILL_GRAPHS: Mapping[str, tuple[str, ...]] = {
    "cuda-graph-backend-prefill": ("disabled",),
    "disable-piecewise-cuda-graph": (),
}
"""The same for graphs of prompts, which cost start-up and are not needed: sampling is decoding."""
ABOUT_ALL_GRAPHS = ("cuda-graph-config", "disable-cuda-graph")

_FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
_FLAG = re.compile(r"[\"']--([a-z0-9][a-z0-9-]*)[\"']")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerPlan:
    """One server: where it runs, on which devices, with which flags."""

    python: str
    model: str
    dtype: str  # as SGLang spells it: bfloat16, float32
    seed: int
    first_gpu: int
    num_gpus: int  # of the whole engine, on this node and others
    is_cpu: bool
    gives_memory_back: bool
    is_deterministic: bool  # the same bits whatever is batched together, and our seeds
    flags: Mapping[str, tuple[str, ...]]  # the user's, without `--sglang-`, and those of graphs
    host: str = "127.0.0.1"
    num_nodes: int = 1
    node: int = 0
    head: str | None = None  # where the processes of several nodes meet; None on the first

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel ranks: the stages of a pipeline share the devices of the engine."""
        return max(1, self.num_gpus // pipeline_stages(self.flags))

    def words(self, ports: Ports) -> list[str]:
        """The program and its arguments; the user's flags come last, so they win."""
        given = dict(self.flags)
        ours: dict[str, Sequence[str]] = {
            "model-path": (self.model,),
            "host": (self.host,),
            "port": (str(ports[1]),),
            "nccl-port": (str(ports[2]),),
            "tp-size": (str(self.num_ranks),),
            "random-seed": (str(self.seed),),
            "skip-server-warmup": (),
            # the first update brings the weights, so none are read
            "load-format": ("dummy",),
            "dtype": (self.dtype,),
        }
        if self.is_cpu:
            ours |= {"device": ("cpu",), **CPU}
        else:
            ours["base-gpu-id"] = (str(self.first_gpu),)
            if self.is_deterministic:
                ours["enable-deterministic-inference"] = ()
        if self.gives_memory_back:
            ours["enable-memory-saver"] = ()
        if self.num_nodes > 1:
            ours |= {"nnodes": (str(self.num_nodes),), "node-rank": (str(self.node),)}
            ours["dist-init-addr"] = (self.head or f"{self.host}:{ports[MEETING]}",)
        words = [self.python, "-m", "sglang.launch_server"]
        for name, values in (ours | given).items():
            words += [f"--{name}", *values]
        return words


def check_servers(python: str, flags: Iterable[str]) -> None:
    """Passes if this interpreter has SGLang, and SGLang every flag; else ConfigError."""
    folder = find_package("sglang", python)
    if folder is None:
        raise ConfigError(
            f"--rollout-engine sglang: {python} has no SGLang; install it there, or name an "
            "interpreter that has it with --sglang-python"
        )
    known = _flags_in(folder)
    if known is not None:
        check_flags(flags, known)


def installed_flags(python: str) -> set[str] | None:
    """The flags of the SGLang that this interpreter has; None where it is not found.

    Its source is read, not imported, which would take many seconds.
    """
    folder = find_package("sglang", python)
    return None if folder is None else _flags_in(folder)


def _flags_in(folder: Path) -> set[str] | None:
    source = folder / "srt" / "server_args.py"
    return known_flags(source.read_text(encoding="utf-8")) if source.is_file() else None


def check_flags(flags: Iterable[str], known: set[str]) -> None:
    """Passes if SGLang has every flag; else ConfigError."""
    failures = []
    for name in flags:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean --sglang-{near[0]}?" if near else "leave it out"
            failures.append(f"--sglang-{name}: the installed SGLang has no --{name}; {hint}")
    if failures:
        raise ConfigError(failures)


def graph_flags(
    given: Iterable[str], known: set[str], largest_batch: int
) -> dict[str, tuple[str, ...]]:
    """No graphs but those that decode batches of up to this size, where the user says nothing of
    graphs: each that is captured takes start-up time and memory."""
    of_graphs = {name for name in given if "cuda-graph" in name}
    of_prefill = {name for name in of_graphs if "prefill" in name or "piecewise" in name}
    chosen: dict[str, tuple[str, ...]] = {}
    if not of_graphs - of_prefill:
        newest = [name for name in DECODE_GRAPHS if name in known]
        chosen |= {name: (str(largest_batch),) for name in newest[:1]}
    if not of_prefill and of_graphs.isdisjoint(ABOUT_ALL_GRAPHS):
        chosen |= dict([one for one in NO_PREFILL_GRAPHS.items() if one[0] in known][:1])
    return chosen


def known_flags(source: str) -> set[str]:
    """Names of the flags that this text of `server_args.py` makes."""
    start = source.find("class ServerArgs")
    end = source.find("\nclass ", start + 1)
    body = source[start : end if end > 0 else None]
    head = body.partition("\n    def ")[0]
    fields = {name.replace("_", "-") for name in _FIELD.findall(head)}
    return fields | set(_FLAG.findall(body))


def find_package(name: str, python: str) -> Path | None:
    """The folder of a package as this interpreter finds it, without importing it; or None.

    Raises ConfigError for an interpreter that does not run.
    """
    if python == sys.executable:
        spec = importlib.util.find_spec(name)
        return None if spec is None or spec.origin is None else Path(spec.origin).parent
    program = (
        "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]); "
        "sys.stdout.write(spec.origin if spec and spec.origin else '')"
    )
    try:
        done = subprocess.run([python, "-c", program, name], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(
            f"--sglang-python {python} does not run ({error.strerror}); give the path of a Python "
            "interpreter"
        ) from error
    return Path(done.stdout).parent if done.returncode == 0 and done.stdout else None
