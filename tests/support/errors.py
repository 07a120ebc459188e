"""How far a product may be from its float64 definition, and how far it is."""

import numpy as np

from codegemm.engines.cpu import isa

FULL = 3e-6  # of a CPU kernel that is not in the table
# Where there are tiles of bfloat16, of three products of them; elsewhere of integers of 16 bits.
_BEST = isa.available()[0]
_TILES = {"dequant": 2e-5 if _BEST.name == "amx" else 2e-4} if "avx512_vnni" in _BEST.needs else {}

# Of the norm of y, out in float32 or wider. For one of the kernels that depends on the dtype of x, the rows of x that
# share a table's entries, or whether x is exact.
TOLERANCE = {
    # On the processor; bfloat16 products round W and x to 8 bits, the others compute in float32. Tables of bytes are
    # for one row of x, or a few; one byte an entry is what `precision="fast"` asks for.
    "cpu": {"dense_bf16": 1e-2, "psumbook": 2e-4, "psumbook_fast": 3e-2, "dequant_fast": 1e-2, **_TILES},
    # CUDA kernels, as they are emulated.
    "psumbook": {1: 2e-5, 2: 1e-3, 3: 1e-3, 4: 1e-3},
    "dequant": {"float16": 2e-5, "bfloat16": 2e-5, "float32": 1e-3},
    "dequant of pairs": 1e-3,  # of codebooks, whose sums are fp16: 2.3e-4 on the whole, more of a single number
    "dequant_dense": {"float16": 4e-4, "bfloat16": 3e-3, "float32": 1e-6},
    "aqlm": 1e-3,  # sums of up to eight terms in fp16
    "lutgemm": 1.5e-3,  # of up to 32 terms
    "quip": {True: 2e-6, False: 2e-5},  # x in four digits, in three
    "qtip": 2e-6,  # x in two fp16
    "transformed": 1e-3,  # as every kernel's for x in float32
    # On a GPU, where it is not that of `psumbook` or `dequant`.
    "gpu": {"aqlm": 3e-3, "lutgemm": 3e-3, "quip": 1e-3, "qtip": 1e-3, "dense": 3e-3, "dequant_dense": 3e-3},
}


def of_dequant(codebooks, dtype):
    """How far a CUDA product of so many codebooks and x of that dtype may be."""
    alone = TOLERANCE["dequant"][dtype]
    return alone if codebooks == 1 else max(alone, TOLERANCE["dequant of pairs"])


def error(y, truth):
    """Relative to the norm of y."""
    return np.linalg.norm(y.astype(np.float64) - truth) / np.linalg.norm(truth)
