"""The quantisers: error, determinism, unusual matrices, mistakes."""

import functools
import importlib.util
import io
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr

import numpy as np
import pytest
from emulator import cases
from safetensors.numpy import save_file
from support.backends import BACKENDS, needs_torch

import codegemm
from codegemm.formats.codebook import decode
from codegemm.quantize import additive, arithmetic, least_squares, progress
from codegemm.quantize.progress import Progress
from codegemm.quantize.schedule import Pass
from codegemm.quantize.search import encode
from codegemm.quantize.stored import quantized


def relative_mse(matrix, weight):
    return ((matrix - weight.dequantize(np.float64)) ** 2).sum() / (matrix.astype(np.float64) ** 2).sum()


@functools.cache
def normal():
    return np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)


@pytest.fixture
def gaussian():
    return normal().copy()


@functools.cache
def of_normal(config, rows=256, columns=1024):
    """A part of that matrix quantised: what others are held against."""
    return codegemm.quantize(normal()[:rows, :columns], config)


# Small matrices are easier than large ones: their codebooks fit them more closely. The benchmark measures a large one.
@pytest.mark.parametrize(
    ("config", "limit"), [("m1v4g-1", 0.099), ("m2v8g-1", 0.094), ("m1v4b4g64", 0.37), ("e8p", 0.093), ("qtip", 0.0715)]
)
def test_error_on_gaussian_weights(config, limit, gaussian):
    fixed = config in ("e8p", "qtip")  # for whose codes every size is as hard
    matrix = gaussian[:128, :512] if fixed else gaussian
    weight = codegemm.quantize(matrix, config)
    assert weight.shape == matrix.shape
    assert relative_mse(matrix, weight) <= limit
    if not fixed:
        assert str(weight.config) == config


def test_the_seed_decides(gaussian):
    for config in ("m2v8b4g64", "e8p", "qtip"):
        part = gaussian[:32, :128]
        first = codegemm.quantize(part, config, seed=1)
        assert codegemm.quantize(part, config, seed=1) == first
        assert codegemm.quantize(part, config, seed=2) != first


def test_configurations_of_any_kind(gaussian):
    part = gaussian[:40, :180]
    for config in ("m1v3b2g9", "m3v5b4g15", "m2v1b2g-1", "m1v12b9g36", "m4v2b1g2"):
        weight = codegemm.quantize(part, codegemm.CodebookConfig.parse(config))
        assert str(weight.config) == config
        assert relative_mse(part, weight) < 0.9


def test_scales_are_fitted_to_the_codes(gaussian, monkeypatch):
    fitted = relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4b4g16"))
    fit = additive._fit_scales
    monkeypatch.setattr(
        additive, "_fit_scales", lambda groups, decoded, scales: (scales, fit(groups, decoded, scales)[1])
    )
    assert fitted < 0.996 * relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4b4g16"))


def test_codebooks_are_drawn_to_where_the_error_is(gaussian, monkeypatch):
    """Rows of large and small weights of different kinds: the large ones decide the squared error."""
    matrix = gaussian.copy()
    matrix[128:] = 0.01 * np.sign(matrix[128:])
    drawn = relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))
    sums = additive.sums
    monkeypatch.setattr(additive, "sums", lambda vectors, codes, weights, *a: sums(vectors, codes, weights * 0 + 1, *a))
    assert drawn < 0.99 * relative_mse(matrix, codegemm.quantize(matrix, "m1v4b4g-1"))


@pytest.fixture
def books():
    sizes = np.array([0.8, 0.6, 0.4], np.float32)[:, None, None]
    return sizes * np.random.default_rng(1).standard_normal((3, 64, 8), np.float32)


def squared_error(vectors, codes, books):
    return ((vectors - decode(codes, books)) ** 2).sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_search_is_better_than_greedy(backend, books, gaussian):
    """And the widest of two codebooks finds the best pair."""
    vectors, books, ops = gaussian.reshape(-1, 8)[:4096], books[:2], arithmetic.find(backend, 0)
    greedy_first = encode(vectors, books[:1], 1, ops)
    greedy_second = encode(vectors - decode(greedy_first, books[:1]), books[1:], 1, ops)
    greedy = squared_error(vectors, np.concatenate([greedy_first, greedy_second], 1), books)
    beam, widest = (squared_error(vectors, encode(vectors, books, width, ops), books) for width in (8, 64))
    sums = (books[0][:, None] + books[1][None]).reshape(1, -1, 8)
    best = squared_error(vectors, encode(vectors, sums, 1, ops), sums)
    assert best <= beam * (1 + 1e-6)
    assert beam <= 1.02 * best
    assert beam < 0.95 * greedy
    assert widest == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wider_beam_finds_better_sums_of_three(backend, books, gaussian):
    vectors, ops = gaussian.reshape(-1, 8)[:1000], arithmetic.find(backend, 0)
    narrow, wide = (squared_error(vectors, encode(vectors, books, beam, ops), books) for beam in (1, 16))
    assert wide < 0.9 * narrow


def test_the_smallest_scores():
    scores = np.random.default_rng(2).standard_normal((50, 300), np.float32)
    found = np.sort(np.take_along_axis(scores, arithmetic.smallest(scores, 7), 1), 1)
    assert (found == np.sort(scores, 1)[:, :7]).all()


def test_least_squares_finds_the_codebooks_behind_codes(books):
    """And leaves a centroid that no code names as it was."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 63, (20000, 3)).astype(np.uint16)
    vectors, weights = decode(codes, books), rng.uniform(0.5, 2, len(codes))
    present = np.zeros_like(books)
    present[:, 63] = 5
    for _ in range(3):
        present = least_squares.solve(least_squares.sums(vectors, codes, weights, 64), present)
    assert np.abs(decode(codes, present) - vectors).max() < 1e-3
    assert (present[:, 63] == 5).all()


def test_scales_follow_the_groups(gaussian):
    sizes = 2.0 ** np.arange(-4, 4).repeat(128)
    matrix = (gaussian * sizes).astype(np.float32)
    by_group = codegemm.quantize(matrix, "m1v4g128")
    by_row = codegemm.quantize(matrix, "m1v4g-1")
    fine, coarse = (
        ((matrix - weight.dequantize())[:, :128] ** 2).sum() / (matrix[:, :128] ** 2).sum()
        for weight in (by_group, by_row)
    )
    assert fine < 0.12 < coarse


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3, 1e6])
def test_small_and_large_weights(size, gaussian):
    part = gaussian[:32, :128]
    matrix = (size * part).astype(np.float32)
    for config in ("m2v8b4g64", "e8p", "qtip"):
        reference = relative_mse(part, of_normal(config, 32, 128))
        assert relative_mse(matrix, codegemm.quantize(matrix, config)) <= 1.1 * reference


def row_errors(matrix, weight):
    """Relative squared errors [M]; of rows of zeros what they became."""
    sizes = (matrix.astype(np.float64) ** 2).sum(1)
    return ((matrix - weight.dequantize(np.float64)) ** 2).sum(1) / np.where(sizes > 0, sizes, 1)


ROTATING = ("e8p", "qtip")  # whose sizes of rows hold what float32 does
CONFIGS = ("m1v4b4g64", "m2v8b4g-1", "m1v4b4g64+rotated", *ROTATING)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e7, 1e30])
def test_weights_far_from_one(config, size, gaussian):
    """Are as near as others, row by row, or refused; never zeros."""
    part = gaussian[:32, :128]
    matrix = part * np.float32(size)
    if config not in ROTATING and not 1e-9 < size < 1e9:
        with pytest.raises(ValueError, match=r"W: the largest weight is \S+e[+-]\d\d, .* do not fit float16 scales"):
            codegemm.quantize(matrix, config)
        return
    reference = row_errors(part, of_normal(config, 32, 128))
    errors = row_errors(matrix, codegemm.quantize(matrix, config))
    assert errors.mean() <= 1.1 * reference.mean()
    assert errors.max() <= 1.25 * reference.max()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("ratio", [1e-12, 1e-7, 1e6])
def test_rows_of_very_different_sizes(config, ratio, gaussian):
    part = gaussian[:32, :128]
    sizes = np.ones((32, 1), np.float32)
    sizes[1], sizes[2] = ratio, 0
    matrix = part * sizes
    if config not in ROTATING and ratio == 1e-12:
        with pytest.raises(ValueError, match=r"W: .* rows are from \S+e-1[23] to \S+: these do not fit float16 scales"):
            codegemm.quantize(matrix, config)
        return
    reference = row_errors(part, of_normal(config, 32, 128))
    errors = row_errors(matrix, codegemm.quantize(matrix, config))
    assert errors.max() <= (1.5 if ratio < 1 else 2) * reference.max()  # codebooks go where the squared error is
    assert errors[2] == 0


@pytest.mark.parametrize("ratio", [1e-12, 1e-6])
def test_groups_of_very_different_sizes(ratio, gaussian):
    """A small group has an error of its own size while scales reach; beside that a row does not notice it."""
    part = gaussian[:32, :128]
    matrix = (part * np.where(np.arange(128) // 64 == 1, ratio, 1)).astype(np.float32)
    reference = row_errors(part, of_normal("m1v4b4g64", 32, 128))
    weight = codegemm.quantize(matrix, "m1v4b4g64")
    assert row_errors(matrix, weight).max() <= 1.25 * reference.max()
    small = matrix[:, 64:].astype(np.float64)
    error = ((small - weight.dequantize(np.float64)[:, 64:]) ** 2).sum() / (small**2).sum()
    assert error <= (1.25 * reference.max() if ratio == 1e-6 else 1.01)


def test_unusual_rows(gaussian):
    matrix = gaussian[:64].copy()
    matrix[3] = 0
    matrix[5] = 0.25
    matrix[7, :64] = 0
    weight = codegemm.quantize(matrix, "m1v4g64")
    dense = weight.dequantize()
    assert not dense[3].any()
    assert not dense[7, :64].any()
    assert np.isfinite(dense).all()
    for config in ("m1v4g64", "m2v8", "e8p", "qtip4"):
        zero = codegemm.quantize(np.zeros((32, 64)), config)
        assert not zero.dequantize().any()


def test_fewer_vectors_than_centroids(gaussian):
    matrix = gaussian[:4, :64]
    assert relative_mse(matrix, codegemm.quantize(matrix, "m1v4")) < 1e-4
    assert relative_mse(matrix, codegemm.quantize(matrix, "m2v8")) < 1e-4


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype, gaussian):
    part = gaussian[:32].astype(dtype)
    assert codegemm.quantize(part, "m1v4b4") == codegemm.quantize(part.astype(np.float32), "m1v4b4")


@pytest.mark.parametrize(
    ("matrix", "config", "kind", "message"),
    [
        (np.ones(64), "m1v4", ValueError, r"W: shape \(64,\), must be"),
        (np.ones((0, 64)), "m1v4", ValueError, r"W: shape \(0, 64\)"),
        (np.ones((4, 64), int), "m1v4", TypeError, "W: dtype int64, must be one of"),
        (np.full((4, 64), np.nan), "m1v4", ValueError, r"W: nan at \[0, 0\], must be finite"),
        (
            np.full((4, 64), 1e39),
            "m1v4",
            ValueError,
            r"W: the largest weight of row 0 is 1e\+39, must be a normal float32",
        ),
        (np.full((4, 64), np.inf), "m1v4", ValueError, r"W: inf at \[0, 0\], must be finite"),
        (np.eye(4, 64) * 1e-39, "m1v4", ValueError, "W: the largest weight of row 0 is 1e-39, must be a normal"),
        (np.ones((4, 62)), "m1v4", ValueError, "in_features=62: must be a multiple of the vector length v=4"),
        (np.ones((4, 64)), "m1v4g48", ValueError, "in_features=64: must be a multiple of the group size g=48"),
        (np.ones((4, 64)), "m1v4g128x", ValueError, "configuration 'm1v4g128x': expected"),
        (np.ones((4, 64)), 3, TypeError, "config 3: must be"),
        (np.ones((4, 64)), "e8p", ValueError, "out_features=4: E8P needs a multiple of 16"),
        (np.ones((16, 60)), "e8p", ValueError, "in_features=60: E8P needs a multiple of 64"),
        (np.ones((16, 64)), "qtip", ValueError, "out_features=16: QTIP needs a multiple of 32"),
        (np.ones((4, 64)), "m2v8b16", ValueError, "needs a table of 64.0 GiB, at most 1 are allowed"),
        (np.full((4, 64), 1e30), "m1v4", ValueError, r"W: the largest weight is 1e\+30, .* do not fit float16 scales"),
        (np.full((4, 64), 1e-30), "m1v4", ValueError, "W: the largest weight is 1e-30, .* do not fit float16 scales"),
        (
            np.diag([1, 1e-12]),
            "m1v2",
            ValueError,
            "W: the largest weight is 1, .* from 7.07e-13 to 0.707: these do not",
        ),
        (np.full((16, 64), 3e38), "e8p", ValueError, "do not fit float32"),
        (np.full((32, 64), 3e38), "qtip", ValueError, "do not fit float32"),
    ],
)
def test_mistakes_are_named(matrix, config, kind, message):
    with pytest.raises(kind, match=message):
        codegemm.quantize(matrix, config)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """For redirect_stderr in the test itself: pytest renews standard error behind fixtures."""
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.mark.parametrize("config", ["m1v4b4", "e8p", "qtip"])
def test_a_progress_bar_goes_to_standard_error(config, gaussian, terminal, capsys):
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:32, :64], config, progress=True)
    assert f"quantizing to {config}" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("patience", [0.0, 1000.0])
def test_a_bar_appears_where_it_takes_long(patience, gaussian, terminal, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "PATIENCE", patience)
    save_file({"a.weight": gaussian[:16, :64]}, tmp_path / "in")
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4", calibration=codegemm.Calibration.of(np.eye(64), 1))
        codegemm.quantize_file(tmp_path / "in", tmp_path / "out", "m1v4b4")
    for title in ("quantizing to m1v4b4", "calibrating", "1 of 1 matrices"):
        assert (title in terminal.getvalue()) == (patience == 0)


def test_no_bar_appears_unasked(gaussian, terminal, monkeypatch):
    """Where it is not wanted, where there is one already, and where nobody would see it."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4", progress=False)
        quantized(gaussian[:16, :64], "m1v4b4", time.time_ns())  # which is not in the cache
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
        codegemm.quantize(gaussian[:16, :64], "m1v4b4")
    assert terminal.getvalue() == ""
    with redirect_stderr(None):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4")


def test_a_bar_that_comes_late_counts_from_the_start(terminal):
    """Whichever thread makes it, there is one; a bar beneath brings the one above it."""
    soon = time.monotonic() + 0.2
    with redirect_stderr(terminal), Progress("whole", True, due=soon) as whole, whole.beneath("part") as part:
        whole.total(100)
        part.total(40)
        part.advance(7)
        assert terminal.getvalue() == ""
        time.sleep(0.25)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(part.advance, [1] * 16))
        whole.advance(50)
        drawn = [(task.description, task.completed, task.total) for task in whole._bars.tasks]
        assert drawn == [("whole", 50, 100), ("part", 23, 40)]


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@needs_torch
def test_torch_and_numpy_are_equally_good(gaussian):
    part = gaussian[:128]
    for config in ("m1v4b6g64", "m2v8b6g-1", "m3v4b4g32"):
        by_numpy, by_torch = (
            relative_mse(part, codegemm.quantize(part, config, backend=b)) for b in ("numpy", "torch")
        )
        assert by_torch == pytest.approx(by_numpy, rel=0.005)


@needs_torch
def test_torch_gives_the_same_on_any_number_of_threads(gaussian):
    import torch

    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(codegemm.quantize(gaussian[:64], "m2v8b6g64", backend="torch"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_size_decides_the_backend():
    """Not what is imported: the result of a matrix must not depend on that."""
    assert arithmetic.find(None, 1 << 12).name == "numpy"
    installed = importlib.util.find_spec("torch") is not None
    assert arithmetic.find(None, 1 << 22).name == ("torch" if installed else "numpy")


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(arithmetic, "find_spec", lambda name: None)
    assert arithmetic.find(None, 1 << 30).name == "numpy"
    with pytest.raises(ValueError, match="backend 'torch': torch is not installed"):
        arithmetic.find("torch", 1)


def test_no_time_is_enough_for_a_whole_weight(gaussian):
    begin = time.process_time()  # others may be busy
    weight = codegemm.quantize(gaussian, "m2v8g64", time_limit=0)
    assert time.process_time() - begin < 5
    best = relative_mse(gaussian, codegemm.quantize(gaussian, "m2v8g64"))
    assert 1.05 * best < relative_mse(gaussian, weight) < 0.14


@pytest.fixture
def listening():
    """Ctrl-C raises KeyboardInterrupt, also where what started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch, name, *numbers):
    """Ctrl-C within the calls of those numbers of one of additive's functions; gives the list of its calls."""
    calls, function = [], getattr(additive, name)

    def interrupted(*arguments):
        calls.append(name)
        if len(calls) in numbers:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    monkeypatch.setattr(additive, name, interrupted)
    return calls


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("name", "call"), [("solve", 2), ("_encode_rows", 1)])
def test_an_interrupt_keeps_the_best_so_far_where_asked(name, call, gaussian, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    full = relative_mse(gaussian, of_normal("m2v8b6"))
    calls = interrupt_at(monkeypatch, name, call)
    weight = codegemm.quantize(gaussian, "m2v8b6", on_interrupt="return")
    assert full < relative_mse(gaussian, weight) < 1.25 * full
    assert len(calls) < 8
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_an_interrupt_ends_it_otherwise(on_interrupt, gaussian, monkeypatch):
    """At once, or the second one."""
    handler = signal.getsignal(signal.SIGINT)
    calls = interrupt_at(monkeypatch, "sums", 2, 3)
    with pytest.raises(KeyboardInterrupt):
        codegemm.quantize(gaussian, "m2v8b6", on_interrupt=on_interrupt)
    assert len(calls) == (2 if on_interrupt == "raise" else 3)
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_cannot_listen_for_interrupts(gaussian):
    part = gaussian[:16, :64]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(codegemm.quantize, part, "m1v4b4", on_interrupt="return").result()
    assert found == codegemm.quantize(part, "m1v4b4")


@pytest.mark.parametrize(
    ("option", "value", "kind", "message"),
    [
        ("time_limit", -1, ValueError, "time_limit=-1: must be None or seconds, at least 0"),
        ("time_limit", float("nan"), ValueError, "time_limit=nan: must be None or seconds, at least 0"),
        ("time_limit", "60", TypeError, "time_limit='60': must be None or seconds, a number of at least 0"),
        ("time_limit", True, TypeError, "time_limit=True: must be None or seconds"),
        ("on_interrupt", "stop", ValueError, "on_interrupt='stop': must be 'raise' or 'return'"),
        ("backend", "gpu", ValueError, "backend 'gpu': must be None or one of numpy, torch, cuda"),
        ("backend", 1, ValueError, "backend 1: must be None or one of numpy, torch, cuda"),
        ("seed", "x", TypeError, "seed='x': must be an integer of at least 0"),
        ("seed", 1.5, TypeError, "seed=1.5: must be an integer of at least 0"),
        ("seed", True, TypeError, "seed=True: must be an integer of at least 0"),
        ("seed", None, TypeError, "seed=None: must be an integer of at least 0"),
        ("seed", -1, ValueError, "seed=-1: must be at least 0"),
    ],
)
def test_wrong_options_are_refused_first(option, value, kind, message):
    """Before the matrix is looked at."""
    with pytest.raises(kind, match=message):
        codegemm.quantize(None, "m1v4", **{option: value})


def test_numpys_numbers_are_numbers(gaussian):
    part = gaussian[:32, :64]
    for config in ("m1v4b4", "m1v4b4+rotated", "e8p", "qtip"):
        found = codegemm.quantize(part, config, seed=np.uint8(3), time_limit=np.float32(60))
        assert found == codegemm.quantize(part, config, seed=3)


def test_the_matrix_is_left_alone(gaussian):
    for config in ("m2v8b4g64", "e8p", "qtip"):
        matrix = gaussian[:32, :128].copy()
        codegemm.quantize(matrix, config)
        assert (matrix == gaussian[:32, :128]).all()


def test_a_search_for_scales_gains(gaussian, monkeypatch):
    """Where few weights share one."""
    fitted = relative_mse(gaussian, of_normal("m1v4g16"))
    encode_rows = additive._encode_rows
    monkeypatch.setattr(
        additive, "_encode_rows", lambda *a: encode_rows(*(Pass(x.beam) if isinstance(x, Pass) else x for x in a))
    )
    assert fitted < 0.985 * relative_mse(gaussian, codegemm.quantize(gaussian, "m1v4g16"))
