"""Follows: standing orders to watch every task of a vCenter that matches. Pure."""
