"""What all kinds of tasks of one vCenter share: the way there, and what keeps it from harm.

http      the only place that knows httpx        budget   how many requests a second
gate      when a login may be tried              trouble  what goes wrong on the way, in sentences
absence   when a task counts as lost             outage   whether vCenter answers, and when to ask again
finds     what was found, until it is taken      health   how it does, for readiness and the log
config    what is told about a vCenter           link     all of it, of one vCenter
"""
