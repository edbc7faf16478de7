"""The page of /docs is whole and brings nothing from elsewhere."""

import re

import pytest

from smallm.errors import SmallmError
from smallm.serving import api_page


def test_the_page_has_no_inline_script_or_style_and_names_only_its_own_files():
    content, headers = api_page.api_file("/docs")
    page = content.decode()
    assert headers["content-type"].startswith("text/html")
    assert "unsafe" not in headers["content-security-policy"]
    named = set(re.findall(r'(?:src|href)="([^"]*)"', page))
    assert named == api_page.PATHS - {"/docs"}
    assert not re.findall(r"<style|<script>|style=|\bon\w+=|https?:", page)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(api_page, "PACKAGE", "no_such_package")
    with pytest.raises(SmallmError, match="needs the package no-such-package"):
        api_page.api_file("/docs/swagger-ui.css")


@pytest.mark.parametrize("path", sorted(api_page.PATHS))
def test_all_files_are_there(path):
    pytest.importorskip(api_page.PACKAGE)
    content, headers = api_page.api_file(path)
    assert len(content) > 300
    assert headers["content-type"].startswith("text/")
