#!/bin/sh
# Make .venv with the pinned packages: tools/setup.sh [PYTHON]. Called by make; needs nothing but a Python and its pip.
set -eu
cd "$(dirname "$0")/.."
py="${1:-}" total=230

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
fail() { echo "battnb: $1" >&2; shift; for line in "$@"; do echo "  $line" >&2; done; exit 1; }

if [ -n "$py" ]; then
  new_enough "$py" || fail "PY must be Python 3.11 or later, got: $py"
else
  for p in python3.11 python3.12 python3.13 python3 python3.14 python; do
    if new_enough "$p"; then py="$p"; break; fi
  done
  [ -n "$py" ] || fail 'needs Python 3.11 or later, and none was found on PATH.' \
    'Debian, Ubuntu:  sudo apt-get install python3 python3-venv' 'macOS:           brew install python@3.12' 'elsewhere:       make setup PY=/path/to/python3.11'
fi
"$py" -c 'import ensurepip, venv' >/dev/null 2>&1 || fail "$py cannot make virtual environments (it has no ensurepip)." 'Debian, Ubuntu:  sudo apt-get install python3-venv'

echo "battnb setup [1/3] $("$py" -V): making .venv"
rm -f .venv/.ready
who='import sys; print(sys.base_prefix, sys.version)'
# An environment of another Python, or a broken one, is made anew; ours is kept and brought up to date.
[ "$(.venv/bin/python -c "import pip; $who" 2>/dev/null)" = "$("$py" -c "$who")" ] || rm -rf .venv
"$py" -m venv .venv || fail "$py could not make a virtual environment." 'Debian, Ubuntu:  sudo apt-get install python3-venv'
log=.venv/install.log

echo "battnb setup [2/3] installing the pinned packages: about 2 minutes, longer where torch comes with CUDA"
.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' >"$log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true' INT TERM EXIT
while kill -0 $pid 2>/dev/null; do
  sleep 1; wait_s=$((${wait_s:-0} + 1))
  [ -t 1 ] || [ $((wait_s % 20)) = 0 ] || continue
  if grep -q '^Installing collected' "$log"; then what='all found, unpacking'; else what="$(grep -c '^Collecting' "$log" || true) of about $total packages found"; fi
  if [ -t 1 ]; then printf '\r  %3d s: %-40s' "$wait_s" "$what"; else echo "  $wait_s s: $what"; fi
done
[ ! -t 1 ] || echo
wait $pid || { trap - INT TERM EXIT; tail -15 "$log" >&2; fail "pip could not install; the whole log is in $log"; }
trap - INT TERM EXIT

echo 'battnb setup [3/3] checking that the package imports'
.venv/bin/python -c 'import battnb; print("battnb", battnb.__version__)'
touch .venv/.ready
