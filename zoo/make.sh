#!/usr/bin/env bash
# Makes the zoo again: trains its networks, attacks them with AutoAttack, and copies them into the package.
# bash zoo/make.sh [FOLDER]. What has finished in the folder is kept. Needs Fashion-MNIST (CURVACT_DATA).
set -euo pipefail
runs=${1:-runs/zoo}
zoo=$(dirname "$0")
curvact="${PYTHON:-python} -m curvact"

network() { # NAME SPEC ACTIVATION
    $curvact train "$zoo/$2.yaml" "activation=$3" --out "$runs/$1" --resume
    $curvact evaluate "$runs/$1" --n 1000 --out "$runs/evaluations" --resume
}

network digits-resnet-relu digits relu
network digits-resnet-rctaf6 digits "rctaf(curvature=6)"
network fashion-resnet18-relu fashion relu
network fashion-resnet18-rctaf6 fashion "rctaf(curvature=6)"
${PYTHON:-python} "$zoo/collect.py" "$runs"
