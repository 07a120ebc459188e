"""compute-sanitizer over small products on this machine's GPU; where it is missing or refused, a warning says so."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "synccheck")
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
    tests += ["-k", "float16 and not bfloat16", str(Path(__file__).with_name("test_gpu.py"))]

    def sanitize(tool: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, "--tool", tool, "--kernel-name", OURS, "--error-exitcode", str(FOUND), *tests],
            env=os.environ | {"CODEGEMM_NO_POOL": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found = list(pool.map(sanitize, TOOLS))  # side by side: most of their time is the processor's
    for tool, done in zip(TOOLS, found, strict=True):
        said = done.stdout + done.stderr
        if done.returncode == 0:
            print(f"{tool}: nothing found; {said.strip().splitlines()[-1]}")
        elif done.returncode != FOUND and any(text in said for text in REFUSED):
            [reason, *_] = [line for line in said.splitlines() if any(text in line for text in REFUSED)]
            print(f"warning: {tool} is refused here: {reason.strip()}")
        else:
            print(said[-6000:])
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
