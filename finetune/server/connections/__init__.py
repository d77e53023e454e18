"""Sockets, connections and the access of clients."""
