#!/usr/bin/env bash
# Makes the environment and runs the whole test suite through tox.
# Arguments go to tox: ./scripts/test.sh -e lint
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ ! -x .venv-tox/bin/tox ]; then
    python="$(find_python)"
    "$python" -m venv .venv-tox
    .venv-tox/bin/python -m pip install --quiet --disable-pip-version-check "tox>=4.30"
fi
if [ "$#" -eq 0 ]; then
    tests=tests-inproc
    if ! command -v cc >/dev/null 2>&1 && [ -z "${CI:-}" ]; then
        echo "no C compiler: the tests of models in this process are left out"
        tests=tests
    fi
    set -- -e "lint,types,$tests,wheel"
fi
exec .venv-tox/bin/tox run "$@"
