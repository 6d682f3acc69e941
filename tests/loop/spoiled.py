"""Functions of users for the tests of this folder."""


async def solved_by_one_prompt(args, sample, **kwargs):
    """1 for every answer to one prompt in four, else 0 or a half."""
    return 1.0 if sample.group_index % 4 == 0 else sample.index % 2 / 2
