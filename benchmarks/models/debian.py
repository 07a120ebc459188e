"""Debian's packages: fetched by apt-get into the user's cache, checked by their hashes, unpacked without being root."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from codegemm import cache


class SourceError(Exception):
    """A text's source can't be had, or is another one than is expected; the message names it and says why."""


@dataclass(frozen=True)
class Package:
    """One file of Debian's archive, of every architecture. sha256: of the whole file, in hexadecimal digits."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Its name in the archive, where an epoch's colon is written otherwise."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


def fetched(package: Package, home: Path | None = None) -> Path:
    """The package's file in a folder, by default one of the user's cache; downloaded unless it is there already.

    SourceError where there is no apt-get, where it can't download this version, and for a file of another hash.
    """
    home = cache.folder("texts") if home is None else home
    path = home / package.file
    if not path.exists():
        _download(package, home)
    check(path.name, digest(path.read_bytes()), package.sha256)
    return path


def _download(package: Package, home: Path) -> None:
    """In a folder beside the file's place, from where it is moved there once it is whole."""
    with tempfile.TemporaryDirectory(dir=home) as work:
        _run(package, work, "apt-get", "download", "--quiet", f"{package.name}={package.version}")
        found = Path(work) / package.file
        if not found.exists():
            others = ", ".join(sorted(os.listdir(work))) or "nothing"
            raise SourceError(f"{package.name} {package.version}: apt-get left {others}, must be {package.file}")
        os.replace(found, home / package.file)


def unpacked(package: Package, target: Path, home: Path | None = None) -> Path:
    """The folder `target` with the package's files in it; SourceError as of `fetched`, and where dpkg-deb fails."""
    path = fetched(package, home)
    _run(package, str(target), "dpkg-deb", "--extract", str(path), str(target))
    return target


def digest(data: bytes) -> str:
    """The hexadecimal digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()


def check(name: str, found: str, expected: str) -> None:
    """SourceError, which names both, for another hash than the expected one."""
    if found != expected:
        raise SourceError(f"{name}: SHA-256 is {found}, must be {expected}")


def _run(package: Package, folder: str, *command: str) -> None:
    said = f"{package.name} {package.version}: {command[0]}"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError:
        raise SourceError(f"{said}: no such command; these texts are assembled on Debian") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        reason = (errors or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise SourceError(f"{said}: {reason} (a network and the list of `apt-get update` are needed)")
