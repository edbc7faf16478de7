"""OpenML's descriptions through its own package, from a server on this machine."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openml
import pytest

from smallm.documents import Dropped, finished, source
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

NAMESPACE = 'xmlns:oml="http://openml.org/openml"'
TEXTS = {2: "**Author**: A. Measured *steel*.", 3: "Chess end games.", 7: None}


def listing():
    rows = "".join(
        f"<oml:dataset><oml:did>{number}</oml:did><oml:name>set{number}</oml:name>"
        "<oml:version>1</oml:version><oml:status>active</oml:status><oml:format>ARFF</oml:format>"
        "</oml:dataset>"
        for number in [*TEXTS, 9]
    )
    return f"<oml:data {NAMESPACE}>{rows}</oml:data>"


def description(number):
    text = TEXTS[number]
    told = f"<oml:description>{text}</oml:description>" if text else ""
    return (
        f"<oml:data_set_description {NAMESPACE}><oml:id>{number}</oml:id>"
        f"<oml:name>set{number}</oml:name><oml:version>1</oml:version>{told}"
        "<oml:format>ARFF</oml:format><oml:url>http://127.0.0.1/none.arff</oml:url>"
        f"<oml:file_id>{number}</oml:file_id></oml:data_set_description>"
    )


class Api(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if "list" in parts:
            code, body = 200, listing()
        elif parts[-1].isdigit() and int(parts[-1]) in TEXTS:
            code, body = 200, description(int(parts[-1]))
        else:
            code = 412
            body = f"<oml:error {NAMESPACE}><oml:code>111</oml:code><oml:message>Unknown dataset"
            body += "</oml:message></oml:error>"
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def api(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(openml.config, "server", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(openml.config, "connection_n_retries", 1)
    yield server
    server.shutdown()
    server.server_close()


SETTINGS = CorpusSettings(source="ml-text", dataset="openml")


def test_every_description_is_a_document_and_what_is_missing_is_counted(api):
    dropped = Dropped()
    found = list(finished(source("ml-text").read(SETTINGS, dropped, workers=1), dropped))
    assert [each.text for each in found] == [
        "set2\n\nAuthor: A. Measured steel.",
        "set3\n\nChess end games.",
    ]
    assert dropped.counts == {
        "dataset without a description": 1,
        "dataset that OpenML does not give": 1,
    }


def test_the_fingerprint_is_that_of_the_listing(api, monkeypatch):
    first = source("ml-text").fingerprint(SETTINGS)
    assert source("ml-text").fingerprint(SETTINGS) == first
    monkeypatch.setitem(TEXTS, 11, "More.")
    assert source("ml-text").fingerprint(SETTINGS) != first


def test_a_server_that_is_not_there_is_one_line(api, free_port, monkeypatch):
    monkeypatch.setattr(openml.config, "server", f"http://127.0.0.1:{free_port}")
    with pytest.raises(SmallmError, match=r"OpenML at http://127.0.0.1:\d+ cannot be read"):
        source("ml-text").fingerprint(SETTINGS)
