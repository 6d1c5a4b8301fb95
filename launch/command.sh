# shellcheck shell=bash
# Sourced by the launchers, with their words: a first word --dry_run prints the commands and starts none of them.
dry_run=""
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi

# start WORD… prints a command and runs it.
start() {
  show "$@"
  [ -n "$dry_run" ] || "$@"
}

# show WORD… prints a command as a shell takes it. Words that need no quotes go without them, so that it can be read.
show() {
  local word line="+"
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "$line"
}
