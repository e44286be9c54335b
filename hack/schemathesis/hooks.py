"""How schemathesis speaks to VirtShell's gateway: requests are signed, and the 5xx of the contract are no accident."""

import base64
import email.utils
import hashlib
import hmac
import os

import requests.auth
import schemathesis


class Signature(requests.auth.AuthBase):
    """Signs what goes over the wire."""

    def __init__(self, key_id, secret):
        self.key_id = key_id
        self.secret = secret.encode()

    def __call__(self, request):
        date = email.utils.formatdate(usegmt=True)
        signed = "\n".join(
            (
                request.method,
                request.url.split("/")[2],
                "",
                _text(request.headers.get("Content-Type", "")).strip(),
                date,
                request.path_url.split("?")[0],
            )
        )
        digest = hmac.new(self.secret, signed.encode("utf-8", "surrogateescape"), hashlib.sha1).digest()
        request.headers["Date"] = date
        request.headers["X-VirtShell-Authorization"] = f"{self.key_id}:{base64.b64encode(digest).decode()}"
        request.headers.pop("Authorization", None)
        request.headers.pop("Content-MD5", None)
        return request


def _text(value):
    return value.decode("latin-1") if isinstance(value, bytes) else value


schemathesis.auth.set_from_requests(
    Signature(os.environ["VIRTSHELL_ACCESS_KEY_ID"], os.environ["VIRTSHELL_SECRET_ACCESS_KEY"])
)


@schemathesis.check
def no_unexpected_refusal(ctx, response, case):
    """The signature is good. 501 is what nothing implements; one 500 is documented: no host of the type or with the driver."""
    status = response.status_code
    if status == 403:
        assert response.json()["error"] != "User not authenticated", "the signature was refused"
    if status < 500 or status == 501:
        return
    body = response.json()
    assert set(body) == {"error", "create", "reason"}, f"{status}: {body}"
