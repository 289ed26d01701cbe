"""A fleet that can be broken on purpose: seeded virtual devices on the real SDK core."""
