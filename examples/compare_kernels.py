"""Measure a kernel of your own beside the package's."""

import numpy as np

import codegemm


class Plain(codegemm.Kernel):  # a Psumbook in NumPy
    name, engine, weights = "plain", "cpu", codegemm.CodebookWeight

    def prepare(self, weight, device):  # [M, K/v, m], [m, 2**b, v], [M, K/g]
        return weight.codes, weight.codebooks.astype("f"), weight.scales.astype("f")

    def run(self, prepared, x, out, workspace, stream):
        codes, codebooks, scales = prepared
        psumbook = np.einsum("njv,mcv->njmc", x.reshape(len(x), codes.shape[1], -1), codebooks)
        sums = psumbook[:, np.arange(codes.shape[1])[:, None], np.arange(len(codebooks)), codes].sum(-1)
        out[:] = (sums.reshape(len(x), *scales.shape, -1).sum(-1) * scales).sum(-1)

    def cost(self, product, device):
        return codegemm.Cost(product.spec.packed_bits // 8 + product.x_bytes, product.y_bytes)


kernels = ["dense", "psumbook", Plain()]
shapes, configs = [(2048, 4096)], ["m1v4g128"]
result = codegemm.compare(shapes=shapes, configs=configs, batches=[1], kernels=kernels, engine="cpu", seconds=0.1)
for row in result.rows:
    us = row.seconds * 1e6
    print(f"{row.kernel:9} {row.config:9} {us:6.0f} us  {row.times_dense:5.2f} x dense  error {row.error:.0e}")
