"""The registry of weight formats: what a format says of itself, and the text of its configurations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from codegemm.formats.weight import Spec, Weight
from codegemm.plugins import Registry

C = TypeVar("C")
S = TypeVar("S", bound=Spec)
W = TypeVar("W", bound=Weight)


class Format(ABC, Generic[C, S, W]):
    """One way to store weights. Subclass it and pass an instance to `codegemm.register_format`.

    C, S, W: its configurations, specs and weights; for type checkers alone.

    config: the class of its configurations, plain hashable values: `str` gives the text that `parse` reads.
    weight: the class of its weights, which says its `format_name`, and its tensors in a file and back.
    syntax: what its text looks like, for messages.
    examples: texts of configurations that show what there is; the tests of all formats take them.
    """

    config: type[C]
    weight: type[W]
    syntax: str
    examples: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the format, as files and messages have it."""
        return self.weight.format_name

    @abstractmethod
    def parse(self, text: str) -> C | None:
        """The configuration of a text, None for one of another format; ValueError where its own says what can't be."""

    @abstractmethod
    def spec(self, shape: tuple[int, int], config: C) -> S:
        """Of a weight [out_features, in_features]; ValueError where the shape can't be stored so."""

    @abstractmethod
    def random(self, spec: S, seed: int) -> W:
        """A weight with random contents, on the CPU: as good as a real one for time."""

    def fitted(self, config: C, in_features: int) -> C:
        """The nearest configuration that a row of `in_features` can have, where only a group size is in the way."""
        return config

    def core(self, spec: S) -> Spec:
        """The spec of what is inside all that stands around it; itself unless a format is of such surroundings."""
        return spec

    def describes(self, description: Mapping[str, Any]) -> bool:
        """Whether a file's description is of one of its weights."""
        return description.get("format") == self.name

    def __repr__(self) -> str:
        return f"<format {self.name}: {self.syntax}>"


ENTRY_POINT_GROUP = "codegemm.formats"


def register_format(format: Format, *, replace: bool = False) -> Format:
    """Add a format, so that its configurations are read wherever one is named, and files hold its weights; returns it.

    A module that is an entry point need not call it. Raises TypeError unless it is an instance of a subclass of Format
    whose classes say what they must; ValueError for a name or class that is taken, and for an example that another
    format reads or it doesn't read itself.
    """
    if not isinstance(format, Format):
        is_class = isinstance(format, type) and issubclass(format, Format)
        raise TypeError(f"format {format!r}: must be {'an instance' if is_class else 'a codegemm.Format'}")
    _check_says(format, config=type, weight=type, syntax=str, examples=tuple)
    if not issubclass(format.weight, Weight):
        raise TypeError(
            f"format {type(format).__name__}: weight is {format.weight!r}, must be a subclass of codegemm.Weight"
        )
    _check_says(format.weight, format_name=str, tensor_names=tuple, spec_type=type)
    others = [each for each in _formats.so_far() if each.name != format.name]
    for other in others:
        for mine, its in zip(_classes(format), _classes(other)):
            if issubclass(mine, its) or issubclass(its, mine):
                raise ValueError(f"format {format.name!r}: {mine.__name__} is no class apart from {its.__name__}")
    if any("." in name for name in format.weight.tensor_names):
        raise ValueError(f"format {format.name!r}: tensor_names {format.weight.tensor_names}, must be without dots")
    for text in format.examples:
        reader = next((each for each in others if each.parse(text) is not None), None)
        if reader:
            raise ValueError(f"format {format.name!r}: {text!r} is a configuration of the format {reader.name!r}")
        config = format.parse(text)
        if not isinstance(config, format.config) or format.parse(str(config)) != config:
            raise ValueError(f"format {format.name!r}: it reads {text!r} as {config}, and that as something else")
    _formats.add(format.name, format, replace)
    return format


def _check_says(value: Any, **kinds: type) -> None:
    """TypeError unless it has these attributes, each of that type."""
    for name, kind in kinds.items():
        said = getattr(value, name, None)
        if not isinstance(said, kind):
            whose = value.__name__ if isinstance(value, type) else f"format {type(value).__name__}"
            raise TypeError(f"{whose}: {name} is {said!r}, must be a {kind.__name__}")


def _classes(format: Format) -> tuple[type, ...]:
    return format.config, format.weight, format.weight.spec_type


_formats: Registry[Format] = Registry("format", ENTRY_POINT_GROUP, register_format)


def unregister_format(name: str) -> None:
    """Remove a format by its name; KeyError if there is none."""
    _formats.remove(name)


def registered() -> list[Format]:
    """All formats, in the order of registration."""
    return _formats.all()


def check_registered(name: Any) -> None:
    """ValueError unless a format has that name."""
    names = [format.name for format in _formats.so_far()]
    if name not in names:
        raise ValueError(f"format {name!r}: must be one of {', '.join(names)}")


def _latest_first() -> Iterator[Format]:
    """What is made of another format is asked before that; entry points are looked at where none of those will do."""
    known = _formats.so_far()
    yield from reversed(known)
    yield from (format for format in registered() if format not in known)


def parse(config: Any) -> Any:
    """The configuration of a text (`m1v4g128`, `m2v8g128+rotated`, `e8p`, `qtip`), or a configuration as it is.

    `str` of it is that text again, with all that it left to defaults. TypeError for what is neither, ValueError for a
    text that no format reads or whose values can't be.
    """
    if not isinstance(config, str):
        format_of(config)
        return config
    text = config.strip()
    for format in _latest_first():
        parsed = format.parse(text)
        if parsed is not None:
            return parsed
    raise ValueError(f"configuration {config!r}: expected {'; '.join(each.syntax for each in registered())}")


def format_of(value: Any) -> Format:
    """The format of a configuration, a spec or a weight; TypeError where none is registered."""
    for format in _latest_first():
        if isinstance(value, (format.config, format.weight, format.weight.spec_type)):
            return format
    kind = "weight" if isinstance(value, (Spec, Weight)) else "config"
    raise TypeError(f"{kind} {value!r}: must be of a registered format, or a configuration's text like 'm1v4g128'")


def spec_of(shape: tuple[int, int], config: Any) -> Spec:
    """The spec of a weight [out_features, in_features]; ValueError where the shape can't be stored so."""
    config = parse(config)
    return format_of(config).spec(shape, config)


def fitted(config: Any, in_features: int) -> Any:
    """The configuration, or one with the largest smaller group size that divides a row of `in_features`."""
    config = parse(config)
    return format_of(config).fitted(config, in_features)


def core_of(spec: Spec) -> Spec:
    """What is inside all that stands around it: the spec itself where nothing does, registered or not."""
    format = next((each for each in _formats.so_far() if isinstance(spec, each.weight.spec_type)), None)
    return spec if format is None else format.core(spec)


def random_weight(shape: tuple[int, int], config: Any, seed: int = 0) -> Weight:
    """A weight of this shape with random contents."""
    spec = spec_of(shape, config)
    return format_of(spec).random(spec, seed)


def described(description: Mapping[str, Any]) -> Format:
    """The format of a weight in a file; ValueError where it is not registered."""
    for format in _latest_first():
        if format.describes(description):
            return format
    known = ", ".join(each.name for each in registered())
    raise ValueError(
        f"format {description.get('format')!r} is not registered: import the package that does it; there are {known}"
    )
