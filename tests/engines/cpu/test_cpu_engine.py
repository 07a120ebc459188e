"""The CPU engine around its kernels: compiling, caching, threads, processes."""

import ctypes
import itertools
import os
import signal
import stat
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
from support.processes import python, run_script

import codegemm
from codegemm import cache
from codegemm.engines.cpu import compiler, dequant, device, isa, library
from codegemm.engines.cpu.psumbook_layout import (
    BLOCK_ROWS,
    GROUP_ROWS,
    MAX_POSITIONS,
    TABLE_BYTES,
    cut_for,
    table_entries,
)
from codegemm.engines.cut import row_slices, split
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.codebook_config import CodebookConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the CPU engine is for Linux and macOS")


@pytest.fixture
def small(tmp_path):
    """A source that is compiled in no time."""
    path = tmp_path / "one.cpp"
    path.write_text('extern "C" int one() { return 1; }\n')
    return path


def test_the_cache_is_the_users_alone(own_cache, small):
    (own_cache / "cpu").mkdir(mode=0o755, parents=True)
    library_file = compiler.build(small)
    assert stat.S_IMODE(library_file.parent.stat().st_mode) == 0o700
    assert library_file.parent == own_cache / "cpu"
    assert [path.name for path in library_file.parent.iterdir()] == [library_file.name]


def test_a_library_is_compiled_once(own_cache, small, monkeypatch):
    first = compiler.build(small)
    monkeypatch.setattr(compiler.store, "store", None)
    assert compiler.build(small) == first


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_entry_is_a_miss(own_cache, small, damage):
    first = compiler.build(small)
    whole = first.read_bytes()
    first.write_bytes(whole[:-100] if damage is None else damage)
    again = compiler.build(small)
    assert again.stat().st_size == len(whole)
    assert cache.lookup("cpu", again.name.partition("-")[0], ".so") == again


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_foreign_entry_is_a_miss(own_cache, small):
    first = compiler.build(small)
    key = first.name.partition("-")[0]
    os.chown(first, 12345, -1)
    assert cache.lookup("cpu", key, first.suffix) is None
    assert compiler.build(small).stat().st_uid == 0


def test_a_foreign_cache_folder_is_refused(own_cache, small, monkeypatch):
    first = compiler.build(small)
    key = first.name.partition("-")[0]
    monkeypatch.setattr(cache.os, "getuid", lambda: first.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=r"belongs to another user; set CODEGEMM_CACHE_DIR"):
        cache.lookup("cpu", key, ".so")


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch, fresh_engine, make_weight):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match=r"file/cache/cpu: Not a directory; set CODEGEMM_CACHE_DIR"):
        np.ones(64, np.float32) @ make_weight(32, 64, "m1v4").T


def test_everything_that_matters_is_in_the_key(own_cache, small, monkeypatch):
    names = {compiler.build(small)}
    small.write_text('extern "C" int one() { return 2; }\n')
    names.add(compiler.build(small))
    (small.parent / "header.hpp").write_text("// a header beside it\n")
    names.add(compiler.build(small))
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g0"))
    names.add(compiler.build(small))
    names.add(compiler.build(small, isa.InstructionSet("plain", (), ("-O1",))))
    assert len({name.name.partition("-")[0] for name in names}) == 5


def store(name):
    """An entry of 1000 bytes."""
    return cache.store("cpu", cache.key(name), ".bin", lambda path: path.write_bytes(bytes(1000)))


def test_old_entries_go_when_the_cache_is_full(own_cache):
    places = []
    for i in range(4):
        places.append(store(str(i)))
        os.utime(places[-1], (i, i))
    assert cache.lookup("cpu", cache.key("0"), ".bin") == places[0]  # used again
    cache.prune(limit=2500)
    assert [place.exists() for place in places] == [True, False, False, True]
    assert cache.clear() == (2, 2000)
    assert cache.clear() == (0, 0)


def test_what_was_just_made_stays(own_cache, monkeypatch):
    monkeypatch.setattr(cache, "SIZE_LIMIT", 500)
    monkeypatch.setattr(cache.prune, "__defaults__", (500, None))
    assert store("large").exists()


def test_other_peoples_files_are_left_alone(own_cache):
    (own_cache / "cpu").mkdir(parents=True)
    own_cache.chmod(0o755)
    others = [own_cache / "thesis.txt", own_cache / "cpu" / "notes.bin", own_cache / "photos" / "big.bin"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    store("mine")
    cache.prune(limit=0)
    assert cache.clear() == (0, 0)
    assert all(path.exists() for path in others)
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o755


def test_a_failed_write_leaves_nothing(own_cache):
    with pytest.raises(RuntimeError):
        cache.store("cpu", cache.key("a"), ".bin", lambda path: (_ for _ in ()).throw(RuntimeError))
    assert list((own_cache / "cpu").iterdir()) == []


def begun(folder, age):
    """As a process leaves it that was killed: two files of 1000 bytes in all, begun so many seconds ago."""
    folder.mkdir(parents=True)
    (folder / "entry.so").write_bytes(bytes(900))
    (folder / ".entry.so.1234").write_bytes(bytes(100))
    os.utime(folder, (time.time() - age,) * 2)
    return folder


def test_what_a_killed_process_had_begun_goes_a_day_later(own_cache, monkeypatch):
    """A folder that another process may still write to stays, and so does what isn't ours."""
    day = 24 * 3600
    old = [begun(own_cache / kind / f"new-{kind}", day + 60) for kind in cache.KINDS]
    young = begun(own_cache / "cpu" / "new-abc", day - 60)
    others = [begun(own_cache / "cpu" / "newer", 2 * day), begun(own_cache / "new-photos", 2 * day)]
    (own_cache / "cpu" / "new-link").symlink_to(others[1])
    assert cache.usage() == (2 * len(old), 1000 * len(old))
    assert cache.clear() == (2 * len(old), 1000 * len(old))
    assert cache.usage() == (0, 0)
    begun(old[0], day + 60)
    place = store("mine")  # whoever stores the next entry removes it
    assert [folder.exists() for folder in old] == [False] * len(old)
    assert all(path.exists() for path in (place, young, *others, own_cache / "cpu" / "new-link"))
    begun(old[0], day + 60)
    monkeypatch.setattr(cache.os, "getuid", lambda: place.stat().st_uid + 1)
    cache.prune()
    assert old[0].exists()


def test_a_killed_writer_leaves_a_folder_that_is_found(own_cache):
    """The real thing, for the names above are made up."""
    code = """
    import os, pathlib
    from codegemm import cache
    cache.store("cpu", cache.key("a"), ".so", lambda path: (path.write_bytes(bytes(700)), os.kill(os.getpid(), 9)))
    """
    assert python("-c", textwrap.dedent(code)).returncode == -signal.SIGKILL
    [left] = (own_cache / "cpu").iterdir()
    store("b")
    assert left.exists()
    os.utime(left, (0, 0))
    assert cache.usage() == (2, 1700)
    store("c")
    assert not left.exists()
    assert cache.usage() == (2, 2000)


def test_a_compiler_that_fails_says_what_it_printed(own_cache, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int broken( { }\n")
    with pytest.raises(compiler.CompilerError, match=r"could not compile broken.cpp:\n(.|\n)*error"):
        compiler.build(source)


def test_without_a_compiler_there_is_one_warning(no_compiler, make_weight):
    weight = make_weight(32, 64, "m1v4")
    with pytest.warns(RuntimeWarning, match="run in NumPy instead of compiled code.*apt install g"):
        first = np.ones(64, np.float32) @ weight.T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.ones(64, np.float32) @ weight.T, first)


def test_number_of_threads(monkeypatch):
    monkeypatch.setattr(library, "_threads", None)
    codegemm.set_num_threads(3)
    assert codegemm.get_num_threads() == 3
    for bad in (0, -1, 1.5, "2", True, 1 << 32):
        with pytest.raises(ValueError, match="must be an integer from 1 to 1024"):
            codegemm.set_num_threads(bad)
    library._threads = None
    monkeypatch.setenv("CODEGEMM_NUM_THREADS", "5")
    assert codegemm.get_num_threads() == 5
    monkeypatch.setenv("CODEGEMM_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="CODEGEMM_NUM_THREADS=many: must be"):
        codegemm.get_num_threads()


def test_a_compiler_may_come_with_arguments(monkeypatch, fresh_engine):
    monkeypatch.setenv("CXX", "g++ -DNDEBUG")
    path, argument = compiler.find_compiler()
    assert path.endswith("g++")
    assert argument == "-DNDEBUG"


def test_where_the_system_gives_no_threads_the_caller_works_alone():
    run_script("""
        import ctypes, resource
        codegemm.set_num_threads(1)
        y = x @ w.T
        # No thread's stack fits what is left of memory, and everything else does.
        libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        assert libc.pthread_attr_init(attributes) == 0
        assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 30)) == 0
        assert libc.pthread_setattr_default_np(attributes) == 0
        with open("/proc/self/statm") as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))
        codegemm.set_num_threads(1000)
        assert np.array_equal(x @ w.T, y)
        with open("/proc/self/status") as f:
            [threads] = [int(line.split()[1]) for line in f if line.startswith("Threads:")]
        assert threads < 1000
    """)


def test_a_loop_inside_a_task_is_that_threads_alone():
    """Nobody else could help: the others may be in such loops, too."""
    before = codegemm.get_num_threads()
    codegemm.set_num_threads(3)
    try:
        loop = library._load(compiler.SOURCES / "threads.cpp").codegemm_parallel_for
        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
        seen = []

        @callback
        def outer(context, task):
            inner = callback(lambda context, index: seen.append((task, index, threading.get_ident())))
            loop(5, inner, None)

        for _ in range(20):
            seen.clear()
            loop(4, outer, None)
            assert sorted((task, index) for task, index, _ in seen) == list(itertools.product(range(4), range(5)))
            assert len({(task, thread) for task, _, thread in seen}) == 4
    finally:
        codegemm.set_num_threads(before)


def test_threads_come_to_rest():
    """They look for work a moment longer than a product lasts, and then cost nothing."""
    run_script("""
        codegemm.set_num_threads(4)
        for kernel, n in (("psumbook", 1), ("psumbook", 16), ("dequant", 4)):
            codegemm.matmul(np.ones((n, 512), np.float32), w.T, kernel=kernel)
        time.sleep(0.1)
        begin = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - begin < 0.1
    """)


def test_a_forked_child_multiplies_too():
    run_script("""
        codegemm.set_num_threads(4)
        y = x @ w.T
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                assert np.array_equal(x @ w.T, y)
        other = threading.Thread(target=busy)
        other.start()
        for _ in range(10):
            assert in_a_child(lambda: np.array_equal(x @ w.T, y))
        stop.set()
        other.join()
        assert np.array_equal(x @ w.T, y)
    """)


@pytest.mark.parametrize("v", range(1, 17))
def test_a_tile_of_the_dequantiser_fits_its_buffer(v):
    width = dequant.tile_vectors(v) * v
    assert width % 16 == 0
    assert width <= dequant.MAX_TILE


def test_split_and_slices_cover_everything_once():
    for count, most in ((1, 1), (10, 3), (4096, 2048), (4097, 2048), (7, 100)):
        bounds = split(count, most)
        assert bounds[0] == 0
        assert bounds[-1] == count
        assert 1 <= np.diff(bounds).min() <= np.diff(bounds).max() <= most
    assert row_slices((3, 5), 4).tolist() == [[0, 0, 3], [1, 3, 5], [1, 5, 8]]


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m8v1b1g1", "m3v5g15", "m1v16b3g-1", "m4v8g64", "m1v4g48"])
@pytest.mark.parametrize("shape", [(1, 240 * 8), (4096, 3840), (28672, 7680)])
def test_the_psumbook_cut(config, shape):
    parsed = CodebookConfig.parse(config)
    columns = shape[1] if parsed.g != 48 else shape[1] // 48 * 48
    spec = CodebookSpec(shape[0], columns - columns % max(parsed.g, parsed.v), parsed, (shape[0],))
    plan = cut_for(spec)
    group = spec.vectors // spec.groups
    widths = np.diff(plan.tiles)
    assert plan.tiles[0] == 0
    assert plan.tiles[-1] == spec.vectors
    assert widths.min() >= 1
    assert widths.max() * parsed.m <= MAX_POSITIONS
    assert widths.max() * parsed.m * table_entries(parsed.b) * 4 <= TABLE_BYTES
    for first, end in zip(plan.tiles, plan.tiles[1:], strict=False):
        inside_one = first // group == (end - 1) // group
        assert inside_one or (first % group == 0 and end % group == 0)
    assert plan.pieces[0] == 0
    assert plan.pieces[-1] == len(plan.tiles) - 1
    assert np.diff(plan.pieces).min() >= 1
    covered = [row for begin, end in plan.blocks() for row in range(begin, end)]
    assert covered == list(range(plan.padded_rows))
    for begin, end in plan.blocks():
        assert (end - begin) % GROUP_ROWS == 0
        assert end - begin <= BLOCK_ROWS


def test_arguments_are_contiguous(make_weight):
    """Their addresses are all that compiled code is told."""
    weight = make_weight(16, 64, "m1v4")
    with pytest.raises(ValueError, match=r"DequantArgs: codebooks with strides \(.*\), must be contiguous"):
        library.Arguments(dequant.DequantArgs, {"codebooks": weight.codebooks.T})


def test_structures_begin_with_what_differs_from_call_to_call():
    fields = [(name, ctypes.c_void_p) for name in ("out", "x", "workspace", "bias")]
    numbers = [(name, ctypes.c_int32) for name in ("bias_pitch", "x_dtype", "out_dtype", "n")]
    turned = type("Turned", (ctypes.Structure,), {"_fields_": fields + numbers})
    with pytest.raises(TypeError, match=r"Turned: it begins with .*'out', 'x'.*, must with x, out, workspace, bias"):
        library.Arguments(turned, {})
    short = type("Short", (ctypes.Structure,), {"_fields_": fields + numbers[:-1]})
    with pytest.raises(TypeError, match="Short: it has no n"):
        library.Arguments(short, {})


def test_workspaces_are_nobody_elses(monkeypatch):
    """Those of threads and of products within products; of one product after another it is the same one."""
    monkeypatch.setattr(library, "_kept", [])
    first, second = library.take_workspace(100), library.take_workspace(100)
    assert first.address != second.address
    library.give_back(first)
    assert library.take_workspace(60) is first
    library.give_back(first)
    larger = library.take_workspace(1000)
    assert larger.size >= 1000
    library.give_back(library.take_workspace(library.MAX_KEPT_BYTES + 1))
    assert library._kept == []


def test_the_machine_is_known():
    assert device.name()
    assert device.last_level_cache() >= 1 << 20
    assert device.available_memory() > 1 << 28


MIB = 1 << 20


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {"memory.max": 300, "memory.current": 100, "memory.stat": ("anon", 60, "inactive_file", 40)}, 240),
        ("0::/\n", {"memory.max": "max", "memory.current": 100, "memory.stat": ("inactive_file", 40)}, None),
        # The group around it has less.
        ("1:cpu:/a\n0::/a/b\n", {"a/b/memory.max": 300, "a/b/memory.current": 100, "a/b/memory.stat": (),
                                 "a/memory.max": 200, "a/memory.current": 150, "a/memory.stat": ()}, 50),
        # More is taken than is allowed now.
        ("0::/\n", {"memory.max": 100, "memory.current": 150, "memory.stat": ()}, 0),
        # The first version, in a container that has its own group as the outermost.
        ("9:cpu,cpuacct:/x\n4:memory:/docker/x\n0::/\n", {
            "memory/memory.limit_in_bytes": 500, "memory/memory.usage_in_bytes": 100,
            "memory/memory.stat": ("inactive_file", 1, "total_inactive_file", 30)}, 430),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": 1 << 42, "memory/memory.usage_in_bytes": 100,
                          "memory/memory.stat": ()}, None),
        ("4:cpu:/\n", {}, None),
    ],
)  # fmt: skip
def test_control_groups_limit_the_memory(groups, files, left, tmp_path, monkeypatch):
    """In MiB; the machine has 1000."""
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "memory.stat":
            content = "\n".join(f"{kind} {number * MIB}" for kind, number in zip(content[::2], content[1::2]))
        path.write_text(f"{content * MIB if isinstance(content, int) else content}\n")
    monkeypatch.setattr(device, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(device, "_GROUP_FOLDERS", tmp_path / "groups")
    monkeypatch.setattr(device.isa, "told", lambda path, name: f"{1000 << 10} kB")
    assert device.available_memory() == (1000 if left is None else left) * MIB
    monkeypatch.setattr(device, "_GROUPS", tmp_path / "nowhere")
    assert device.available_memory() == 1000 * MIB
