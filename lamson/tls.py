"""The server's side of TLS."""

import ssl


def server_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Return a context with this certificate and its key, which are paths of PEM files; both may be in one file.

    Raises OSError that names the files when they cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        # A key that needs a password is an error, and no question on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        files = certificate if key is None else f"{certificate} with the key {key}"
        raise OSError(error.errno, f"cannot use the certificate {files}: {error.strerror or error}") from error
    return context
