#!/usr/bin/env bash
# Test the device side as ARM64 code on an x86 Linux machine: deploy/arm64.sh PYTHON [--train]
#
# PYTHON has adc-edge[export,cloud] (the checkout's .venv/bin/python). It exports a bundle and runs a real trainer. The
# device runs as ARM64 code under QEMU's user mode, in a private directory, with Debian's Python and the wheels that a
# board would get. It needs no root, chroot or binfmt, and changes nothing outside out/arm64. --train adds PyTorch and a
# trained trunk (0.6 GB more). Downloads are kept; `rm -rf out/arm64` starts over.
set -euo pipefail

# Versions of JetPack 6, for Python 3.11. onnxruntime after 1.23 crashes under this emulator.
PINS=(onnxruntime==1.23.2 'numpy==1.26.*')
# All packages are listed, because pip evaluates torch's markers for this machine and would add CUDA for x86.
TORCH=(torch==2.5.1 sympy==1.13.1 mpmath networkx jinja2 markupsafe fsspec filelock typing-extensions)
SUITE=bookworm # its Python is 3.11; the mirror is that of this machine's apt, or ADC_EDGE_DEBIAN=URL
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

fail() { echo "arm64: $1" >&2; exit 1; }

[[ $# -ge 1 && $# -le 2 && ${2:---train} == --train ]] || fail "usage: deploy/arm64.sh PYTHON [--train]"
PYTHON=$(command -v "$1") || fail "no Python at $1; \`make install\` makes .venv/bin/python"
[[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON # the link is not resolved: Python finds its venv by the link's path
TRAIN=${2:-}
SELF=$(realpath "$0")
cd "$(dirname "$SELF")/.."
OUT=$PWD/out/arm64
mkdir -p "$OUT"
LOG=$OUT/setup.log
exec 9>"$OUT/lock"
flock --nonblock 9 || fail "another run is using $OUT"
: >"$LOG"

# once NAME KEY FUNCTION: make out/arm64/NAME, unless it exists and KEY and this script are unchanged.
once() {
    local name=$1 key start=$SECONDS
    key=$(cat "$SELF" - <<<"$2" | sha256sum)
    if [[ -f $OUT/$name.key && $(<"$OUT/$name.key") == "$key" ]]; then
        echo "arm64: $name exists already"
        return
    fi
    rm -rf "${OUT:?}/$name" "$OUT/$name.key"
    mkdir -p "$OUT/$name"
    if ! "$3" "$OUT/$name" >>"$LOG" 2>&1; then
        tail -n 15 "$LOG" >&2
        fail "cannot make $name (no network? another mirror: ADC_EDGE_DEBIAN=URL); the whole log is in $LOG"
    fi
    echo "$key" >"$OUT/$name.key"
    echo "arm64: made $name in $((SECONDS - start)) s"
}

debian_mirror() {
    # shellcheck disable=SC2016  # the variables are apt's
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v suite=$SUITE '$2 == suite && !n++ {print $1}'
}

# Unpack Debian's ARM64 Python with its libraries, and the emulator for this machine's processor.
make_system() {
    mkdir -p "$1/apt/lists/partial" "$1/apt/archives/partial" "$1/root"
    : >"$1/apt/status"
    echo "deb [arch=$HOST,arm64 signed-by=$KEYRING] $MIRROR $SUITE main" >"$1/apt/sources.list"
    cat >"$1/apt/apt.conf" <<EOF
Dir::State "$1/apt"; Dir::State::status "$1/apt/status"; Dir::Cache "$1/apt";
Dir::Etc::sourcelist "$1/apt/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";
APT::Sandbox::User ""; APT::Update::Error-Mode "any"; Acquire::Retries "3"; Acquire::http::Timeout "30";
EOF
    local apt=(timeout 600 env "APT_CONFIG=$1/apt/apt.conf" apt-get -qq -y)
    "${apt[@]}" update && "${apt[@]}" --download-only install python3.11 libstdc++6 || return
    (cd "$1/apt" && "${apt[@]}" download "qemu-user-static:$HOST") || return
    for package in "$1"/apt/archives/*.deb; do
        dpkg-deb --extract "$package" "$1/root" || return
    done
    dpkg-deb --fsys-tarfile "$1"/apt/qemu-user-static*.deb | tar -x -C "$1" ./usr/bin/qemu-aarch64-static || return
    rm -r "$1/apt"
}

# Unpack wheels for ARM64 and Python 3.11 with this machine's pip.
arm64_pip() {
    local platforms=() version target=$1
    for version in 2_28 2_27 2_26 2_17; do platforms+=(--platform "manylinux_${version}_aarch64"); done
    timeout 900 "$PYTHON" -m pip install --quiet --target "$target" "${@:2}" --only-binary=:all: --implementation cp \
        --python-version 3.11 "${platforms[@]}" --platform manylinux2014_aarch64
}

# Install adc-edge as a wheel. It is built in a copy, because setuptools would include old files in build/.
make_adc_edge() {
    mkdir "$1/source" && cp -a pyproject.toml README.md LICENSE "${SOURCES[@]}" "$1/source" || return
    timeout 300 "$PYTHON" -m pip install --quiet --no-deps --target "$1/site" "$1/source" || return
    rm -r "$1/source"
}

# Print the requirements of the installed adc-edge, separated by spaces.
needs() {
    "$PYTHON" - "$OUT/adc-edge/site" <<'EOF'
import sys
from importlib.metadata import distributions
(ours,) = [d for d in distributions(path=sys.argv[1:]) if d.name == "adc-edge"]
print(*(r.replace(" ", "") for r in ours.requires or [] if ";" not in r))
EOF
}

# shellcheck disable=SC2086
make_packages() { arm64_pip "$1" $NEEDS "${PINS[@]}"; }

make_torch() { arm64_pip "$1" --no-deps "${TORCH[@]}"; }

[[ $(uname -s) == Linux ]] || fail "this needs Linux: QEMU's user mode runs Linux programs"
[[ $(uname -m) != aarch64 ]] || fail "this machine is ARM64 already: run \`make test\`, which checks more"
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || fail "no $tool: this needs Debian or Ubuntu, for example in a debian:$SUITE container"
done
[[ -r $KEYRING ]] || fail "no $KEYRING: apt-get install debian-archive-keyring"
"$PYTHON" -c 'from importlib.util import find_spec; exit(not all(map(find_spec, ("zmq", "torch", "timm", "pip"))))' ||
    fail "$PYTHON lacks pip or a package of adc-edge[export,cloud]: run \`make install\`"
HOST=$(dpkg --print-architecture)
MIRROR=${ADC_EDGE_DEBIAN:-$(debian_mirror)}
[[ $MIRROR ]] || fail "this machine's apt has no source of Debian $SUITE: name a mirror, ADC_EDGE_DEBIAN=URL"
mapfile -t SOURCES < <(find adc_edge -maxdepth 1 -type l -printf '%f\n' | sort) # the parts
SOURCES=(adc_edge "${SOURCES[@]}")

START=$SECONDS
once system "$MIRROR $SUITE $HOST" make_system
FILES=$(find pyproject.toml "${SOURCES[@]}" -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum)
once adc-edge "$FILES" make_adc_edge
NEEDS=$(needs)
once packages "$NEEDS" make_packages
DEVICE_PATH=$OUT/adc-edge/site:$OUT/packages
if [[ $TRAIN ]]; then
    once torch "" make_torch
    DEVICE_PATH=$DEVICE_PATH:$OUT/torch
fi

# Make a command that runs the ARM64 Python. It writes no bytecode, because the size of the installation is measured.
cat >"$OUT/python" <<EOF
#!/bin/sh
export PYTHONPATH="$DEVICE_PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
root="$OUT/system/root"
exec "$OUT/system/usr/bin/qemu-aarch64-static" -cpu cortex-a76 -L "\$root" "\$root/usr/bin/python3.11" "\$@"
EOF
chmod +x "$OUT/python"
exec "$PYTHON" deploy/arm64_check.py host "$OUT" --setup-seconds $((SECONDS - START)) ${TRAIN:+--train}
