#!/usr/bin/env bash
# The whole test suite; options go to pytest:   bash launch/test.sh -m "not slow" tests/models
set -euo pipefail
EXTRAS=${EXTRAS:-dev}
source "$(dirname "$0")/setup.sh"
exec python -m pytest "$@"
