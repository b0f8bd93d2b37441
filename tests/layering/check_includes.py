#!/usr/bin/env python3
"""Holds every #include of the project to the ranks and walls of the layout (docs: CONTRIBUTING.md, "Layers").

  tests/layering/check_includes.py [ROOT]      checks the tree; exit code 1 and one line per violation
  tests/layering/check_includes.py --self-test plants violations in a temporary tree and expects each to be found
"""

import pathlib
import re
import sys
import tempfile

# A folder may include itself and the folders listed here: always of a lower rank.
MAY_INCLUDE = {
    "common": [],
    "kvcodec": ["common"],
    "transport": ["common"],
    "rpc": ["common"],
    "kvcache": ["kvcodec", "common"],
    "kernels": ["kvcodec", "common"],
    "model": ["kvcache", "kvcodec", "common"],
    "worker": ["model", "kernels", "kvcodec", "transport", "rpc", "common"],
    "prefill_node": ["worker", "model", "kernels", "kvcache", "kvcodec", "transport", "rpc", "common"],
    "decode_node": ["worker", "model", "kernels", "kvcache", "kvcodec", "transport", "rpc", "common"],
    "router": ["model", "kvcodec", "rpc", "common"],
    "cli": ["model", "kvcodec", "transport", "rpc", "common"],
    # Works offline, with what bench/quality measures.
    "calibrate": ["bench", "cli", "model", "kvcache", "kvcodec", "common"],
}

# Third parties behind walls: what an include looks like, and which files may have it.
NODE_GRPC = r"(prefill_node|decode_node|router)/(\w*service|\w*convert|config|wiring|main|handshake|intake|wire_text|\w+_call|\w+_link)\.(h|cc)"
WALLS = [
    ("CUDA", re.compile(r"^(cuda|cublas|cudnn|nvrtc)"), r"kernels/.*"),
    ("LibTorch", re.compile(r"^(torch|ATen|c10)/"), r"model/.*\.(cc|h)"),
    ("UCX", re.compile(r"^(ucp|uct|ucs)/"), r"transport/ucx/.*"),
    ("gRPC", re.compile(r"^(grpcpp|grpc)/"), rf"(rpc/.*|cli/.*|examples/.*|{NODE_GRPC})"),
    ("generated messages", re.compile(r"^(kvferry/v1/|google/rpc/).*\.pb\.h$"), rf"(rpc/.*|worker/.*|cli/.*|examples/.*|{NODE_GRPC})"),
    ("Protobuf", re.compile(r"^google/protobuf/"), rf"(common/config_loader\.cc|rpc/.*|cli/.*|{NODE_GRPC})"),
    ("spdlog", re.compile(r"^spdlog/"), r"common/log\.cc"),
    ("FAISS", re.compile(r"^faiss/"), r"calibrate/kmeans\.cc"),
    ("prometheus-cpp", re.compile(r"^prometheus/"), r"common/metrics\.cc"),
]
# Headers of a wall that other files of the same folder include must not carry the wall's own headers.
TORCH_FREE = re.compile(r"model/(model|model_config|kv_gradients|tokenizer|chat_template|sampler|stop_matcher|gguf)\.h")

INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')


def includes(path):
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1)


def check_tree(root):
    violations = []
    for folder in MAY_INCLUDE:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cu", ".cuh"):
                continue
            name = path.relative_to(root).as_posix()
            for number, target in includes(path):
                other = target.split("/")[0]
                # Includes start at the root, so that this check sees the folder in each of ours.
                if ".." in target.split("/") or (path.parent / target).is_file() and not (root / target).is_file():
                    violations.append(f"{name}:{number}: include {target} from the root of the repository")
                if other in MAY_INCLUDE and other != folder and other not in MAY_INCLUDE[folder]:
                    violations.append(f"{name}:{number}: {folder} may not include {other} ({target})")
                for wall, pattern, allowed in WALLS:
                    if pattern.match(target) and not re.fullmatch(allowed, name):
                        violations.append(f"{name}:{number}: {wall} is not allowed here ({target})")
                if TORCH_FREE.fullmatch(name) and re.match(r"^(torch|ATen|c10)/", target):
                    violations.append(f"{name}:{number}: tensors may not leave model/ ({target})")
                if other in ("tests", "bench") and other not in MAY_INCLUDE[folder]:
                    violations.append(f"{name}:{number}: product code may not include {other} ({target})")
    return violations


def self_test():
    planted = {
        "common/a.cc": "kvcodec/codec.h",
        "kvcodec/b.h": "transport/transport.h",
        "transport/c.cc": "ucp/api/ucp.h",
        "kvcache/d.cc": "grpcpp/server.h",
        "model/model.h": "torch/torch.h",
        "decode_node/engine.cc": "kvferry/v1/types.pb.h",
        "router/e.cc": "decode_node/engine.h",
        "rpc/f.cc": "transport/transport.h",
        "kvcodec/g.cc": "tests/fakes/fake_clock.h",
        "cli/k.cc": "bench/report.h",
        "calibrate/l.cc": "decode_node/engine.h",
        "common/h.cc": "google/protobuf/message.h",
        "common/i.cc": "../kvcodec/b.h",
        "kvcodec/j.cc": "b.h",
        "calibrate/n.cc": "faiss/Clustering.h",
    }
    fine = {"transport/ucx/x.cc": "ucp/api/ucp.h", "model/y.cc": "torch/torch.h", "router/service.cc": "grpcpp/server.h",
            "common/config_loader.cc": "google/protobuf/message.h", "calibrate/m.cc": "bench/report.h",
            "calibrate/kmeans.cc": "faiss/Clustering.h"}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, target in {**planted, **fine}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f'#include "{target}"\n', encoding="utf-8")
        found = check_tree(root)
    for name in planted:
        if not any(line.startswith(f"{name}:") for line in found):
            sys.exit(f"self test: the violation in {name} was not found")
    for name in fine:
        if any(line.startswith(f"{name}:") for line in found):
            sys.exit(f"self test: {name} was refused: {found}")


def main():
    if "--self-test" in sys.argv:
        self_test()
        return
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    violations = check_tree(root)
    print("\n".join(violations))
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
