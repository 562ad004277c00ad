"""Rendering characters of installed fonts: which ones exist, which look alike, how one is drawn."""
