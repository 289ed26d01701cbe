"""What a device imports to receive alerts and signed updates from a Fleetcast gateway."""
