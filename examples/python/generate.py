#!/usr/bin/env python3
"""Streams one answer from a KVFerry router. Needs grpcio and grpcio-tools; see ../README.md.

  generate.py --insecure --prompt "Why is the sky blue?"
  generate.py --ca ca.crt --cert client.crt --key client.key --prompt "Why is the sky blue?"
"""

import argparse
import importlib
import pathlib
import sys
import tempfile

import grpc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
ROUTER_NAME = "kvferry-router"  # in the router's certificate, whatever host it runs on


def load_inference():
    """Compiles inference.proto and what it imports; returns the messages' and the service's module."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        files = [f"kvferry/v1/{name}.proto" for name in ("types", "inference")]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]):
            raise SystemExit(f"cannot compile the .proto files in {PROTO}")
        sys.path.insert(0, out)
        try:
            return (importlib.import_module("kvferry.v1.inference_pb2"), importlib.import_module("kvferry.v1.inference_pb2_grpc"))
        finally:
            sys.path.remove(out)


def connect(args):
    if args.insecure:
        return grpc.insecure_channel(args.address)
    missing = [f"--{name}" for name in ("ca", "cert", "key") if getattr(args, name) is None]
    if missing:
        raise SystemExit(f"missing {', '.join(missing)} (or say --insecure, if the router runs without TLS)")
    credentials = grpc.ssl_channel_credentials(root_certificates=args.ca.read_bytes(), private_key=args.key.read_bytes(),
                                               certificate_chain=args.cert.read_bytes())
    return grpc.secure_channel(args.address, credentials, options=[("grpc.ssl_target_name_override", ROUTER_NAME)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:7300", help="the router's host:port [%(default)s]")
    parser.add_argument("--ca", type=pathlib.Path, help="certificate of the authority that signed the router's")
    parser.add_argument("--cert", type=pathlib.Path, help="this client's certificate")
    parser.add_argument("--key", type=pathlib.Path, help="this client's private key")
    parser.add_argument("--insecure", action="store_true", help="no TLS")
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--max-tokens", type=int, default=128, help="length of the answer at most [%(default)s]")
    args = parser.parse_args()

    messages, services = load_inference()
    request = messages.GenerateRequest(max_tokens=args.max_tokens)
    request.chat.messages.add(role="user", content=args.prompt.encode())
    with connect(args) as channel:
        try:
            for event in services.InferenceStub(channel).Generate(request, timeout=600):
                if event.HasField("tokens"):
                    print(event.tokens.text, end="", flush=True)
                elif event.HasField("finished"):
                    done = event.finished
                    print(f"\n[{done.prompt_tokens} + {done.completion_tokens} tokens, {done.handoff.payload_bytes} bytes handed off, "
                          f"{done.handoff.raw16_bytes} in 16 bit]", file=sys.stderr)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from None


if __name__ == "__main__":
    main()
