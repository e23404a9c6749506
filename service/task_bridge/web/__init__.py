"""HTTP: health, metrics and the board for people and machines that check on the bridge, and the API below /v1."""
