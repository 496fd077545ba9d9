"""The other end of a relay: aiosmtpd on a free port, with a handler that remembers."""

from aiosmtpd.controller import Controller


class FreePort(Controller):
    """aiosmtpd's server on a port that the system chooses."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Sink:
    """`got` has (sender, recipients, content, options of MAIL) of each message; `refuse` what RCPT answers to whom."""

    def __init__(self, utf8=True):
        self.got = []
        self.refuse = {}
        self.controller = FreePort(self, hostname="127.0.0.1", port=0, enable_SMTPUTF8=utf8)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, envelope.mail_options))
        return "250 OK"

    def __enter__(self):
        self.controller.start()
        self.port = self.controller.port
        return self

    def __exit__(self, *error):
        self.controller.stop()
