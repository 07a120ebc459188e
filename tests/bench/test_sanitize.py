"""What `make gpu PART=sanitize` makes of compute-sanitizer's answers."""

import subprocess
import threading
import types

import pytest
from support import sanitize


@pytest.mark.parametrize(
    ("code", "said", "result", "printed"),
    [(0, "1 passed", 0, "memcheck: nothing found; 1 passed"),
     (1, "========= Error: Device not supported\n", 0, "warning: memcheck is refused here: ========= Error: Device"),
     (1, "1 failed", 1, "1 failed"),
     (sanitize.FOUND, "========= Invalid __global__ read\n========= Unable to show the source", sanitize.FOUND,
      "========= Invalid"),
     (sanitize.FOUND, "===\n.========= Race at psumbook+0x1\n2 passed\n(0 errors, 2 warnings)", 0, "2 warnings, the"),
     (sanitize.FOUND, "========= Race\n1 failed in 3.1s\n(0 errors, 2 warnings)", sanitize.FOUND, "1 failed"),
     (sanitize.FOUND, "========= Race\n2 passed, 1 error in 3.1s\n(0 errors, 2 warnings)", sanitize.FOUND, "Race"),
     (-9, "killed", -9, "killed"),
     (sanitize.FOUND, "=========\n========= Race\n2 passed\n(1 error, 2 warnings)", sanitize.FOUND, "Race")],
)  # fmt: skip
def test_errors_are_no_refusals(code, said, result, printed, monkeypatch, capsys):
    monkeypatch.setattr(sanitize.shutil, "which", lambda command: f"/usr/bin/{command}")
    done = types.SimpleNamespace(returncode=code, stdout=said, stderr="")
    commands, together = [], threading.Barrier(len(sanitize.TOOLS), timeout=30)

    def run(command, **named):
        commands.append(command)
        together.wait()  # all three, or none
        return done

    monkeypatch.setattr(subprocess, "run", run)
    assert sanitize.main() == result
    assert {command[command.index("--tool") + 1] for command in commands} == set(sanitize.TOOLS)
    assert all(command[command.index("--kernel-name") + 1] == "kernel_substring=codegemm_" for command in commands)
    assert [command[-1] for command in commands if "racecheck" in command] == ["float16 and not bfloat16 and not dense"]
    assert printed in capsys.readouterr().out
