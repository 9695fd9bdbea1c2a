#!/bin/sh
# make_venv.sh DIR [PYTHON]: a virtual environment with pip in DIR, from any Python >= 3.10.
#
# Without PYTHON: the first of python3 and python3.N that is new enough. Debian's python3 has no ensurepip
# unless python3-venv is installed, so virtualenv, and the pip of PYTHON itself, are tried after venv.
#
# shellcheck disable=SC2329  # the ways to do so are called by name
set -eu

venv=$1
asked=${2:-}
export PIP_USER=0 # a user installation, which some sites configure, is refused inside a virtual environment

fail() {
    echo "make_venv: $*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

if [ -n "$asked" ]; then
    new_enough "$asked" || fail "PYTHON=$asked is not a Python >= 3.10; name another one with make PYTHON=..."
    python=$asked
else
    python=
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python >= 3.10 found on PATH; install one, or name it with make PYTHON=/path/to/python3"
fi

if [ -z "$asked" ] && new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0 # only the requirements have changed
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

with_venv() { "$python" -m venv "$venv"; }
with_virtualenv() { "$python" -m virtualenv "$venv"; }
with_virtualenv_command() { virtualenv --python "$python" "$venv"; }
with_pip_of_python() {
    "$python" -m venv --without-pip "$venv" && "$python" -m pip --python "$venv/bin/python" install pip
}

for way in with_venv with_virtualenv with_virtualenv_command with_pip_of_python; do
    rm -rf "$venv"
    if "$way" >>"$log" 2>&1 && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "$venv: $("$venv/bin/python" --version) ($way)"
        exit 0
    fi
done

rm -rf "$venv"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    cat "$log" >&2 # the venv module is there, so the reason is another one
fi
fail "$python can make no virtual environment; install its venv module (Debian, Ubuntu: apt-get install python3-venv) and run make again"
