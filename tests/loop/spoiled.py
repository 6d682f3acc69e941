"""Functions of users for the tests of this folder."""

from examples.hooks.data_source import Sums
from examples.hooks.generate import in_two_pieces


async def solved_by_one_prompt(args, sample, **kwargs):
    """1 for every answer to one prompt in four, else 0 or a half."""
    return 1.0 if sample.group_index % 4 == 0 else sample.index % 2 / 2


def broken(*arguments, **keywords):
    """Any hook, raising."""
    raise LookupError("nothing here")


async def generate_broken(args, sample, sampling_params):
    """A generate function that never works."""
    raise LookupError("nothing here")


async def generate_half(args, sample, sampling_params):
    """A generate function that works for every second sample."""
    if sample.index % 2:
        raise LookupError("nothing here")
    return await in_two_pieces(args, sample, sampling_params)


def hook_half(args, sample, *, rollout_id, evaluation):
    """A sample hook that works for every second sample."""
    if sample.index % 2:
        raise LookupError("nothing here")


class Source(Sums):
    """A data source that runs dry in the second rollout."""

    def get_samples(self, num_samples):
        if self.next:
            raise LookupError("nothing here")
        return super().get_samples(num_samples)


def nothing(args, rollout_id, data_source, evaluation=False):
    """An evaluation function that looks at nothing."""
    return {}


async def generate_again(args, sample, sampling_params, evaluation=False):
    """A generate function for one evaluation set."""
    assert evaluation and sample.metadata["split"] == "hard"
    sample = await in_two_pieces(args, sample, sampling_params, evaluation)
    sample.metadata["generated_by"] = "again"
    return sample


async def judge_split(args, sample, **kwargs):
    """A reward that says which set a sample is of, and who wrote it."""
    is_again = sample.metadata.get("generated_by") == "again"
    return {"hard": 0.75, "easy": 0.25}[sample.metadata["split"]] + is_again
