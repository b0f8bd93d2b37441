#!/usr/bin/env python3
"""Writes the golden files of the tokenizer tests with the `tokenizers` package.

    pip install tokenizers==0.23.3 gguf==0.19.0
    make_golden.py MODEL.gguf WIKITEXT_DIR

    cases.json          texts and, for each tokenizer below, their ids (space-separated; the tiny ones
                        only for the first texts)
    llama3/, qwen2/     directories as on Hugging Face with a vocabulary trained here on WIKITEXT_DIR/valid.txt:
                        Llama 3's expression, ignore_merges and begin-of-text; Qwen2's expression,
                        NFC and added tokens that are not special

The tokenizer "smollm2" is put together from the GGUF file's own vocabulary, merges and pre-tokenizer:
the conversion in `transformers` omits the digit split and prepends id 1.
"""

import json
import pathlib
import random
import sys

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
TINY_CASES = 420
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def smollm2(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def train(tokenizer, corpus, special):
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def split(expression):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(expression), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def save(tokenizer, name, config):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False,
                                                      separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizer


def llama3(corpus):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = split(LLAMA3)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    train(tokenizer, corpus, [bos, eos, "<|start_header_id|>", "<|end_header_id|>"])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    return save(tokenizer, "llama3", {"bos_token": bos, "eos_token": eos})


def qwen2(corpus):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split(QWEN2)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, corpus, [])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False)
                          for t in ("<think>", "</think>", "<tool_call>", "<tool_call>\n\n")])
    return save(tokenizer, "qwen2", {"eos_token": {"content": "<|im_end|>"}})


WRITTEN = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "a", " a", "a ", "  a", "Hello, world!",
    "The quick brown fox jumps over the lazy dog.", "It's we'll they've I'm you're he'd don't", "IT'S WE'LL THEY'VE I'M",
    "''''s ''s 's", "it’s", "'ſ 'S", "0", "7", "10", "123", "1234567890", "3.14159", "1,000,000", "x1y22z333", "٣٤٥", "Ⅷ ½ ²³",
    "１２３", "一二三 123 四五", "v1.2.3-rc4+build.56", "0x1F600 0b1010", "1e-10", "naïve café résumé", "e\u0301 e\u0301e\u0301",
    "A\u030a vs Å", "q\u0323\u0307", "한국어 한글", "\u1112\u1161\u11ab\u1100\u1173\u11af", "日本語のテキスト。", "中文，标点；测试！", "ไทย ภาษา", "हिन्दी में",
    "العربية من اليمين", "שלום עולם", "مرحبا 123 world", "Ελληνικά κείμενο", "Русский текст", "Tiếng Việt có dấu",
    "😀", "😀😃😄", "👨‍👩‍👧‍👦", "👍🏽 👍🏿", "🇩🇪🇯🇵", "❤️ ❤", "a😀b", " 😀 ", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u200b zero \u200d width", "\u00a0nbsp\u00a0", "\u3000全角\u3000",
    "\u2028line\u2029para", "\u180e mongolian", "\ufeffBOM", "\u0000 nul \u0000", "\u0001\u0002\u0003", "\u0004\u0006\u0013\u001d", "\u007f",
    "\u0085next", "tab\tseparated\tvalues", "trailing   ", "   leading", "mid   dle", "a\n\nb\n\n\nc", "a \n b", "a\r\nb\r\n", " \t \t x",
    "x" * 300, " " * 100, "\n" * 50, "ab" * 80, "!" * 70, "=-" * 40, "é" * 60, "😀" * 20, "\U00040000\U000e0001", "\U0010ffff", "\ufffd", "\uffff",
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < 10; ++i) { sum += a[i]; }", "#include <vector>\nint main() {}\n",
    "SELECT * FROM t WHERE id = 42;", "{\"key\": [1, 2.5, null, true]}", "<div class=\"a\">text</div>", "$HOME/.config && ls -la | grep x",
    "\\frac{a}{b} \\sum_{i=0}^{n}", "http://example.com/path?q=1&r=2#frag", "user@example.com", "C:\\Windows\\System32", "#!/bin/sh\n\techo hi\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|im_start|><|im_end|>", "a<|im_end|>b", " <|im_end|> ",
    "<|im_start|", "<|im_start|>|>", "<<|im_end|>>", "<|endoftext|><|endoftext|>x", "<repo_name><reponame><file_sep>", "<filename>a.py<gh_stars>7",
    "<jupyter_start>1<jupyter_text>", "<|IM_END|>", "<| im_end |>", "12<|im_end|>34", "  <|im_start|>  ", "\u0301<|im_end|>\u0301",
    "<|begin_of_text|>twice?", "a<|begin_of_text|>b<|eot_id|>", "<think>\nhm\n</think>\n\nyes", "<tool_call>\n{}", "<tool_call>\n\n{}", "<think", "e<think>\u0301",
]
RANGES = [(0x20, 0x7e), (0xa0, 0x17f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x45f), (0x5d0, 0x5ea), (0x620, 0x64a), (0x905, 0x939),
          (0xe01, 0xe3a), (0x1100, 0x1112), (0x2010, 0x2027), (0x2190, 0x21ff), (0x2200, 0x22ff), (0x3041, 0x3096), (0x30a1, 0x30fa),
          (0x4e00, 0x9fa5), (0xac00, 0xd7a3), (0x1f600, 0x1f64f), (0x1f300, 0x1f5ff), (0x1d400, 0x1d454)]


def texts(wikitext):
    rng = random.Random(20251125)
    result = list(WRITTEN)
    for _ in range(120):  # scripts and spaces mixed
        low, high = rng.choice(RANGES)
        result.append("".join(rng.choice(" \n") if rng.random() < 0.15 else chr(rng.randint(low, high))
                              for _ in range(rng.randint(1, 12))))
    for _ in range(60):
        result.append("".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 10))))
    for _ in range(60):  # what survives of random bytes
        result.append(bytes(rng.randrange(256) for _ in range(rng.randint(1, 40))).decode("utf-8", "ignore"))
    for _ in range(60):
        result.append("".join(rng.choice(" \t\n\r\u00a0\u2003a1.'s") for _ in range(rng.randint(1, 20))))
    for _ in range(40):
        result.append("".join(rng.choice("0123456789 ,.-") for _ in range(rng.randint(1, 20))))
    parts = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "user", "\n", " ", "12", "é", "<|", "|>"]
    for _ in range(40):
        result.append("".join(rng.choice(parts) for _ in range(rng.randint(1, 8))))
    code = pathlib.Path(__file__).read_text().splitlines()
    result += [line for line in code if line.strip()][:80]
    lines = [line for line in wikitext.splitlines() if len(line) > 20]
    while len(result) < 1060:
        line = rng.choice(lines)
        start = rng.randrange(max(1, len(line) - 60))
        result.append(line[start:start + rng.randint(20, 150)])
    return result


def main():
    model, data = sys.argv[1], pathlib.Path(sys.argv[2])
    corpus = (data / "valid.txt").read_text()[:200_000].splitlines()
    cases = texts((data / "wiki.test.raw").read_text())
    made = {"smollm2": (smollm2(model), len(cases)), "llama3": (llama3(corpus), TINY_CASES), "qwen2": (qwen2(corpus), TINY_CASES)}
    golden = {"texts": cases}
    for name, (tokenizer, count) in made.items():
        golden[name] = [" ".join(map(str, e.ids)) for e in tokenizer.encode_batch(cases[:count])]
    rows = {name: ",\n".join(json.dumps(row, ensure_ascii=False) for row in values) for name, values in golden.items()}
    body = ",\n".join(f'"{name}": [\n{lines}\n]' for name, lines in rows.items())
    (HERE / "cases.json").write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
