"""Stores as earlier formats wrote them, and the program that made each."""
