"""Data as users have it: downloads, archives, tables, folders."""
