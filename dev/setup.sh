# Set-up, sourced by speedrun.sh and test.sh (or run by itself: bash dev/setup.sh). Works with bash 3.2 and up.
#
# In order: .venv, torch by itself, the hash-locked rest, the project (editable), rustbpe where there is Rust. Each step
# leaves a stamp in .venv/.setup/ when it has ended well; the stamp holds a hash of all that the step depends on. So a
# second run does nothing, a changed requirements.txt redoes its own step only, and an interrupted step is done again.
#
# NANOCHAT_TORCH   another torch: a requirement, a wheel or a URL, e.g. NANOCHAT_TORCH='torch==2.14.1' bash test.sh
# PIP_INDEX_URL    and pip's other variables say where packages come from
# NANOCHAT_PYTHON  the Python to build .venv with, instead of the best one found
# NANOCHAT_REQUIREMENTS  the lock: requirements.txt (unless said otherwise) is all that training and chatting need;
#                  test.sh names requirements-test.txt, which holds that and what the tests want beside it. Where the
#                  larger one is installed the smaller is as well, so that changing between them costs nothing.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "[set-up] $*"; }
give_up() { echo "error: $*" >&2; exit 1; }

# --- .venv

python_fits() { # 3.10 to 3.14: what torch is built for
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${NANOCHAT_PYTHON:-python3 python3.13 python3.12 python3.14 python3.11 python3.10 python}; do
        if command -v "$name" >/dev/null 2>&1 && python_fits "$name"; then command -v "$name"; return; fi
    done
    return 1
}

need_venv_module() { # Debian and Ubuntu ship Python without it
    local version package
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package="python$version-venv"
    command -v apt-get >/dev/null 2>&1 || give_up "$1 cannot make a virtual environment: install its venv module"
    [ "$(id -u)" = 0 ] || give_up "Python's venv module is missing: run  sudo apt-get install -y $package"
    say "installing $package"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"; } >/dev/null \
        || give_up "apt-get could not install $package: see its message above"
}

make_venv() {
    local python
    # A .venv that works is kept, whoever made it; half a one (interrupted, or its Python is gone) is made again.
    [ -e .venv/.setup/venv ] && .venv/bin/python -c '' 2>/dev/null && return
    if ! { python_fits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
        python=$(find_python) || give_up "Python 3.10 to 3.14 is needed and was not found: install one" \
            "(Debian, Ubuntu: sudo apt-get install -y python3 python3-venv; macOS: brew install python@3.13)"
        need_venv_module "$python"
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv || give_up "$python could not make .venv: see its message above"
    fi
    mkdir -p .venv/.setup
    touch .venv/.setup/venv
}

# --- steps with stamps

# keys TORCH LOCK: the hashes that the stamps hold, a line each: torch, requirements (of LOCK, then of the larger lock
# where that holds LOCK's pins, else of LOCK again), project, rustbpe
keys() {
    .venv/bin/python - "$1" "$2" <<'END'
import hashlib, pathlib, re, sys

def key(*texts, files=()):
    digest = hashlib.sha256(repr((sys.version, str(pathlib.Path.cwd()), texts)).encode())
    for path in sorted(files):
        if path.is_file():
            digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

def pins(path):  # name==version, whatever the platform
    return set(re.findall(r"^[\w.-]+.*?==[^\s;]+", path.read_text(encoding="utf-8"), re.M)) if path.is_file() else set()

here = pathlib.Path(".")
lock, larger = here / sys.argv[2], here / "requirements-test.txt"
if not pins(lock) <= pins(larger):
    larger = lock
wheel = pathlib.Path(sys.argv[1])  # a wheel file that was built anew under the same name is another torch
built = [wheel.stat().st_mtime_ns] if wheel.is_file() else []
crate = [p for p in here.glob("rustbpe/**/*") if p.suffix in {".rs", ".toml", ".py", ".pyi"} and "target" not in p.parts]
print(key("torch", sys.argv[1], *built))
print(key("requirements", files=[lock]))
print(key("requirements", files=[larger]))
print(key("project", files=[here / "pyproject.toml"]))
print(key("rustbpe", files=crate))
END
}

stamped() { [ "$(cat ".venv/.setup/$1" 2>/dev/null)" = "$2" ]; }
stamp() { echo "$2" >".venv/.setup/$1.new" && mv ".venv/.setup/$1.new" ".venv/.setup/$1"; }
pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input "$@"; }

install_all() {
    local torch=$1 lock=$2 torch_key=$3 lock_key=$4 larger_key=$5 project_key=$6 fresh=""
    if ! stamped torch "$torch_key"; then
        rm -f .venv/.setup/torch
        say "$torch (the longest step: up to 4 GB; NANOCHAT_TORCH names another build)"
        pip_install "$torch" || give_up "pip could not install $torch: see its message above"
        stamp torch "$torch_key"
        fresh=1
    fi
    if ! stamped requirements "$lock_key" && ! stamped requirements "$larger_key"; then
        rm -f .venv/.setup/requirements
        say "the other packages ($lock, checked by hash)"
        # --no-deps: the lock is complete, and pips up to 2023 refuse one in which a package asks for extras of another
        pip_install --no-deps --require-hashes -r "$lock" || give_up "pip could not install $lock: see above"
        stamp requirements "$lock_key"
        fresh=1
    fi
    if ! stamped project "$project_key"; then
        rm -f .venv/.setup/project
        say "nanochat itself (editable)"
        pip_install --no-deps --no-build-isolation -e . || give_up "pip could not install nanochat itself: see above"
        stamp project "$project_key"
        fresh=1
    fi
    [ -n "$fresh" ] || say "nothing changed"
}

without_rustbpe() { # an older build must not stand where ours is meant
    .venv/bin/python -m pip uninstall --quiet --yes rustbpe >/dev/null 2>&1 || true
    say "$*: the tokenizer trains through Hugging Face's tokenizers and encodes through tiktoken, slower"
}

build_rustbpe() { # never fatal
    local log=.venv/.setup/rustbpe.log
    [ -e rustbpe/Cargo.toml ] || return 0
    stamped rustbpe "$1" && return
    if ! command -v cargo >/dev/null 2>&1; then
        without_rustbpe "no Rust toolchain (cargo)"
        return
    fi
    rm -f .venv/.setup/rustbpe
    say "rustbpe (Rust, by maturin)"
    if env VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH" \
        .venv/bin/maturin develop --release --manifest-path rustbpe/Cargo.toml >"$log" 2>&1; then
        stamp rustbpe "$1"
    else
        without_rustbpe "rustbpe could not be built ($log says why)"
    fi
}

check_compiler() { # torch.compile on a CPU compiles C++ against Python's headers
    local include
    if ! command -v "${CXX:-g++}" >/dev/null 2>&1 && ! command -v clang++ >/dev/null 2>&1; then
        say "no C++ compiler (g++): torch.compile will be off on the CPU, which makes training slower"
        return
    fi
    include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || say "no Python.h in $include (Debian, Ubuntu: python3-dev):" \
        "torch.compile will be off on the CPU, which makes training slower"
}

set_up() {
    local torch=${NANOCHAT_TORCH:-"torch>=2.11,<2.15"} lock=${NANOCHAT_REQUIREMENTS:-requirements.txt} lines
    [ -f "$lock" ] || give_up "there is no $lock in $PWD (NANOCHAT_REQUIREMENTS)"
    make_venv
    lines=$(keys "$torch" "$lock")
    # shellcheck disable=SC2086 # five hashes without spaces
    set -- $lines
    install_all "$torch" "$lock" "$1" "$2" "$3" "$4"
    build_rustbpe "$5"
    check_compiler
}

set_up
