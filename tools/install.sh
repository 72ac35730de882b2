#!/bin/sh
# Creates or updates .venv: a CPython 3.11-3.13 found on this machine, uv, every dependency of requirements.lock, imago.
# All downloads are checked against the hashes in the lock files. Usage: tools/install.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."

suitable='
import sys, ensurepip, venv
sys.exit(not (sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] <= (3, 13)))'

if ! .venv/bin/python -c "$suitable" 2>/dev/null; then
    base=
    for candidate in ${1:-python3.13 python3.12 python3.11 python3 python}; do
        if "$candidate" -c "$suitable" 2>/dev/null; then base=$candidate && break; fi
    done
    if [ -z "$base" ]; then
        echo "make install: no usable CPython 3.11, 3.12 or 3.13 among: ${1:-python3.13 python3.12 python3.11 python3}." >&2
        echo "Install one (Debian and Ubuntu: also its package python3-venv), or name it: make install PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$(uname -s)" = Linux ] && [ "$free" -lt 8 ]; then
        echo "make install: only ${free} GB free here; PyTorch with its CUDA libraries takes about 6 GB." >&2
    fi
    "$base" -m venv --clear .venv
fi

# uv lives beside the environment, not in it: `uv pip sync` removes whatever the lock does not name.
uv=.venv/uv/bin/uv
if [ ! -x "$uv" ] || [ requirements-uv.lock -nt "$uv" ]; then
    rm -rf .venv/uv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
        --require-hashes --target .venv/uv -r requirements-uv.lock
    touch "$uv"
fi

echo "Installing the dependencies (on Linux about 3 GB to download once, 6 GB on disk)"
[ -t 2 ] || quiet=--quiet
export UV_PYTHON_DOWNLOADS=never
# uv does not read pip's configuration; a mirror configured there is the only way out of some networks.
mirror=$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)
mirror=${PIP_INDEX_URL:-$mirror}
if [ -n "$mirror" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$mirror}"; fi
"$uv" pip sync ${quiet-} --python .venv/bin/python --require-hashes requirements.lock
"$uv" pip install ${quiet-} --python .venv/bin/python --offline --no-deps --no-build-isolation --editable .
echo "Ready: $(.venv/bin/python --version) in .venv, $(.venv/bin/python -c 'import importlib.metadata as m; print("torch", m.version("torch"), "torchvision", m.version("torchvision"))')"
