"""Everything that follows from other settings (dialect 2.10). Pure: raw values to a Config."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any

from tandem.config.config import SECTIONS, Config, Passthrough
from tandem.config.draft import Draft
from tandem.config.engines import choose_engine
from tandem.config.eval_sets import eval_sets
from tandem.config.given import Given

DIALECT_DEFAULTS = {
    "rollout_function_path": "slime.rollout.sglang_rollout.generate_rollout",
    "eval_function_path": "slime.rollout.sglang_rollout.generate_rollout",
    "data_source_path": "slime.rollout.data_source.RolloutDataSourceWithBuffer",
}
"""slime's own functions that are what runs here when nothing is set."""

DIALECT_CORRECTIONS = {
    "slime.backends.megatron_utils.loss.vanilla_tis_function": "tis",
    "slime.backends.megatron_utils.loss.icepop_function": "icepop",
    "examples.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp": "mis",
}
"""slime's own `--custom-tis-function-path`, and our `--tis-function` that is the same."""

DIALECT_TEACHER = "slime.rollout.on_policy_distillation."
ENDLESS_ROLLOUT = "fully_async_rollout.generate_rollout_fully_async"
"""slime's example of a rollout function that samples on while the trainer learns."""
SFT_ROLLOUT = "slime.rollout.sft_rollout.generate_rollout"


def resolve(given: Given, *, has_sglang: bool = False) -> tuple[Config, tuple[str, ...]]:
    """The whole configuration, and what is wrong with the evaluation sets.

    `has_sglang`: whether this interpreter could start SGLang's servers.

    Nothing is refused here (`rules`), no file is read, and nothing writes a Config afterwards.
    """
    draft = Draft(given.values, given.origins)
    _function_names(draft)
    _algorithm_names(draft)
    _debugging(draft)
    choose_engine(draft, {"sglang": given.sglang, "router": given.router}, has_sglang=has_sglang)
    _placement(draft)
    _lengths(draft)
    _batches(draft)
    _recomputation(draft)
    _algorithm(draft)
    _evaluation(draft)
    _schedule(draft)
    _staleness(draft)
    _folders(draft)
    sets, failures = eval_sets(draft, given.eval_file)
    sglang = dict(given.sglang)
    for name in ("sglang_mem_fraction_static",):
        if draft.is_said(name):
            sglang[name.removeprefix("sglang_").replace("_", "-")] = (str(draft[name]),)
    cfg = Config(
        **_sections(draft.values | {"eval_sets": sets}),
        passthrough=Passthrough(sglang=sglang, router=dict(given.router)),
        expectations=dict(given.expectations),
        custom=dict(given.custom),
        origins=draft.origins,
    )
    return cfg, failures


def complete(cfg: Config, num_prompts: int) -> Config:
    """The configuration once the prompts are counted: `num_rollout` and `lr_decay_iters` are set.

    An epoch is as many whole rollouts as the prompts fill (dialect 1.2).
    """
    data, optim, origins = cfg.data, cfg.optim, dict(cfg.origins)
    if data.num_rollout is None:
        assert data.num_epoch is not None and data.rollout_batch_size, "rules let this through"
        num_rollout = data.num_epoch * (num_prompts // data.rollout_batch_size)
        data = replace(data, num_rollout=num_rollout)
        origins["num_rollout"] = "derived from num_epoch and the number of prompts"
    if optim.lr_decay_iters is None and data.num_rollout is not None:
        steps = data.num_rollout * (cfg.batch.num_steps_per_rollout or 1)
        optim = replace(optim, lr_decay_iters=steps)
        origins["lr_decay_iters"] = "derived from num_rollout and num_steps_per_rollout"
    return replace(cfg, data=data, optim=optim, origins=origins)


def _sections(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        section: kind(**{entry.name: values[entry.name] for entry in fields(kind)})
        for section, kind in SECTIONS.items()
    }


def _function_names(draft: Draft) -> None:
    for name, path in DIALECT_DEFAULTS.items():
        if draft[name] == path:
            draft.put(name, None, f"{path}, which is what runs anyway")
    if draft["rollout_function_path"] == SFT_ROLLOUT and draft["loss_type"] == "sft_loss":
        draft.put("rollout_function_path", None, "loss_type sft_loss")
    if (draft["rollout_function_path"] or "").endswith(ENDLESS_ROLLOUT):
        draft.put("rollout_function_path", None, "asynchronous full")
        draft.put("asynchronous", "full", ENDLESS_ROLLOUT)
    draft.fill("eval_function_path", draft["rollout_function_path"], "rollout_function_path")


def _algorithm_names(draft: Draft) -> None:
    """slime's own functions that are shipped here."""
    path = draft["custom_tis_function_path"]
    if path in DIALECT_CORRECTIONS:
        draft.put("tis_function", DIALECT_CORRECTIONS[path], path)
        draft.put("custom_tis_function_path", None, "tis_function")
    if draft["custom_rm_path"] == DIALECT_TEACHER + "reward_func":
        draft.put("custom_rm_path", "tandem.algo.teacher.ask_teacher", "the same function")
    if draft["custom_reward_post_process_path"] == DIALECT_TEACHER + "post_process_rewards":
        draft.put("custom_reward_post_process_path", None, "custom_rm_path")


def _debugging(draft: Draft) -> None:
    details = draft["dump_details"]
    if details:
        rollout, train = f"{details}/rollout_data", f"{details}/train_data"
        draft.fill("save_debug_rollout_data", rollout + "/{rollout_id}.pt", "dump_details")
        draft.fill("save_debug_train_data", train + "/{rollout_id}.pt", "dump_details")
    if draft["load_debug_rollout_data"] and not draft["debug_train_only"]:
        draft.put("debug_train_only", True, "load_debug_rollout_data")


def _placement(draft: Draft) -> None:
    draft.fill("actor_num_gpus_per_node", 1, "one process")
    num_trainers = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    if draft["runtime"] == "auto":
        is_one = _num_devices(draft, num_trainers) <= 1
        draft.put("runtime", "local" if is_one else "ray", "the number of devices")
    if draft["debug_rollout_only"] and draft["colocate"]:
        draft.put("colocate", False, "debug_rollout_only")
    is_shared = draft["colocate"] or draft["runtime"] == "local"
    if is_shared:
        draft.fill("rollout_num_gpus", num_trainers, "actor_num_nodes x actor_num_gpus_per_node")
    for name in ("offload_train", "offload_rollout"):
        if draft["offload"] and not draft["debug_rollout_only"]:
            draft.put(name, True, "offload")
    if draft["advantage_estimator"] == "ppo":
        draft.put("offload_train", True, "advantage_estimator ppo")
    if draft["release_train"] and draft["colocate"]:
        draft.put("offload_train", False, "release_train")
    for name in ("offload_train", "offload_rollout"):
        draft.fill(name, draft["colocate"], "colocate")


def _num_devices(draft: Draft, num_trainers: int) -> int:
    """How many devices the flags ask for, where samplers that are not spoken of ask for none."""
    num_samplers = draft["rollout_num_gpus"] or 0
    # SGLang's servers are processes of their own anyway
    if draft["debug_train_only"] or draft["rollout_engine"] == "sglang":
        return num_trainers
    if draft["debug_rollout_only"]:
        return num_samplers
    if draft["colocate"]:
        return max(num_trainers, num_samplers)
    return num_trainers + num_samplers


def _lengths(draft: Draft) -> None:
    if draft["num_rollout"] == 0:  # an evaluation alone, which takes no training prompts
        draft.fill("rollout_batch_size", 1, "num_rollout 0")
        draft.fill("rollout_max_response_len", draft["eval_max_response_len"], "num_rollout 0")
    context = draft["rollout_max_context_len"]
    if context is not None:
        draft.fill("rollout_max_prompt_len", context - 1, "rollout_max_context_len")
        draft.fill("rollout_max_response_len", context - 1, "rollout_max_context_len")
    draft.fill("over_sampling_batch_size", draft["rollout_batch_size"], "rollout_batch_size")


def _batches(draft: Draft) -> None:
    prompts, group = draft["rollout_batch_size"], draft["n_samples_per_prompt"]
    steps, size = draft["num_steps_per_rollout"], draft["global_batch_size"]
    if prompts is not None:
        samples = prompts * group
        if size is None and (steps is None or steps > 0):
            because = "rollout_batch_size x n_samples_per_prompt"
            draft.fill("global_batch_size", samples // (steps or 1), because)
        if size is None or size > 0:
            per_step = draft["global_batch_size"] or max(1, samples)
            draft.fill("num_steps_per_rollout", max(1, samples // per_step), "global_batch_size")
    draft.fill("log_probs_max_tokens_per_gpu", draft["max_tokens_per_gpu"], "max_tokens_per_gpu")
    if draft["balance_by_flops"] and not draft["balance_data"]:
        draft.put("balance_data", True, "balance_by_flops")


def _recomputation(draft: Draft) -> None:
    if draft["recompute_granularity"] == "full":
        draft.fill("recompute_method", "uniform", "recompute_granularity full")
        draft.fill("recompute_num_layers", 1, "recompute_granularity full")


def _algorithm(draft: Draft) -> None:
    draft.fill("eps_clip_high", draft["eps_clip"], "eps_clip")
    if draft["overlong_buffer_len"]:
        longest = draft["rollout_max_response_len"]
        draft.fill("overlong_max_len", longest, "rollout_max_response_len")
    if draft["n_samples_per_prompt"] == 1 and not draft["disable_grpo_std_normalization"]:
        draft.put("disable_grpo_std_normalization", True, "n_samples_per_prompt 1")
    if draft["use_rollout_routing_replay"] and not draft["use_routing_replay"]:
        draft.put("use_routing_replay", True, "use_rollout_routing_replay")
    if draft["loss_type"] == "sft_loss" and not draft["disable_compute_advantages_and_returns"]:
        draft.put("disable_compute_advantages_and_returns", True, "loss_type sft_loss")


def _evaluation(draft: Draft) -> None:
    for name in ("temperature", "top_p", "top_k", "max_response_len", "max_context_len"):
        draft.fill(f"eval_{name}", draft[f"rollout_{name}"], f"rollout_{name}")
    draft.fill("eval_min_new_tokens", draft["rollout_min_new_tokens"], "rollout_min_new_tokens")
    for name in ("input_key", "label_key", "tool_key"):
        draft.fill(f"eval_{name}", draft[name], name)
    draft.fill("eval_reward_key", draft["reward_key"], "reward_key")


def _schedule(draft: Draft) -> None:
    num_rollout, steps = draft["num_rollout"], draft["num_steps_per_rollout"]
    if num_rollout and steps:
        because = "num_rollout and num_steps_per_rollout"
        draft.fill("lr_decay_iters", num_rollout * steps, because)


def _staleness(draft: Draft) -> None:
    if draft["asynchronous"] != "off":
        because = "update_weights_interval and asynchronous"
        more = 1 if draft["asynchronous"] == "full" else 0
        draft.fill("max_staleness", draft["update_weights_interval"] + more, because)


def _folders(draft: Draft) -> None:
    draft.fill("ref_load", draft["hf_checkpoint"], "hf_checkpoint")
    if draft["release_train"] and draft["save"]:
        draft.fill("save_interval", 1, "release_train")
    if draft["save"]:
        draft.fill("run_dir", draft["save"], "save")
        return
    model = PurePath(draft["hf_checkpoint"] or "model").name
    told = json.dumps({name: draft[name] for name in sorted(draft.origins)}, default=str)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    draft.fill("run_dir", f"runs/{model}-{digest}", "the settings")
