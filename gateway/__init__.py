"""The Fleetcast gateway: it holds the fleet's connections; the operator's origin keeps the logic."""
