#!/bin/sh
# Runs a command for every task that completed, the event on its standard input: worker.sh COMMAND...
# What was done is remembered by the event's id in ./done, after the work; at each start it goes through the stored
# events again, so that what happened meanwhile isn't missed. One worker at a time; for several see ../python.
set -u
mkdir -p done

task-bridge events --kind completed --follow --json | while IFS= read -r event; do
  id=$(printf '%s' "$event" | jq -r .id | tr / .)
  [ -e "done/$id" ] && continue
  until printf '%s\n' "$event" | "$@"; do sleep 2; done
  : >"done/$id"
  echo "$id"
done
