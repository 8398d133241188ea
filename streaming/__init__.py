"""Time and conversation: audio in, windows, the engine's door, playout. Knows no HTTP, no WebRTC, no torch."""
