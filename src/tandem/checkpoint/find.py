"""Decides what a run starts from: its own last save, or weights to begin with.

The rules are those of the dialect (section 1.8), with one change: there, a `--load` that points
at the wrong folder silently restarts a run at rollout 0; here it is an error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tandem.checkpoint.folders import is_leftover
from tandem.checkpoint.hugging_face import is_hugging_face
from tandem.checkpoint.megatron import is_megatron
from tandem.checkpoint.torch_dist import (
    RELEASE,
    TRACKER,
    Iteration,
    complete_folder,
    complete_iterations,
    folder_of,
    latest,
)
from tandem.errors import CheckpointError
from tandem.observe.journal import CONFIG_FILE, RECORD_FILES

Kind = Literal["torch_dist", "hugging_face", "random"]

Recognised = tuple[Kind, Iteration | None, str]
"""Format and iteration of a folder, and a remark."""

# what a file browser, a version control system or a queue leaves in any folder
_NO_CONTENT = (".DS_Store", ".gitignore", ".gitkeep", ".nfs")

# a run writes these into its --save folder long before its first save
_RECORD = (CONFIG_FILE, *RECORD_FILES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What to load, and the sentence for the log that says why."""

    kind: Kind
    message: str
    path: Path | None = None  # root of a torch_dist checkpoint or a Hugging Face folder
    iteration: Iteration | None = None  # of a torch_dist checkpoint
    is_resume: bool = False  # everything is loaded; else weights only
    is_fallback: bool = False  # --load was given and is not there yet: say it loudly

    @property
    def start_rollout_id(self) -> int:
        """The first rollout to run, where `--start-rollout-id` does not say."""
        return self.iteration + 1 if self.is_resume and isinstance(self.iteration, int) else 0


def decide_load(
    *,
    load: str | None,
    ref_load: str | None,
    hf_checkpoint: str | None,
    save: str | None = None,
    ckpt_step: int | None = None,
    ref_ckpt_step: int | None = None,
    finetune: bool = False,
    init: str = "checkpoint",
) -> Found:
    """What the actor starts from. Raises CheckpointError for a folder that is not what its flag
    wants, rather than starting anew.

    `load` with a torch_dist save is resumed (weights only after a release, or with `finetune`);
    a Hugging Face folder there gives weights. While `load` is unset, absent or empty, weights come
    from `ref_load`, else `hf_checkpoint`, or are random when `init` says so. A `load` that is also
    `save` counts as empty while it holds no more than the record of a run that was never saved.
    """
    if load is not None and _has_content(Path(load)) and not _is_unsaved_run(load, save):
        return _from_load(Path(load), ckpt_step, finetune)
    if ckpt_step is not None:
        raise CheckpointError(
            f"--ckpt-step {ckpt_step} wants a --load with that iteration, and "
            f"{load or '--load'} {_lack(load)}"
        )
    return _from_weights(load, ref_load, hf_checkpoint, ref_ckpt_step, init)


def decide_reference(
    *, ref_load: str | None, hf_checkpoint: str | None, ref_ckpt_step: int | None = None
) -> Found:
    """What the reference model is: `ref_load`, else `hf_checkpoint`. Raises CheckpointError."""
    return _from_weights(None, ref_load, hf_checkpoint, ref_ckpt_step, "checkpoint")


def _from_load(root: Path, step: int | None, finetune: bool) -> Found:
    hint = (
        ". Point it at the --save folder of the run to resume, or at an empty or absent folder to "
        "start anew"
    )
    kind, iteration, how = _recognised(root, "--load", step, hint)
    if kind != "torch_dist" or not isinstance(iteration, int) or finetune:
        return _weights(root, "--load", (kind, iteration, how))
    if is_megatron(folder_of(root, iteration)):
        raise CheckpointError(
            f"--load {root} iteration {iteration} was written by Megatron: its weights can be "
            "taken, its optimizer and its place in the data cannot. Pass --finetune to start a new "
            "run from the weights"
        )
    return Found(
        kind=kind,
        path=root,
        iteration=iteration,
        is_resume=True,
        message=f"Resuming from {root}, rollout {iteration}{how}",
    )


def _from_weights(
    load: str | None, ref_load: str | None, hf_checkpoint: str | None, step: int | None, init: str
) -> Found:
    reason = ""
    if load is not None:
        reason = f"--load {load} {_lack(load)}: this is a NEW run, nothing is resumed. "
    if init == "random":
        message = f"{reason}Random weights (--init random); starting at rollout 0"
        return Found(kind="random", is_fallback=load is not None, message=message)
    flag, source = ("--ref-load", ref_load) if ref_load else ("--hf-checkpoint", hf_checkpoint)
    if not source:
        raise CheckpointError(
            f"{reason}There are no weights to start from; set --ref-load or --hf-checkpoint, or "
            "--init random"
        )
    root = Path(source)
    if not root.is_dir():
        raise CheckpointError(f"{flag} {root} is not a folder; weights to start from are wanted")
    return _weights(root, flag, _recognised(root, flag, step), reason)


def _weights(root: Path, flag: str, recognised: Recognised, reason: str = "") -> Found:
    """Weights alone; `reason` says why no run is resumed that was to be."""
    kind, iteration, how = recognised
    what = f"iteration {iteration}" if kind == "torch_dist" else "Hugging Face weights"
    return Found(
        kind=kind,
        path=root,
        iteration=iteration,
        is_fallback=bool(reason),
        message=f"{reason}Weights from {flag} {root} ({what}{how}); starting at rollout 0",
    )


def _recognised(root: Path, flag: str, step: int | None, hint: str = "") -> Recognised:
    found = _recognise(root, flag, step)
    if found is None:
        raise CheckpointError(
            f"{flag} {root} is neither a checkpoint (no {TRACKER}) nor a Hugging Face folder (no "
            f"config.json); it holds {_listing(root)}{hint}"
        )
    return found


def _recognise(root: Path, flag: str, step: int | None) -> Recognised | None:
    """What the folder holds, once it is known to be whole; None: not a model."""
    if (root / TRACKER).is_file():
        iteration = latest(root) if step is None else step
        complete_folder(root, iteration)
        return "torch_dist", iteration, ""
    if any(root.glob("iter_*")) or (root / RELEASE).is_dir() or complete_iterations(root):
        return _without_tracker(root, flag, step)
    if is_hugging_face(root):
        if step is not None:
            raise CheckpointError(f"{flag} {root} is a Hugging Face folder; it has no step {step}")
        return "hugging_face", None, ""
    return None


def _without_tracker(root: Path, flag: str, step: int | None) -> Recognised:
    there = complete_iterations(root)
    if step is not None:
        complete_folder(root, step)
        return "torch_dist", step, ""
    # a kill between the two last steps of a run's first save leaves just this
    if len(there) == 1 and len(list(root.glob("iter_*"))) <= 1:
        return "torch_dist", there[0], f"; {TRACKER} is missing: its first save was interrupted"
    raise CheckpointError(
        f"{flag} {root} has iterations but no {TRACKER}; write the number of one that is complete "
        f"into that file ({', '.join(str(i) for i in there) or 'none is'})"
    )


def _has_content(folder: Path) -> bool:
    """Whether something is there that a run could have meant by naming this path."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint folder is wanted")
    if not folder.is_dir():
        return False
    return any(
        not is_leftover(path) and not path.name.startswith(_NO_CONTENT) for path in folder.iterdir()
    )


def _is_unsaved_run(load: str, save: str | None) -> bool:
    """Whether this is the folder of a run that stopped before its first save, and may go on."""
    root = Path(load)
    if save is None or root.resolve() != Path(save).resolve():
        return False
    names = {path.name for path in root.iterdir()}
    has_record = any(name.removesuffix(".new") in _RECORD for name in names)
    return has_record and _recognise(root, "--load", None) is None


def _lack(load: str | None) -> str:
    if load is None:
        return "is not set"
    return "holds no save" if Path(load).is_dir() else "does not exist yet"


def _listing(root: Path, limit: int = 6) -> str:
    names = sorted(path.name for path in root.iterdir() if not is_leftover(path))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
