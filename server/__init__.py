"""The network edge: HTTP, WebRTC, encoding, the command line."""
