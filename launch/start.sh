#!/usr/bin/env bash
# One process of a run, which containers and SkyPilot start: makes the environment if it is missing, prints the python
# command and becomes it, so that signals reach it. With --dry_run as the first word it prints the command only.
#
#   bash launch/start.sh [--dry_run] --config=experiments/base.py --workdir=runs/base
set -euo pipefail
launch=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/command.sh
source "$launch/command.sh"
# shellcheck source=launch/setup.sh
[ -n "$dry_run" ] || source "$launch/setup.sh"
command=(python -m bert_jax.main "$@")
show "${command[@]}"
[ -n "$dry_run" ] || exec "${command[@]}"
