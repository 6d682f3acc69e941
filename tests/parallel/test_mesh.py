"""Every process is in one group of every axis, and axes meet where they should."""

import itertools

import pytest

from tandem.errors import ConfigError
from tandem.parallel.mesh import AXES, Sizes, axis_groups, make_mesh, sizes_of

CASES = [
    sizes_of(world, tensor=t, context=c, pipeline=p, expert=e)
    for world, t, c, p, e in itertools.product((1, 2, 4, 8), (1, 2), (1, 2), (1, 2), (1, 2))
    if world % (t * c * p) == 0 and (world // p) % e == 0
]


@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("name", [name for name in AXES if name != "ends"])
def test_every_process_is_in_exactly_one_group_of_an_axis(sizes, name):
    ranks = [rank for group in axis_groups(name, sizes) for rank in group]
    assert sorted(ranks) == list(range(sizes.world))


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_a_process_is_told_apart_by_its_place_on_the_four_axes(sizes):
    meshes = [make_mesh(rank, sizes, tuple) for rank in range(sizes.world)]
    places = {(m.tensor.rank, m.context.rank, m.data.rank, m.pipeline.rank) for m in meshes}
    assert len(places) == sizes.world


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_experts_divide_the_processes_of_a_stage(sizes):
    meshes = [make_mesh(rank, sizes, tuple) for rank in range(sizes.world)]
    places = {
        (m.expert_tensor.rank, m.expert.rank, m.expert_data.rank, m.pipeline.rank) for m in meshes
    }
    assert len(places) == sizes.world


def test_tensor_ranks_are_neighbours_and_pipeline_ranks_are_far():
    mesh = make_mesh(5, Sizes(tensor=2, context=1, data=2, pipeline=2), tuple)
    assert mesh.tensor.ranks == (4, 5)
    assert mesh.data.ranks == (5, 7)
    assert mesh.pipeline.ranks == (1, 5)
    assert (mesh.tensor.rank, mesh.data.rank, mesh.pipeline.rank) == (1, 0, 1)


def test_first_and_last_stage_share_the_embedding_and_no_other_does():
    sizes = Sizes(pipeline=3)
    meshes = [make_mesh(rank, sizes, tuple) for rank in range(3)]
    assert [mesh.ends.ranks for mesh in meshes] == [(0, 2), (1,), (0, 2)]


def test_processes_that_do_not_factor_are_refused_with_what_to_set():
    with pytest.raises(ConfigError, match=r"6 training processes.*multiple of 4"):
        sizes_of(6, tensor=2, pipeline=2)
    with pytest.raises(ConfigError, match="--expert-model-parallel-size"):
        sizes_of(4, pipeline=2, expert=4)
