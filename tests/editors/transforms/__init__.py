"""Tests of the update transforms."""
