"""The texts that models are evaluated on: files read, and what tokenizers make of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegemm.errors import CheckpointError

_ORDINARY = "a"  # a text of which every tokenizer makes tokens


@dataclass(frozen=True)
class Text:
    """A text, its name, and the SHA-256 of its bytes."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True)
class Tokens:
    """The token ids of a text, as many as are to be used, of `total` that it has."""

    text: Text
    ids: list[int]
    total: int


@dataclass(frozen=True)
class Around:
    """The token ids that a tokenizer puts before and behind every text, like BERT's [CLS] and [SEP]."""

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Of both."""
        return len(self.before) + len(self.behind)


def read(texts: Sequence[str | Path] | Mapping[str, str]) -> list[Text]:
    """Of files of UTF-8, or texts themselves by their names.

    CheckpointError for a file that can't be read so; ValueError for an empty text, and where there is none.
    """
    if isinstance(texts, str | Path):
        raise TypeError(f"texts {texts!r}: must be a list of files, or texts by their names")
    if isinstance(texts, Mapping):
        found = [Text(name, content, _sha256(content.encode())) for name, content in texts.items()]
    else:
        found = [_of_file(Path(path)) for path in texts]
    for each in found:
        if not each.content:
            raise ValueError(f"{each.name}: is empty")
    if not found:
        raise ValueError("texts: there are none")
    return found


def _of_file(path: Path) -> Text:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder: must be a file of text")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    try:
        return Text(str(path), content.decode("utf-8-sig"), _sha256(content))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: must be text in UTF-8, which byte {error.start} is not") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tokenize(text: Text, tokenizer: Any, limit: int | None = None) -> Tokens:
    """The tokens of a text, of which only the first `limit` are used; ValueError for fewer than two.

    Words in it that look like special tokens are read as the tokenizer reads them.
    """
    ids = list(tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < 2:
        raise ValueError(f"{text.name}: has {len(ids)} tokens, must have 2 or more: one is predicted from another")
    return Tokens(text, ids[:limit], len(ids))


def around(tokenizer: Any) -> Around:
    """What the tokenizer puts around a text."""
    plain, whole = (list(tokenizer(_ORDINARY, add_special_tokens=put)["input_ids"]) for put in (False, True))
    for begin in range(len(whole) - len(plain) + 1):
        if whole[begin : begin + len(plain)] == plain:
            return Around(tuple(whole[:begin]), tuple(whole[begin + len(plain) :]))
    raise ValueError(f"tokenizer: {_ORDINARY!r} is {plain} by itself, and {whole} with special tokens: must be in it")


def check_same(ours: Sequence[Tokens], base: Any, name: str) -> None:
    """ValueError unless the base's tokenizer makes the same tokens of all texts. name: of the base, for the message."""
    for each in ours:
        theirs = list(base(each.text.content, add_special_tokens=False, verbose=False)["input_ids"])
        if len(theirs) != each.total:
            told = f"{len(theirs)} tokens of {each.text.name}, not {each.total}"
            raise ValueError(f"{name}: its tokenizer makes {told}: models must have the same tokenizer")
        for place, (own, other) in enumerate(zip(each.ids, theirs)):
            if own != other:
                told = f"{other}, not {own}, of token {place} of {each.text.name}"
                raise ValueError(f"{name}: its tokenizer makes {told}: models must have the same tokenizer")


def check_vocabulary(tokens: Sequence[Tokens], specials: Around, rows: int, model: str) -> None:
    """ValueError for a token id that the model's embedding has no row for."""
    for each in tokens:
        largest = max((*each.ids, *specials.before, *specials.behind))
        if largest >= rows:
            raise ValueError(
                f"{each.text.name}: has the token id {largest}, and the embedding of {model} has {rows} rows: "
                "the tokenizer is not the model's"
            )
