# Sourced by the other scripts: makes the virtual environment .venv with the extras
# named in $1, once, and puts it first on PATH. Works with bash 3.2 (macOS).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed; set PYTHON to its path" >&2
    return 1
}

make_environment() {
    local extras="$1" stamp python
    stamp=".venv/installed-$extras"
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        python="$(find_python)"
        echo "making .venv with [$extras] (the first time this downloads packages) ..."
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
        touch "$stamp"
    fi
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
}
