"""What layers of torch's cost beside their products, and how fast a Llama decodes with them: ratios on the CPU."""
