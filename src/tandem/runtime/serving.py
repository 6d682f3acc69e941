"""The run's own HTTP address, for users' functions that post where slime's router would be."""

from typing import Any
from urllib.parse import urlsplit

from tandem.config import Config
from tandem.config.flat import FlatArgs
from tandem.rollout import EventLoop
from tandem.server import Server, ServerSettings
from tandem.server.settings import Samples


def asks_engine(cfg: Config) -> bool:
    """Whether functions of the user's ask the engine, and may do so over HTTP."""
    rollout = cfg.rollout
    paths = (
        rollout.custom_generate_function_path,
        rollout.rollout_function_path,
        cfg.eval.eval_function_path,
        *(one.custom_generate_function_path for one in cfg.eval.eval_sets),
    )
    return any(path is not None for path in paths)


def served(
    cfg: Config,
    args: FlatArgs,
    engine: Samples,
    tokenizer: Any,
    max_context: int,
    events: EventLoop,
) -> FlatArgs:
    """What hooks see of the settings, with the address of a server that starts here.

    It listens on loopback at a port that is free, answers while the run samples or evaluates, and
    closes with the event loop. An address that the settings have already is left as it is.
    """
    if dict(args).get("sglang_router_ip") is not None:
        return args
    assert cfg.model.hf_checkpoint is not None, "rules refuse a run without --hf-checkpoint"
    settings = ServerSettings(
        model=cfg.model.hf_checkpoint,
        max_context=max_context,
        seed=cfg.data.rollout_seed,
        cuts_to_context=True,
    )
    server = Server(engine, tokenizer, settings)
    events.at_close(server.close)
    address = urlsplit(events.run(server.start()))
    values = {"sglang_router_ip": address.hostname, "sglang_router_port": address.port}
    return FlatArgs({**dict(args), **values})
