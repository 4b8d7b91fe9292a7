#!/usr/bin/env bash
# Sets up, then lints, checks types and import directions, and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_own_environment
ruff check .
ruff format --check .
mypy
lint-imports
pytest "$@"
