"""HTTP for people and machines that look at the bridge: health, metrics, the board. It changes nothing."""
