"""Editing methods as pure functions; `METHODS` lists them."""

from jaxedit.editors.registry import METHODS, Method, Settings, method

__all__ = ["METHODS", "Method", "Settings", "method"]
