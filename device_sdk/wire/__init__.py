"""The contract that devices and the gateway share: names, limits, messages, signatures. Pure."""
