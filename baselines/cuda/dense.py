"""Dense products on a GPU with the dequantised weight, held whole: what quantisation is measured against."""

from __future__ import annotations

import numpy as np

from codegemm import devices
from codegemm.engines.cuda import gemm
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared, Run
from codegemm.engines.cuda.steps import Array, Gemm, Scratch, Step
from codegemm.formats.weight import Spec, Weight
from codegemm.kernel import Product


class Dense(CudaKernel[Spec, Weight]):
    """float16 weights (for float32 and bfloat16 x of that dtype), cuBLAS."""

    name = "dense"
    few_rows = 0

    def unavailable(self) -> str | None:
        return devices.unavailable() or gemm.unavailable()

    def tolerance(self, product: Product[Spec]) -> float:
        return 3e-3

    def arrange(self, weight: Weight) -> Prepared:
        # Prepared before x's dtype is known: other dtypes are made from float16 at their first use.
        dense = devices.move(weight.dequantize(np.float16), weight.device)
        return Prepared(weight.spec, weight.device, {"float16": dense})

    def bind(self, prepared: Prepared, product: Product[Spec]) -> Run:
        if product.dtype.name not in prepared.arrays:
            prepared.arrays[product.dtype.name] = prepared.arrays["float16"].astype(product.dtype)
        return super().bind(prepared, product)

    def steps(self, product: Product[Spec], gpu: Gpu, scratch: Scratch) -> list[Step]:
        work = gemm.work(product.spec.shape, product.n, product.dtype)
        return [Gemm(Array(product.dtype.name), work)]

    def bits_per_weight(self, spec: Spec) -> float:
        return 16
