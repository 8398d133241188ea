"""Portraits inside the tiny checkpoint's domain, drawn by our own renderer."""
