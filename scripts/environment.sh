# Sourced by the other scripts, which call one of two functions to say in which environment they run.
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# For a script that must work in a bare clone: the repository's .venv, made or brought up to date with the extras given.
use_own_environment() {
  bash "$_root/scripts/setup.sh" "$@"
  export PATH="$_root/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
}

# For a launcher: the active environment if it has this package, otherwise the repository's .venv.
use_active_environment() {
  command -v diffusionvl > /dev/null || export PATH="$_root/.venv/bin:$PATH"
  export TOKENIZERS_PARALLELISM=false
}
