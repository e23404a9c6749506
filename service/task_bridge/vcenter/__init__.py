"""Tasks of vCenter: one source for each vCenter, over the API that knows the task.

source        the port `TaskSource`                   cis, vim    the two APIs
tracked_task  the lifecycle of a tracked task         absence     when a task counts as lost or denied
shared        what both APIs share                    policy      how often to poll, and how long to wait
http          the only place that knows httpx         http_errors what a failed request means, in sentences
login         when a login may be tried               backoff     when to try again after a failure
health        the state of vCenter, for readiness and the log
named_results results with the names of their targets, which name_lookup looks up and names keeps
parsing       parse long answers outside the event loop; parsing_process is for the longest
"""
