"""Custom rewards for the tests, found by dotted path."""

import asyncio
import time

import numpy as np


async def by_length(args, sample):
    return len(sample.response)


def blocking(args, sample):
    return args.scale * sample.response_length


async def raises(args, sample):
    raise RuntimeError("the judge is ill")


async def leaves(args, sample):
    raise SystemExit(3)


async def sleeps(args, sample):
    await asyncio.sleep(60)


def blocks(args, sample):
    time.sleep(5)


async def returns_what_the_label_says(args, sample):
    return {
        "none": None,
        "nan": float("nan"),
        "inf": float("inf"),
        "true": True,
        "numpy": np.float32(0.5),
        "array": np.array([0.25]),
        "text": "good",
        "dict": {"score": np.int64(2), "why": "fine"},
    }[sample.label]


async def takes_notes(args, sample):
    sample.metadata["note"] = sample.status
    sample.metadata["tools"].append("mine")
    return 1.0


async def ranks(args, samples):
    order = sorted(range(len(samples)), key=lambda nth: samples[nth].response_length)
    return [float(order.index(nth)) for nth in range(len(samples))]


async def ranks_too_few(args, samples):
    return [1.0]


def three_arguments(args, sample, more):
    return 0.0


async def with_kwargs(args, sample, **kwargs):
    return 7.0


number = 3
