#!/usr/bin/env bash
# Sets up, then lints, checks types and import directions, and runs the tests, in a process for each core.
#   bash scripts/test.sh [--fast] [ARGS]
# --fast: the tests of parts alone, without those that run commands, train models, or start processes. ARGS go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_own_environment
tests=()
if [ "${1:-}" = --fast ]; then
  shift
  tests=(tests/{data,drawing,golden,house,modeling,objective,scripts} --ignore tests/house/test_wheel.py)
fi
ruff check .
ruff format --check .
mypy
lint-imports
# A model of a few thousand weights gains nothing from threads; a process for each core does.
OMP_NUM_THREADS=1 exec pytest -n auto "${tests[@]}" "$@"
