"""HTTP for people and machines that check on the bridge: health, metrics, the board. HTTP changes nothing."""
