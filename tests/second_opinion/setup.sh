#!/usr/bin/env bash
# Makes an environment that adds the peers of requirements.txt to the project's own packages, and runs the tests here in it.
# The project's environment is only read.   bash tests/second_opinion/setup.sh [pytest arguments]
# PYTHON: the project's interpreter (default .venv/bin/python). SECOND_VENV: where to put the environment (default .venv-second).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
venv="${SECOND_VENV:-$root/.venv-second}"

version() { "$1" -c 'import torch; print(torch.__version__)'; }
before="$(version "$python")"

if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv --without-pip "$venv"
    echo '*' > "$venv/.gitignore"
    purelib="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    own="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    # addsitedir, unlike a bare path, also reads the .pth files there: an editable curvact is one.
    echo "import site; site.addsitedir('$purelib')" > "$own/project.pth"
fi
"$python" -m pip --python "$venv/bin/python" install --quiet --no-deps -r "$here/requirements.txt"

after="$(version "$venv/bin/python")"
if [ "$before" != "$after" ]; then
    echo "setup.sh: torch was $before and is $after in $venv: something replaced it" >&2
    exit 1
fi
"$venv/bin/python" -c '
import importlib.util, sys
if importlib.util.find_spec("torchvision"):
    sys.exit("setup.sh: torchvision is there: it breaks a CPU build of torch")'
echo "torch $after, peers in $venv"
cd "$root"
exec "$venv/bin/python" -m pytest -p no:cacheprovider -q -rs tests/second_opinion "$@"
