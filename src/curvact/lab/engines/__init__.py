"""Engines run specs side by side: they only move specs to workers and records back."""
