#!/bin/sh
# Starts an operation in vCenter, waits for its task, and goes on by how it ended.
# Needs: VCENTER (its URL), SESSION (a session id of its API), and BRIDGE_NATS_URL where NATS isn't on this machine.
set -u

curl -sf -X POST -H "vmware-api-session-id: $SESSION" \
  "$VCENTER/api/esx/settings/clusters/domain-c9/software?action=apply&vmw-task=true" |
  task-bridge watch --label started_by=wait.sh --json >events.jsonl
code=$?

case $code in
0) echo "The task succeeded." ;;
1) echo "The task failed: $(tail -n 1 events.jsonl | jq -r .data.error.message)" ;;
3) echo "Its end can't be known: $(tail -n 1 events.jsonl | jq -r .data.error.message)" ;;
*) echo "It could not be watched." ;;
esac
exit $code
