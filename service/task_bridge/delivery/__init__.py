"""Events out over HTTP: each delivery sends the events that it selects to one target, at least once and in order."""
