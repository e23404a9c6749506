#!/bin/sh
# Run a command for every task that completed, with the event on its standard input: worker.sh COMMAND...
# After the work, a file in ./done keeps the event's id. At each start the script reads all stored events again, so it
# doesn't miss events from while it was stopped. Run one worker at a time; for several, see ../python.
set -u
mkdir -p done

task-bridge events --kind completed --follow --json | while IFS= read -r event; do
  id=$(printf '%s' "$event" | jq -r .id | tr / .)
  [ -e "done/$id" ] && continue
  until printf '%s\n' "$event" | "$@"; do sleep 2; done
  : >"done/$id"
  echo "$id"
done
