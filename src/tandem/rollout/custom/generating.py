"""Generate functions and sample hooks of users, around the default rollout of one turn."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tandem.errors import HookError, TandemError
from tandem.hooks import Hook, Spec, load
from tandem.hooks.asking import Line, connected, params_of
from tandem.hooks.view import view_of
from tandem.rollout.custom.line import Place, Switchboard, Written, asker, sampling_seed
from tandem.rollout.custom.samples import Misshapen, fresh_view, sample_of
from tandem.rollout.door import Door
from tandem.rollout.groups import Continue
from tandem.rollout.settings import Terms
from tandem.types import Ending, Prompt, Sample

log = logging.getLogger(__name__)

GENERATE = Spec(
    "--custom-generate-function-path",
    "args, sample, sampling_params",
    optional="evaluation",
    kind="coroutine function",
)
SAMPLE_HOOK = Spec(
    "--rollout-sample-hook-path", "args, sample", keywords="rollout_id, evaluation", kind="either"
)

HOPELESS_AFTER = 64
"""So many failures of a hook without one success among them mean that it cannot work."""


class CustomGenerator:
    """Continues samples as the users' functions say; implements `groups.Continue`.

    Which function: the sample's `metadata["generate_function_path"]`, else that of its evaluation
    set, else `--custom-generate-function-path`, else the default. A function or hook that raises
    makes its sample a failed one, which is never trained, and the run goes on; one that never
    works stops it.
    """

    def __init__(
        self,
        default: Continue,
        door: Door,
        tokenizer: Any,
        args: Any,
        *,
        switchboard: Switchboard,
        path: str | None = None,
        hooks: Iterable[str] = (),
        reward_key: str | None = None,
    ) -> None:
        """`hooks` are those before the reward, called in order. Raises HookError.

        `switchboard` is where requests come out that a generate function posts over HTTP.
        """
        self._switchboard = switchboard
        self._default, self._door, self._tokenizer, self._args = default, door, tokenizer, args
        self._path = path
        self._reward_key = reward_key
        self._loaded: dict[str, Hook] = {}
        self._sample_hooks = [load(hook, SAMPLE_HOOK) for hook in hooks]
        self._num_right = self._num_wrong = 0
        self.check([path] if path else [])

    def check(self, paths: Iterable[str]) -> None:
        """Raises HookError for generate functions that cannot be called."""
        for path in paths:
            if path not in self._loaded:
                self._loaded[path] = load(path, GENERATE)

    async def __call__(self, prompt: Prompt, sample: Sample, terms: Terms) -> Sequence[Sample]:
        """The samples that the attempt gave; more than one where it fanned out."""
        metadata = {**prompt.metadata, **sample.metadata}
        path = metadata.get("generate_function_path") or terms.generate_path or self._path
        if path is None:
            samples = await self._default(prompt, sample, terms)
        else:
            self.check([path])
            samples = await self._generated(self._loaded[path], prompt, sample, terms)
        for hook in self._sample_hooks:
            samples = [await self._hooked(hook, prompt, one, terms) for one in samples]
        return samples

    async def _generated(
        self, hook: Hook, prompt: Prompt, sample: Sample, terms: Terms
    ) -> Sequence[Sample]:
        view, written = fresh_view(prompt, sample), Written()
        place = Place(prompt=prompt.index, sample=sample.position)
        number = sampling_seed(terms.seed, place)
        params = params_of(terms.sampling, number)
        more = {"evaluation": terms.is_evaluation} if "evaluation" in hook.optional else {}
        ask = asker(
            self._door,
            seed=terms.seed,
            max_context=terms.max_context,
            place=place,
            written=lambda _: written,
        )
        line = Line(ask=ask, tokenizer=self._tokenizer)
        try:
            with connected(line), self._switchboard.connected(number, ask):
                said = await hook.call(self._args, view, params, **more)
            views = said if isinstance(said, list) else [said]
            if not views:
                raise Misshapen("returned no sample")
            samples = [self._back(one, sample, written) for one in views]
        except TandemError:
            raise
        except Exception as error:
            return [self._failed(hook, error, sample)]
        self._num_right += 1
        return samples

    async def _hooked(self, hook: Hook, prompt: Prompt, sample: Sample, terms: Terms) -> Sample:
        if sample.ending is Ending.ABORT:
            return sample  # its turn comes when it has ended
        view = view_of(prompt, sample)
        try:
            said = hook.call(
                self._args, view, rollout_id=terms.rollout_id, evaluation=terms.is_evaluation
            )
            if hasattr(said, "__await__"):
                said = await said
            changed = self._back(view if said is None else said, sample)
        except TandemError:
            raise
        except Exception as error:
            return self._failed(hook, error, sample)
        self._num_right += 1
        return changed

    def _back(self, view: Any, before: Sample, written: Written | None = None) -> Sample:
        return sample_of(
            view,
            before,
            version=self._door.version,
            reward_key=self._reward_key,
            written=written,
        )

    def _failed(self, hook: Hook, error: Exception, sample: Sample) -> Sample:
        """The sample as one that could not be sampled; raises HookError when none ever could."""
        self._num_wrong += 1
        failure = hook.failed(error, f"sample {sample.index}")
        if self._num_wrong == 1:
            log.warning("%s; the sample is left out", failure, exc_info=error)
        if self._num_right == 0 and self._num_wrong >= HOPELESS_AFTER:
            raise HookError(
                f"not one of the first {self._num_wrong} calls worked: {failure}"
            ) from error
        metadata = {**sample.metadata, "error": str(failure)}
        return replace(sample, ending=Ending.ERROR, metadata=metadata)
