#!/bin/sh
# Run a command for every task that ended, with the event on its standard input: worker.sh COMMAND...
# A task ends as `completed` or `abandoned`; the command tells them apart by `outcome`. After the work, a file in ./done
# keeps the event's id. At each start the script reads the events since its first start again, so it misses none from
# while it was stopped. Run one worker at a time; for several, see ../python.
set -u
mkdir -p done
[ -e done/.first ] || date -u +%Y-%m-%dT%H:%M:%SZ >done/.first

task-bridge events --since "$(cat done/.first)" --follow --json | jq -c --unbuffered 'select(.data.final)' | while IFS= read -r event; do
  id=$(printf '%s' "$event" | jq -r .id | tr / .)
  [ -e "done/$id" ] && continue
  until printf '%s\n' "$event" | "$@"; do sleep 2; done
  : >"done/$id"
  echo "$id"
done
