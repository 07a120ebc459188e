"""QTIP's quantiser: paths through the trellis against a plain search over all states, tables of pairs, errors."""

import numpy as np
import pytest
from emulator import cases
from support.backends import BACKENDS

import codegemm
from benchmarks.quantize import tables
from codegemm.engines.cpu import isa, library
from codegemm.formats import trellis
from codegemm.formats.format import spec_of
from codegemm.formats.incoherent import BITS
from codegemm.quantize import arithmetic, qtip, viterbi
from codegemm.quantize.viterbi import Search

NUMPY = arithmetic.find("numpy", 0)


@pytest.fixture
def pairs(rng):
    return rng.standard_normal((512, 2)).astype(np.float16)


@pytest.fixture
def tiles(rng):
    return rng.standard_normal((11, 128, 2), np.float32)


def costs(search, tiles, states):
    """Squared errors [n]."""
    return ((search.pairs[states].astype(np.float64) - tiles) ** 2).sum((1, 2))


def least_cost(tile, grid, bits, group=None):
    """Over the whole of a tile [128, 2], of a path that begins and ends with a group, or of any path."""
    shift = 2 * bits
    groups, (first, second) = 1 << 16 - shift, grid.T.copy()
    best = np.zeros(groups) if group is None else np.where(np.arange(groups) == group, 0, np.inf)
    for pair in tile.astype(np.float64):
        cost = best.repeat(1 << shift) + ((first - pair[0]) ** 2 + (second - pair[1]) ** 2)
        best = cost.reshape(-1, groups).min(0)  # of all states with the same last bits
    return best.min() if group is None else best[group]


@pytest.mark.parametrize("bits", BITS)
def test_no_path_of_the_same_ends_is_nearer(bits, tiles, pairs):
    search = Search(pairs, bits, NUMPY)
    states = search(tiles)
    assert np.array_equal(trellis.states(trellis.words(states, bits), bits), states)
    grid = trellis.grid(pairs, np.float64)
    found = costs(search, tiles, states)
    for tile, path, cost in list(zip(tiles, states, found))[-2:]:
        assert cost == pytest.approx(least_cost(tile, grid, bits, path[0] >> 2 * bits), rel=1e-5)
    free = [least_cost(tile, grid, bits) for tile in tiles[:4]]
    assert found[:4].sum() < 1.08 * sum(free)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_every_tile_has_the_path_that_it_has_alone(count, tiles, pairs, monkeypatch):
    """In whatever company, pieces and number of threads."""
    alone = np.concatenate([Search(pairs, 3, NUMPY)(tile[None]) for tile in tiles[:count]])
    monkeypatch.setattr(viterbi, "_PIECE", 5)
    done, threads = [], library.get_num_threads()
    try:
        for number in (1, 3):
            library.set_num_threads(number)
            assert np.array_equal(Search(pairs, 3, NUMPY)(tiles[:count], done.append), alone)
    finally:
        library.set_num_threads(threads)
    assert sum(done) == 2 * count


@pytest.mark.parametrize("name", [each.name for each in isa.available()])
def test_every_instruction_set_finds_paths_as_near(name, tiles, pairs, fresh_engine, monkeypatch):
    here = [Search(pairs, bits, NUMPY) for bits in BITS]
    expected = [costs(search, tiles, search(tiles)) for search in here]
    monkeypatch.setenv(isa.VARIABLE, name)
    library.forget()
    for bits, cost in zip(BITS, expected):
        search = Search(pairs, bits, NUMPY)
        assert np.allclose(costs(search, tiles, search(tiles)), cost, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", BITS)
def test_arrays_find_paths_as_near(bits, backend, tiles, pairs):
    search = Search(pairs, bits, arithmetic.find(backend, 0))
    compiled = search(tiles[:3])
    search._function = None
    states = search(tiles[:3])
    assert np.array_equal(trellis.states(trellis.words(states, bits), bits), states)
    assert costs(search, tiles[:3], states).sum() == pytest.approx(costs(search, tiles[:3], compiled).sum(), rel=1e-5)


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler_is_needed(rng):
    matrix = rng.standard_normal((32, 32), np.float32)
    with pytest.warns(RuntimeWarning, match="CPU kernels run in NumPy"):
        weight = codegemm.quantize(matrix, "qtip")
    assert np.linalg.norm(matrix - weight.dequantize()) < 0.35 * np.linalg.norm(matrix)


@pytest.mark.parametrize("bits", cases.some(BITS))
def test_the_tables_are_fitted(bits, rng):
    """They beat those they began with, and one more round gains nearly nothing."""
    weights, fresh = (tables.tiles(int(rng.integers(1 << 31)), 128) for _ in range(2))
    trained = qtip.table(bits)
    again, _ = tables.refitted(trained, weights, bits, NUMPY)
    kmeans = tables.by_kmeans(bits, NUMPY)
    errors = [tables.refitted(table, fresh, bits, NUMPY)[1] for table in (trained, again, kmeans)]
    assert errors[0] < 1.005 * errors[1]
    assert errors[0] < 0.995 * errors[2]


def test_pairs_that_no_path_names_stay(pairs):
    kept, _ = tables.refitted(pairs, np.zeros((1, 128, 2), np.float32), 2, NUMPY)
    assert np.median(np.abs(kept - pairs.astype(np.float32)).max(1)) == 0
    assert (kept != pairs).any()


@pytest.mark.parametrize(("config", "limit"), [("qtip", 0.0707), ("qtip3", 0.0187), ("qtip4", 0.0054)])
@pytest.mark.parametrize("shape", [(96, 448), (224, 96)])
def test_errors_of_rows(config, limit, shape, rng):
    """Of heavy tails and all sizes: as of normal weights."""
    matrix = rng.standard_t(5, shape).astype(np.float32) * np.exp(rng.standard_normal((shape[0], 1)))
    weight = codegemm.quantize(matrix, config, seed=int(rng.integers(100)))
    assert weight.spec == spec_of(shape, config)
    assert (((matrix - weight.dequantize()) ** 2).sum(1) / (matrix**2).sum(1)).mean() < limit


def test_sizes_of_rows_are_the_best(rng):
    matrix = rng.standard_normal((64, 128), np.float32)
    dense = codegemm.quantize(matrix, "qtip").dequantize(np.float64)
    assert np.allclose((matrix * dense).sum(1), (dense**2).sum(1), rtol=1e-4)
