"""The audio-driven video diffusion transformer and everything that runs beside it. Knows no asyncio."""
