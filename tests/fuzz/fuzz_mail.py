"""Feeds `lamson.mail` with whatever atheris comes up with. Nothing may raise, and nothing may be lost.

    pip install atheris
    python tests/fuzz/fuzz_mail.py -max_total_time=600 -timeout=10 corpus/ tests/messages/

The first folder, which has to be there, collects inputs that reach new code; the second one is what it starts from.
"""

import sys

import atheris

with atheris.instrument_imports(include=["lamson"]):
    from lamson.mail import MailRequest


def read_everything(data: bytes) -> None:
    """All that a handler could ask of a message."""
    request = MailRequest("127.0.0.1", None, None, data)
    for name in request.keys():
        values = request.get_all(name)
        assert values and request[name] == values[0] and name in request
        assert not any("\n" in value or "\r" in value for value in values)
    assert isinstance(request.route_to, set)
    assert request.route_from is None or isinstance(request.route_from, str)
    request.body()
    request.text()
    request.html()
    request.is_auto_reply()
    attachments = request.attachments()
    bodies = [part.body for part in request.walk()]
    assert request.as_bytes() == data

    text = str(request)
    text.encode("utf-8")
    assert all(len(line.encode("utf-8")) <= 998 for line in text.split("\n"))
    request.to_message().as_string()
    str(request.reply(Body="Thank you."))

    again = MailRequest("127.0.0.1", None, None, text)
    inside = [part.content_type.startswith("message/") for part in request.walk()]
    if not any(inside) and not request.base.content_type.startswith("message/"):
        # A message inside the message is cleaned too, which changes its bytes.
        assert [(each.name, each.data) for each in again.attachments()] == [
            (each.name, each.data) for each in attachments
        ]
    assert len([part.body for part in again.walk()]) == len(bodies)

    request["X-Fuzz"] = "1"
    request["Subject"] = "changed"
    changed = MailRequest("127.0.0.1", None, None, request.as_bytes())
    assert changed["x-fuzz"] == "1" and changed["subject"] == "changed"


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_everything)
    atheris.Fuzz()
