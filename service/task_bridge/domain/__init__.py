"""The pure rules: tasks, watches, events, requests and names. Nothing here does I/O or reads a clock."""
