"""The work that every peer does. A function a kind of work; what is timed is nothing but the peer's own calls."""
