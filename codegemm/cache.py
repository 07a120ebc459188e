"""The user's cache folder: compiled kernels, quantised weights, what was measured; entries are checked by their hash.

It is $CODEGEMM_CACHE_DIR, else the platform's own place for caches. A folder in it for each kind of entry is the user's
alone (mode 0700), since compiled code is loaded from there; other files are never touched. An entry is one file
`<key>-<hash of its content>.<suffix>`, written beside its place and renamed into it: a damaged, truncated or foreign
file is a miss, never an error. What a process that was killed had begun to write goes a day later.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from codegemm import files

SIZE_LIMIT = 2 << 30
KINDS = ("cpu", "cuda", "weights", "tuned", "measured")

_KEY_DIGITS, _HASH_DIGITS = 32, 16
_BEGUN = "new-"  # a folder in which an entry is made
_ENTRY = re.compile(rf"[0-9a-f]{{{_KEY_DIGITS}}}-[0-9a-f]{{{_HASH_DIGITS}}}\.\w+")


def root() -> Path:
    """The cache folder."""
    base = os.environ.get("CODEGEMM_CACHE_DIR")
    if base:
        return Path(base).expanduser()
    try:
        from platformdirs import user_cache_path
    except ImportError:  # where the package runs from a checkout, beside nothing but NumPy and CuPy
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "codegemm"
    return user_cache_path("codegemm", appauthor=False)


def folder(kind: str) -> Path:
    """The folder of one of `KINDS`, made if need be; its mode is 0700.

    Raises PermissionError where the folder can't be made or belongs to another user.
    """
    path = root() / kind
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"cache folder {path}: {error.strerror}; set CODEGEMM_CACHE_DIR") from None
    state = path.stat()
    if state.st_uid != os.getuid():
        raise PermissionError(f"cache folder {path} belongs to another user; set CODEGEMM_CACHE_DIR")
    if state.st_mode & 0o077:
        path.chmod(0o700)
    return path


def check_writable() -> None:
    """Raise PermissionError unless entries of all kinds can be written; nothing is left behind."""
    for kind in KINDS:
        place = root() / kind
        if os.path.lexists(place):
            folder(kind)  # raises for another user's
        while not os.path.lexists(place):  # what is not there yet would be made in this folder
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"0")
        except OSError as error:
            raise PermissionError(f"cache folder {root() / kind}: {error.strerror}; set CODEGEMM_CACHE_DIR") from None


def key(*parts: str | bytes) -> str:
    """A short hash of everything an entry depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:_KEY_DIGITS]


def lookup(kind: str, entry_key: str, suffix: str) -> Path | None:
    """The entry's file if it is there and whole; its time of use is renewed."""
    for path in folder(kind).glob(f"{entry_key}-*{suffix}"):
        try:
            if path.stat().st_uid == os.getuid() and path.name == _name(entry_key, path, suffix):
                os.utime(path)
                return path
            path.unlink()
        except OSError:
            continue
    return None


def store(kind: str, entry_key: str, suffix: str, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a temporary file, then move it into place; old entries go when the cache is over its limit."""
    home = folder(kind)
    with tempfile.TemporaryDirectory(dir=home, prefix=_BEGUN) as temporary:
        entry = Path(temporary) / f"entry{suffix}"
        write(entry)
        entry.chmod(0o600)
        place = home / _name(entry_key, entry, suffix)
        os.replace(entry, place)
    prune(keep=place)
    return place


def prune(limit: int = SIZE_LIMIT, keep: Path | None = None) -> None:
    """Remove what was left unfinished; then entries, those used longest ago first, beyond `limit` bytes."""
    for path, _ in _leftovers():
        shutil.rmtree(path, ignore_errors=True)
    entries = sorted(_entries(), key=lambda entry: entry[1].st_mtime)
    total = sum(state.st_size for _, state in entries)
    for path, state in entries:
        if total <= limit:
            break
        if path != keep:
            path.unlink(missing_ok=True)
            total -= state.st_size


def clear() -> tuple[int, int]:
    """Remove every entry and what was left unfinished; the number of files and bytes removed."""
    before = usage()
    prune(limit=-1)  # empty ones, too
    return before


def usage() -> tuple[int, int]:
    """The number of entries, with files that were left unfinished, and their bytes."""
    sizes = [state.st_size for _, state in _entries()]
    sizes += itertools.chain.from_iterable(files for _, files in _leftovers())
    return len(sizes), sum(sizes)


def _entries() -> Iterator[tuple[Path, os.stat_result]]:
    return ((path, state) for path, state in _inside() if _ENTRY.fullmatch(path.name))


def _leftovers() -> Iterator[tuple[Path, list[int]]]:
    """Folders of entries whose writers were killed, and the sizes of the files in them."""
    for path, state in _inside():
        if path.name.startswith(_BEGUN) and stat.S_ISDIR(state.st_mode) and files.is_left(state):
            with suppress(OSError):
                yield path, [file.lstat().st_size for file in path.iterdir()]


def _inside() -> Iterator[tuple[Path, os.stat_result]]:
    """What is in the folders of all kinds."""
    for kind in KINDS:
        place = root() / kind
        for path in place.iterdir() if place.is_dir() else ():
            try:
                yield path, path.lstat()
            except OSError:
                continue


def _name(entry_key: str, path: Path, suffix: str) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_DIGITS]
    return f"{entry_key}-{content}{suffix}"
