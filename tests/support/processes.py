"""Python in processes of its own."""

import os
import subprocess
import sys
import textwrap


def run_script(script, timeout=120):
    """An error where it fails. What Python says of forks beside threads is no matter of a test."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)], check=True, timeout=timeout)


def python(*arguments, **options):
    """What became of it, and what it printed."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def under(sanitizers, *arguments, **variables):
    """The same with the run-time libraries of g++'s sanitizers (asan, ubsan, tsan) loaded first."""
    find = [["g++", f"-print-file-name=lib{name}.so"] for name in sanitizers]
    found = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in find]
    return python(*arguments, env=os.environ | {"LD_PRELOAD": " ".join(found)} | variables)
