"""Tests of the trajectory room."""
