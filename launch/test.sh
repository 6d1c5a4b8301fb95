#!/usr/bin/env bash
# The whole test suite; options go to pytest:   bash launch/test.sh -m "not slow" tests/models
set -euo pipefail
EXTRAS=${EXTRAS:-dev}
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
# Two workers by default: most of the time is compilation, which uses one core.
exec python -m pytest -n "${PYTEST_WORKERS:-2}" --dist loadfile "$@"
