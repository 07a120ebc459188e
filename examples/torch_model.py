"""A model whose linear layers are quantised in place: what it takes, and how far its outputs are from before."""

import torch

import codegemm.torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
x = torch.randn(8, 512)
with torch.no_grad():
    before, dense = model(x), sum(each.nbytes for each in model.parameters())
    codegemm.torch.quantize_(model, "m2v8g128")
    print(model)
    print(f"{sum(each.nbytes for each in model.state_dict().values())} bytes in place of {dense}")
    print(f"error of the outputs: {(model(x) - before).norm() / before.norm():.2f}")
