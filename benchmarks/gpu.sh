#!/usr/bin/env bash
# Builds, tests, checks and measures lossops on this machine's GPU.
#
#   bash benchmarks/gpu.sh OUT_DIR [--dry] [--parts a,b] [--again] [--tests TEST ...]
#
# PYTHON chooses a Python that has torch with CUDA (default: python3). --help explains.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

if [ $# -eq 0 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if ! command -v "$python" > /dev/null; then
  echo "there is no $python; set PYTHON to one that has torch with CUDA" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "lossops needs Python 3.10 or newer; set PYTHON=python3.12, say" >&2
  exit 1
fi
# Relative paths are the caller's, and the modules this checkout's, wherever the caller stands.
case $python in
  */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;;
esac
caller=$PWD
cd "$root"
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m benchmarks.gpu --from "$caller" "$@"
