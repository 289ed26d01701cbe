"""The only aiohttp.web: device plane, operator API, artifacts, health. Thin: it reads requests and answers.

Each module offers its routes, built from services that are passed in; ``gateway.app`` makes the application.
"""
