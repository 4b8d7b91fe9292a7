#!/usr/bin/env bash
# Sets up, then runs the tests that take minutes. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_own_environment
pytest -m slow "$@"
