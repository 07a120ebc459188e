"""compute-sanitizer over small products on this machine's GPU; where it is missing or refused, a warning says so."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Racecheck can't run a library's products.
TOOLS = {"memcheck": "", "racecheck": " and not dense", "synccheck": ""}
REFUSED = ("Device not supported", "is not supported", "Unable to", "Failed to initialize", "Internal Sanitizer Error")
FOUND = 86
OURS = "kernel_substring=codegemm_"  # no library's kernels


def main() -> int:
    """0 unless a tool found something, or the products themselves failed."""
    command = shutil.which("compute-sanitizer")
    if command is None:
        print("warning: compute-sanitizer is not installed; nothing was sanitized")
        return 0
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "sanitized"]
    tests += [str(Path(__file__).parents[1] / "engines/cuda/test_gpu.py"), "-k"]

    def sanitize(tool: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, "--tool", tool, "--kernel-name", OURS, "--error-exitcode", str(FOUND), *tests,
             f"float16 and not bfloat16{TOOLS[tool]}"],
            env=os.environ | {"CODEGEMM_NO_POOL": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found = list(pool.map(sanitize, TOOLS))  # side by side: most of their time is the processor's
    codes = [told(tool, done.returncode, done.stdout + done.stderr) for tool, done in zip(TOOLS, found, strict=True)]
    return next(filter(None, codes), 0)


def told(tool: str, code: int, said: str) -> int:
    """Prints what a tool made of it; 0 unless it found something, or the products themselves failed."""
    lines = [line.strip() for line in said.splitlines()]
    warned = re.search(r"\(0 errors, (\d+) warnings?\)", said)
    if code == 0:
        print(f"{tool}: nothing found; {lines[-1]}")
    elif code != FOUND and (refusals := [line for line in lines if any(text in line for text in REFUSED)]):
        print(f"warning: {tool} is refused here: {refusals[0]}")
    elif warned and not any(re.search(r"\d+ (failed|errors?)\b.* in \d", line) for line in lines):
        # The counter of a cluster: racecheck takes what one thread makes and then fills for a race.
        print(f"{tool}: no errors, {warned[1]} warnings, the first of which:")
        print(*[line for line in lines if line.startswith("=========")][1:3], sep="\n")
    else:
        findings = [line for line in lines if re.match(r"\.*=========|E  |FAILED|.*\d+ failed", line)]
        print(tool, *(findings or lines)[:60], sep="\n")
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
