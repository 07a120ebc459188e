"""compute-sanitizer over small products on this machine's GPU; where it is missing or refused, a warning says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "synccheck")
REFUSED = ("Device not supported", "is not supported", "Unable to", "Failed to initialize", "Internal Sanitizer Error")
FOUND = 86


def main() -> int:
    """0 unless a tool found something, or the products themselves failed."""
    command = shutil.which("compute-sanitizer")
    if command is None:
        print("warning: compute-sanitizer is not installed; nothing was sanitized")
        return 0
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "sanitized"]
    tests += ["-k", "float16 and not bfloat16", str(Path(__file__).with_name("test_gpu.py"))]
    for tool in TOOLS:
        done = subprocess.run(
            [command, "--tool", tool, "--error-exitcode", str(FOUND), *tests],
            env=os.environ | {"CODEGEMM_NO_POOL": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
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
