#!/bin/sh
# Start an operation in vCenter, wait for its task, and continue according to its outcome.
# Set VCENTER (its URL), SESSION (a session id of its API), and BRIDGE_NATS_URL if NATS isn't on this machine.
set -u

curl -sf -X POST -H "vmware-api-session-id: $SESSION" \
  "$VCENTER/api/esx/settings/clusters/domain-c9/software?action=apply&vmw-task=true" |
  task-bridge watch --label started_by=wait.sh --json >events.jsonl
code=$?

case $code in
0) echo "The task succeeded." ;;
1) echo "The task failed: $(tail -n 1 events.jsonl | jq -r '.data.error | [.message, .messages[1:][].text] | join(" ")')" ;;
3) echo "The outcome is unknown: $(tail -n 1 events.jsonl | jq -r .data.error.message)" ;;
*) echo "The task could not be watched." ;;
esac
exit $code
