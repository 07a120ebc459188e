"""What every quantised weight has in common: a matrix W [out_features, in_features] that NumPy can multiply by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.arrays import as_array, float_dtype
from codegemm.devices import Device, beside, device_of
from codegemm.formats.native import Stored, check_name, write_weights
from codegemm.formats.rotation import Rotation

if TYPE_CHECKING:
    from os import PathLike


@dataclass(frozen=True)
class Spec(ABC):
    """A weight's shape and configuration without its data: all that choosing a kernel needs."""

    out_features: int
    in_features: int

    if TYPE_CHECKING:  # a field of some, a property of others

        @property
        def config(self) -> Any:
            """The configuration; its format reads it from `name`."""

    @property
    def name(self) -> str:
        """The configuration as text, like `m1v4g128`: the same wherever it is written."""
        return str(self.config)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), the paper's (M, K)."""
        return self.out_features, self.in_features

    @property
    def groups(self) -> int:
        """Groups of a row's weights that have numbers of their own, like scales."""
        return 1

    @property
    @abstractmethod
    def packed_bits(self) -> int:
        """Bits of the packed weight, everything counted."""

    @property
    def bits_per_weight(self) -> float:
        """`packed_bits` divided by the number of weights."""
        return float(Fraction(self.packed_bits, self.out_features * self.in_features))


# What NumPy says of axes where `x @= w.T` is meant, of matrices and of one row: the usual ones.
_IN_PLACE = ([(-2, -1)] * 3, [(-1,), (-2, -1), (-1,)])


class Matrix:
    """What `@`, numpy.matmul and NumPy's conversions find on a weight and on its transpose."""

    ndim = 2
    # `codegemm.products` registers its own here: formats know nothing of products.
    matmul: ClassVar[Callable[..., Any]]
    linear: ClassVar[Callable[..., Any]]

    def __matmul__(self, other: Any) -> Any:
        return self.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.matmul(other, self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__":
            return NotImplemented  # NumPy raises its own TypeError
        out = kwargs.pop("out", None)
        if kwargs.get("axes") in _IN_PLACE:
            del kwargs["axes"]
        if kwargs:
            raise TypeError(f"numpy.matmul with a quantised weight takes out= only, got {sorted(kwargs)}")
        return self.matmul(*inputs, out=out[0] if isinstance(out, tuple) else out)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", None)
        if name not in _TORCH:
            raise TypeError(
                f"torch's {name or function} takes no quantised weight: "
                "x @ w.T, torch.matmul and torch.nn.functional.linear do"
            )
        if name == "matmul" and not kwargs:
            return cls.matmul(*args)  # `@`, which should take no longer than it must
        return _TORCH[name](*args, **kwargs or {})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray:
        raise TypeError(f"{type(self).__name__} does not become a dense array by itself: call dequantize()")


# What torch's functions do for a weight: by their names, under torch's names of the arguments.
_TORCH: dict[str, Callable[..., Any]] = {
    "matmul": lambda input, other, *, out=None: Matrix.matmul(input, other, out=out),
    "linalg_matmul": lambda input, other, *, out=None: Matrix.matmul(input, other, out=out),
    "mm": lambda input, mat2, *, out=None: Matrix.matmul(input, mat2, out=out),
    "mv": lambda input, vec, *, out=None: Matrix.matmul(input, vec, out=out),
    "linear": lambda input, weight, bias=None: Matrix.linear(input, weight, bias),
}


class Later(NamedTuple):
    """An array that isn't there yet: what makes it, and whether it then stays."""

    make: Callable[[], Any]
    kept: bool


class Weight(Matrix, ABC):
    """A quantised matrix W = L (core + offsets) R; read-only. `x @ w.T` and `w @ X` multiply without rebuilding it.

    A subclass says `format_name`, `spec_type`, `tensor_names`, `spec` and `core_blocks`, and has each tensor as an
    attribute of that name; `scales` [out_features, groups] are what scaled offsets are multiplied by. Where its
    constructor takes the tensors by their names and, as text and numbers, `options`, that is all: copies, pickles and
    files follow.
    """

    __hash__ = None  # type: ignore[assignment]
    format_name: ClassVar[str]  # of its format
    spec_type: ClassVar[type[Spec]] = Spec  # type: ignore[type-abstract]
    tensor_names: ClassVar[
        tuple[str, ...]
    ]  # of its arrays, in a file behind the weight's own name; None where a weight has none

    memo: dict[Any, Any]  # what kernels prepared of it and products decided, freed with it
    held: Any  # what a kernel prepared and holds arrays in that the weight let go of, or None
    _later: dict[str, Later]  # arrays that are made when somebody asks for them

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        # Here, so that constructors need not call that of this class.
        weight = super().__new__(cls)
        weight.memo, weight.held, weight._later = {}, None, {}
        return weight

    def __getattr__(self, name: str) -> Any:
        later = self.__dict__.get("_later", {}).get(name)
        if later is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with devices.scope(self.device):
            array = frozen(later.make())
        if later.kept:
            setattr(self, name, array)
        return array

    @classmethod
    def adopt(cls, **arguments: Any) -> Self:
        """As the constructor, with the arrays as they are: none is copied, and the caller promises that nobody writes
        to one as long as the weight is there."""
        # A core has a dtype, too.
        arrays = {
            name: adopted(value)
            for name, value in arguments.items()
            if hasattr(value, "dtype") and not isinstance(value, Weight)
        }
        return cls(**arguments | arrays)

    def let_go(self, held: Any, restore: Mapping[str, Callable[[], Any]]) -> None:
        """Hold arrays no more, nor what kernels prepared so far: `held`, which `restore` makes them of where somebody
        asks for one, has all that is in them."""
        _ = self.device  # of arrays that are still there
        for name, make in restore.items():
            self._later[name] = Later(make, kept=False)  # first: another thread may ask for it
            self.__dict__.pop(name, None)
        self.memo, self.held = {}, held

    def twin(self) -> Self:
        """The same weight over the same arrays, of which kernels prepared nothing."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, memo={}, _later=dict(self._later))
        return twin

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Shape and configuration."""

    @abstractmethod
    def core_blocks(self, dtype: np.dtype) -> Iterator[tuple[int, npt.NDArray]]:
        """core + offsets, of a weight on the CPU, in blocks of whole rows: (first row, rows of float32 or float64)."""

    @property
    def left(self) -> Rotation | None:
        """The rotation whose transpose is L, of a weight on the CPU; None for the identity."""
        return None

    @property
    def right(self) -> Rotation | None:
        """The rotation R, of a weight on the CPU; None for the identity."""
        return None

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays that hold the weight, by name, on `device`; only those that there are."""
        return {name: array for name in self.tensor_names if (array := getattr(self, name)) is not None}

    @property
    def options(self) -> dict[str, Any]:
        """What the constructor takes beside the arrays, as JSON can hold it."""
        return {}

    def dense_blocks(self, dtype: Any) -> Iterator[tuple[int, npt.NDArray]]:
        """The dense matrix in blocks of whole rows: (first row, rows); float64 for float64, else float32.

        A single one where a rotation on the left mixes all rows.
        """
        compute = np.dtype(np.float64 if float_dtype(dtype) == np.float64 else np.float32)
        host = self.to("cpu")
        left, right = host.left, host.right
        blocks = host.core_blocks(compute)
        if left is not None:
            blocks = iter([(0, np.concatenate([block for _, block in blocks]))])
        for start, block in blocks:
            rows = block if right is None else right.unrotate(block)
            yield start, rows if left is None else left.unrotate(np.ascontiguousarray(rows.T)).T

    def dequantize(self, dtype: Any = np.float32) -> npt.NDArray:
        """The dense matrix [out_features, in_features] as a new NumPy array; computed in float64 for float64, else in
        float32 and rounded once. dtype: float16, bfloat16, float32 or float64, by name, NumPy's or torch's."""
        dense = np.empty(self.shape, float_dtype(dtype))
        for start, block in self.dense_blocks(dense.dtype):
            dense[start : start + len(block)] = block
        return dense

    def stored(self) -> Stored:
        """The weight as a file holds it, on the CPU."""
        description = {
            "format": self.format_name, "config": self.spec.name, "shape": list(self.shape), "options": self.options,
            "tensors": list(self.arrays),
        }  # fmt: skip
        return Stored(self.to("cpu").arrays, description)

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The weight of a description and of the tensors that `tensor` reads by their `tensor_names`.

        Raises KeyError, TypeError, ValueError or OverflowError where they don't make one.
        """
        weight = cls(**{name: tensor(name) for name in description["tensors"]}, **description["options"])
        if weight.spec.name != description["config"]:
            raise ValueError(f"the tensors are {weight.spec.name}, the description says {description['config']}")
        return weight

    @classmethod
    def tensors_of(cls, description: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the tensors that `from_stored` reads. Raises as that does."""
        return tuple(description.get("tensors", cls.tensor_names))

    @classmethod
    def join(cls, weights: Sequence[Self]) -> Self:
        """The rows of weights of this class as one; `concat` saw that they have the same in_features and device."""
        raise TypeError(f"concat: {cls.__name__}s can't be joined")

    def __getitem__(self, rows: slice) -> Self:
        """Rows r0:r1 as a weight of their own."""
        raise TypeError(f"{type(self).__name__}: it can't be split into rows")

    def _with_arrays(self, arrays: dict[str, Any]) -> Self:
        """The same weight over the same values held elsewhere."""
        return type(self)(**arrays, **self.options)

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.arrays | self.options)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.spec.name}, shape={self.shape}, "
            f"{self.bits_per_weight:.3f} bits/weight, {self.device})"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, everything counted (equation 1 of the paper)."""
        return -(-self.spec.packed_bits // 8)

    @property
    def bits_per_weight(self) -> float:
        """Average bits of one weight, everything counted (equation 1 of the paper)."""
        return self.spec.bits_per_weight

    @cached_property
    def device(self) -> Device:
        """Where the arrays are, as text: `cpu` or `cuda:<number>`; the engine follows it."""
        return device_of(next(iter(self.arrays.values())))

    @property
    def T(self) -> TransposedWeight:
        """W^T [in_features, out_features], to be written on the right: `x @ w.T`."""
        return TransposedWeight(self)

    def to(self, device: Any) -> Self:
        """This weight on `device` (`cpu`, `cuda`, `cuda:<number>`, or the `.device` of a tensor or of CuPy's array);
        itself if it is there already."""
        target = Device.parse(device)
        if target == self.device:
            return self
        return self._with_arrays({name: devices.move(array, target) for name, array in self.arrays.items()})

    def save(self, path: str | PathLike[str], name: str = "weight") -> None:
        """Write this weight alone to a safetensors file, as `<name>.codes` and so on."""
        check_name("weight", name)
        write_weights(path, {name: self.stored()}, {}, {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weight):
            return NotImplemented
        if (self.spec, self.options) != (other.spec, other.options):
            return False
        left, right = self.to("cpu").arrays, other.to("cpu").arrays
        return left.keys() == right.keys() and all(
            left[k].dtype == right[k].dtype and np.array_equal(left[k], right[k]) for k in left
        )


def concat(weights: Sequence[Weight]) -> Any:
    """The rows of several weights that share x (q, k and v; gate and up) as one weight, multiplied in one call.

    All of one class, in_features and device. CodebookWeights: of the same v, m, b and g, each of which keeps its own
    codebooks; TransformedWeights: with such cores and the same order, signs, block, terms and kind of offsets. Raises
    TypeError for other weights, ValueError for those that don't fit.
    """
    weights = list(weights)
    if not weights:
        raise ValueError("concat needs at least one weight")
    first = weights[0]
    for weight in weights:
        if not isinstance(weight, Weight):
            raise TypeError(f"concat joins weights, got {type(weight).__name__}")
        if type(weight) is not type(first):
            raise TypeError(f"concat: a {type(first).__name__} can't be joined with a {type(weight).__name__}")
    same("in_features", [weight.shape[1] for weight in weights])
    same("device", [weight.device for weight in weights])
    return first if len(weights) == 1 else type(first).join(weights)


def same(what: str, values: Sequence[Any]) -> None:
    """ValueError unless the weights to be joined agree in something."""
    if len(set(values)) > 1:
        raise ValueError(f"concat: {what} must be the same, got {sorted(set(map(str, values)))}")


def _rebuild(cls: type[Weight], arguments: dict[str, Any]) -> Weight:
    return cls(**arguments)


class TransposedWeight(Matrix):
    """A view of a weight as its transpose, for the right-hand side of `@`."""

    def __init__(self, weight: Weight) -> None:
        self.T = weight

    @property
    def shape(self) -> tuple[int, int]:
        """(in_features, out_features)."""
        return self.T.shape[::-1]

    def __repr__(self) -> str:
        return f"{self.T!r}.T"


def frozen(array: Any) -> Any:
    """A read-only contiguous array of the same values; a copy where somebody else could still write to it.

    On a GPU, where none is read-only, the array itself if it is contiguous and begins on a boundary of 16 bytes, as
    kernels load it.
    """
    if not isinstance(array, np.ndarray):
        if array.flags.c_contiguous and array.data.ptr % 16 == 0:
            return array
        with beside(array):
            return array.copy(order="C")
    array = np.require(array, requirements=["C", "A"])
    if _is_writeable(array):
        array = array.copy()
        array.flags.writeable = False
    return array


def adopted(array: Any) -> Any:
    """The array, or a tensor's or anybody's memory, in a form that `frozen` takes as it is."""
    array = as_array(array)
    if not isinstance(array, np.ndarray):
        return array
    array = np.require(array, requirements=["C", "A"])
    # Through bytes: a memoryview knows neither every dtype nor those of the other byte order.
    return np.asarray(memoryview(array.reshape(-1).view(np.uint8)).toreadonly()).view(array.dtype).reshape(array.shape)


def check_one_device(arrays: dict[str, Any]) -> None:
    """ValueError unless all arrays are on the same device."""
    places = {name: device_of(array) for name, array in arrays.items()}
    if len(set(places.values())) > 1:
        raise ValueError(f"{', '.join(f'{name} on {place}' for name, place in places.items())}: must be on one device")


def _is_writeable(array: np.ndarray) -> bool:
    """Whether the memory can be written to through this array or any that it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    try:
        return owner is not None and not memoryview(owner).readonly
    except TypeError:  # memory of another library, which has its own ways to write there
        return True
