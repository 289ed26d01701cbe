"""Devices, channels, subscriptions and alerts: the rows, the ports to where they are, the log in memory."""
