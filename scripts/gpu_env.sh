# For the shell that starts a bundle's programs (scripts/bundle.sh puts it there as env.sh): source env.sh
# Finds the bundle's libraries and those of the torch that PYTHON (python3) has.
kvferry_bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kvferry_torch=$("${PYTHON:-python3}" -c 'import torch; print(torch.__path__[0])' 2>/dev/null)
if [ -z "$kvferry_torch" ]; then
  echo "env.sh: ${PYTHON:-python3} has no torch: what needs LibTorch will not start (pip install torch, or set PYTHON)" >&2
fi
export LD_LIBRARY_PATH="$kvferry_bundle/lib:$kvferry_bundle/lib/ucx/lib${kvferry_torch:+:$kvferry_torch/lib}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export UCX_MODULE_DIR="$kvferry_bundle/lib/ucx/lib/ucx"
export PATH="$kvferry_bundle/bin:$PATH"
