"""A tiny Llama of random weights in transformers, quantised while it is loaded, saved, and loaded again."""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import codegemm.hf  # without it transformers would load layers of random numbers

torch.manual_seed(0)
sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
tokens = torch.tensor([[1, 5, 9, 2]])
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)).save_pretrained(f"{folder}/dense")
    config = codegemm.hf.CodegemmConfig("m1v4g128", layers={"*.down_proj": "m1v4g64"})
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/dense", quantization_config=config)
    model.save_pretrained(f"{folder}/small")
    again = AutoModelForCausalLM.from_pretrained(f"{folder}/small")
    print(again.model.layers[0].mlp)
    print(f"the same logits: {torch.equal(again(tokens).logits, model(tokens).logits)}")
