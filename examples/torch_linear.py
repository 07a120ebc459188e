"""A linear layer with torch's tensors: a bias, and the gradient of its inputs."""

import torch
from torch.nn import functional

import codegemm

torch.manual_seed(0)
W, bias = torch.randn(256, 1024), torch.randn(256)
x = torch.randn(4, 1024, requires_grad=True)

w = codegemm.quantize(W, "m1v4g128")
y = codegemm.linear(x, w, bias)  # functional.linear(x, w, bias) does the same
y.square().sum().backward()

x_dense = x.detach().requires_grad_()
y_dense = functional.linear(x_dense, torch.from_numpy(w.dequantize()), bias)
y_dense.square().sum().backward()

for name, mine, dense in (("y", y, y_dense), ("the gradient of x", x.grad, x_dense.grad)):
    print(f"{name} {list(mine.shape)}: {(mine - dense).norm() / dense.norm():.0e} from that of the dense layer")
