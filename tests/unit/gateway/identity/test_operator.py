from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from gateway.errors import (
    CredentialExpiredError,
    CredentialRefusedError,
    CredentialRevokedError,
    PermissionDeniedError,
)
from gateway.identity import (
    OperatorToken,
    Scope,
    authenticate,
    authorise,
    new_token,
    parse_scopes,
    token_sha256,
)

NOW = 1_800_000_000_000
TOKEN = OperatorToken(
    id=b"i" * 16,
    name="ci",
    sha256=b"h" * 32,
    fleet="acme",
    scopes=frozenset({Scope.PUBLISH}),
    created_at=NOW - 1000,
)


class TestToken:
    def test_a_token_has_256_random_bits_and_a_prefix_that_scanners_find(self):
        token = new_token()
        assert token.startswith("fct_")
        assert len(token) == 47
        assert new_token() != token

    def test_it_is_known_by_its_sha256(self):
        token = new_token()
        assert token_sha256(token) == hashlib.sha256(token.encode()).digest()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "fct_",
            "fct_" + "a" * 42,
            "fct_" + "a" * 44,
            "fct_" + "a" * 42 + "\n",
            "xyz_" + "a" * 43,
            "fct_" + "ä" * 43,
        ],
    )
    def test_what_is_no_token_is_not_looked_up(self, text):
        with pytest.raises(CredentialRefusedError):
            token_sha256(text)


class TestAuthenticate:
    def test_a_good_token_names_its_operator(self):
        operator = authenticate(TOKEN, now_ms=NOW)
        assert (operator.name, operator.fleet, operator.scopes) == ("ci", "acme", {Scope.PUBLISH})

    def test_no_row_is_refused(self):
        with pytest.raises(CredentialRefusedError):
            authenticate(None, now_ms=NOW)

    def test_expiry_is_exact(self):
        token = replace(TOKEN, expires_at=NOW)
        authenticate(token, now_ms=NOW - 1)
        with pytest.raises(CredentialExpiredError):
            authenticate(token, now_ms=NOW)

    def test_revoked_is_revoked_whatever_the_clock_says(self):
        with pytest.raises(CredentialRevokedError):
            authenticate(replace(TOKEN, revoked_at=NOW + 1000, expires_at=NOW - 1), now_ms=NOW)


@pytest.mark.parametrize("held", Scope)
@pytest.mark.parametrize("asked", Scope)
def test_every_scope_includes_read_and_admin_includes_all(held, asked):
    operator = authenticate(replace(TOKEN, scopes=frozenset({held})), now_ms=NOW)
    if asked in (held, Scope.READ) or held is Scope.ADMIN:
        assert authorise(operator, asked, "acme") is operator
    else:
        with pytest.raises(PermissionDeniedError):
            authorise(operator, asked, "acme")


class TestFleets:
    @pytest.mark.parametrize("fleet", ["other", None])
    def test_a_token_of_one_fleet_reaches_no_other_and_not_the_node(self, fleet):
        operator = authenticate(replace(TOKEN, scopes=frozenset(Scope)), now_ms=NOW)
        with pytest.raises(PermissionDeniedError):
            authorise(operator, Scope.READ, fleet)

    @pytest.mark.parametrize("fleet", ["acme", "other", None])
    def test_a_token_of_all_fleets_reaches_each(self, fleet):
        operator = authenticate(replace(TOKEN, fleet=None), now_ms=NOW)
        authorise(operator, Scope.PUBLISH, fleet)


class TestScopes:
    def test_names_become_scopes(self):
        assert parse_scopes(["read", "rollouts"]) == {Scope.READ, Scope.ROLLOUTS}

    @pytest.mark.parametrize("names", [[], ["everything"], ["READ"], ["read", ""]])
    def test_other_names_are_refused_and_the_right_ones_listed(self, names):
        with pytest.raises(ValueError, match="read, publish, devices, releases, rollouts, admin"):
            parse_scopes(names)
