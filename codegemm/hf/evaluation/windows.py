"""Which tokens of a text a model sees at a time, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codegemm.hf.evaluation.texts import Around, Tokens
from codegemm.reporting import counted

DEFAULT = 512  # tokens
LEAST = 2


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a text, of which those from `first` on are predicted and count."""

    begin: int
    end: int
    first: int

    @property
    def predictions(self) -> int:
        """How many count."""
        return self.end - self.first


@dataclass(frozen=True)
class Cut:
    """Windows of `window` tokens each, the next one `stride` tokens on."""

    window: int
    stride: int


def cut_for(window: int | None, stride: int | None, positions: int | None, specials: Around) -> Cut:
    """What was asked for, or the default: `DEFAULT` tokens, or as many as the model has positions where those are
    fewer, and windows that do not overlap.

    positions: of the model, None where it has no bound; special tokens around each window take some. ValueError for
    windows that don't fit, and strides that are longer than them.
    """
    room = None if positions is None else positions - specials.count
    if window is None:
        window = DEFAULT if room is None else min(DEFAULT, room)
    elif window < LEAST:
        raise ValueError(f"window {window}: must have {LEAST} tokens or more: one is predicted from another")
    elif room is not None and window > room:
        beside = f", of which {counted(specials.count, 'special token')} take some" if specials.count else ""
        raise ValueError(f"window {window}: the model has {positions} positions{beside}: {room} is the most")
    if stride is None:
        stride = window
    elif not 1 <= stride <= window:
        raise ValueError(f"stride {stride}: must be 1 to {window}, the length of a window")
    return Cut(window, stride)


def check_length(texts: Sequence[Tokens], window: int) -> None:
    """ValueError for a text that is shorter than a window that was asked for."""
    for each in texts:
        if len(each.ids) < window:
            limit = f" (of {each.total}, by the limit)" if len(each.ids) < each.total else ""
            raise ValueError(
                f"{each.text.name}: has {counted(len(each.ids), 'token')}{limit}, fewer than a window of {window}: "
                f"a window of {len(each.ids)} would do, or a longer text"
            )


def windows_of(length: int, cut: Cut, begun: bool) -> list[Window]:
    """Of a text of so many tokens, the last one shorter where they don't come out even, but of `LEAST` tokens.

    Every token counts once: in the first window that has it, so that those of the second half of a window count where
    the stride is half of it. The first token of a window is not predicted, unless `begun`: a special token stands
    before each.
    """
    found: list[Window] = []
    seen = 0  # tokens that windows before had
    for begin in range(0, length, cut.stride):
        end = min(begin + cut.window, length)
        if end - begin >= LEAST and end > seen:
            found.append(Window(begin, end, max(seen, begin + (not begun))))
            seen = end
    return found
