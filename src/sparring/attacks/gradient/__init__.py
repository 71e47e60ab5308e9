"""Attacks that climb the victim's input gradient inside a ball."""
