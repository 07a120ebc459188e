"""Python in processes of its own."""

import os
import signal
import subprocess
import sys
import textwrap

from support import ROOT

BEGIN = """
import os, threading, time
import numpy as np, codegemm
from codegemm.formats import random_weight

w, x = random_weight((4096, 512), "m1v4g128"), np.ones((1, 512), np.float32)


def holding(*locks):
    '''Another thread holds them until the event that this gives is set.'''
    held, done = threading.Event(), threading.Event()

    def hold():
        for lock in locks:
            lock.__enter__()
        held.set()
        done.wait()
        for lock in locks:
            lock.__exit__(None, None, None)

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    return done


def in_a_child(function):
    '''Whether it is true in a forked child.'''
    child = os.fork()
    if child == 0:
        os._exit(3 if function() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


"""


def run_script(script):
    """What begins so; an error where it fails. What Python says of forks beside threads is no matter of a test."""
    whole = BEGIN + textwrap.dedent(script)
    subprocess.run([sys.executable, "-W", "ignore", "-c", whole], check=True, timeout=120)


def python(*arguments, **options):
    """What became of it, and what it printed."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def with_tests():
    """An environment for processes that use what is here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


COMMAND = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from codegemm.cli import main; main()"


def codegemm(*arguments, **options):
    """The command line."""
    return python("-c", COMMAND, *map(str, arguments), timeout=120, **options)


def begun(*arguments, **options):
    """A command that is running, and hears Ctrl-C though the tests themselves may not, as in a shell's background."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def python_without(modules, folder, code):
    """The code where these modules, made up in a folder, can't be imported."""
    for name in modules:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    return python("-c", f"import sys; sys.path[:0] = [{str(folder)!r}]\n{textwrap.dedent(code)}", cwd=ROOT)


def under(sanitizers, *arguments, **variables):
    """The same with the run-time libraries of g++'s sanitizers (asan, ubsan, tsan) loaded first."""
    find = [["g++", f"-print-file-name=lib{name}.so"] for name in sanitizers]
    found = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in find]
    return python(*arguments, env=os.environ | {"LD_PRELOAD": " ".join(found)} | variables)
