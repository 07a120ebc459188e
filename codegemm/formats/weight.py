"""What every quantised weight has in common: a matrix W [out_features, in_features] that NumPy can multiply by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from codegemm import devices
from codegemm.devices import Device, beside, device_of
from codegemm.formats.native import Stored, check_name, write_weights

if TYPE_CHECKING:
    from os import PathLike


@dataclass(frozen=True)
class Spec(ABC):
    """A weight's shape and configuration without its data: all that choosing a kernel needs."""

    out_features: int
    in_features: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), the paper's (M, K)."""
        return self.out_features, self.in_features

    @property
    @abstractmethod
    def packed_bits(self) -> int:
        """Bits of the packed weight, everything counted."""

    @property
    def bits_per_weight(self) -> float:
        """`packed_bits` divided by the number of weights."""
        return float(Fraction(self.packed_bits, self.out_features * self.in_features))


class Matrix:
    """What `@`, numpy.matmul and NumPy's conversions find on a weight and on its transpose."""

    ndim = 2
    matmul: ClassVar[Callable[..., Any]]  # `codegemm.products` registers its own here: formats know nothing of products

    def __matmul__(self, other: Any) -> Any:
        return self.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self.matmul(other, self)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__":
            return NotImplemented  # NumPy raises its own TypeError
        out = kwargs.pop("out", None)
        if kwargs:
            raise TypeError(f"numpy.matmul with a quantised weight takes out= only, got {sorted(kwargs)}")
        return self.matmul(*inputs, out=out[0] if isinstance(out, tuple) else out)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray:
        raise TypeError(f"{type(self).__name__} does not become a dense array by itself: call dequantize()")


class Weight(Matrix, ABC):
    """A quantised matrix; read-only. `x @ w.T` and `w @ X` multiply by it without rebuilding it."""

    __hash__ = None  # type: ignore[assignment]
    spec_type: ClassVar[type[Spec]] = Spec  # type: ignore[type-abstract]
    tensor_names: ClassVar[tuple[str, ...]]  # in a file, behind the weight's own name

    def __init__(self) -> None:
        self.memo: dict[Any, Any] = {}  # what kernels prepared of it and products decided, freed with it

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Shape and configuration."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Any]:
        """The arrays that hold the weight, by name, on `device`."""

    @abstractmethod
    def dequantize(self, dtype: npt.DTypeLike = np.float32) -> npt.NDArray:
        """The dense matrix [out_features, in_features], rounded once to `dtype`, as a new NumPy array."""

    @abstractmethod
    def stored(self) -> Stored:
        """The weight as a file holds it, on the CPU."""

    @classmethod
    @abstractmethod
    def from_stored(cls, description: Mapping[str, Any], tensor: Callable[[str], npt.NDArray]) -> Self:
        """The weight of a description and of the tensors that `tensor` reads by their `tensor_names`.

        Raises KeyError, TypeError, ValueError or OverflowError where they don't make one.
        """

    @abstractmethod
    def _with_arrays(self, arrays: dict[str, Any]) -> Self:
        """The same weight over the same values held elsewhere."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight: codes, codebooks and scales (equation 1 of the paper)."""
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

    def to(self, device: str) -> Self:
        """This weight on `device` (`cpu`, `cuda` or `cuda:<number>`); itself if it is there already."""
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
        if self.spec != other.spec:
            return False
        left, right = self.to("cpu").arrays, other.to("cpu").arrays
        return all(left[k].dtype == right[k].dtype and np.array_equal(left[k], right[k]) for k in left)


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
    except TypeError:  # memory of another library, which said that it is read-only
        return False
