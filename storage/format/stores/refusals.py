"""What a store says when it refuses, in words: its own, without the page of its client, and what to do about it."""

from __future__ import annotations

import html
import os
import re
from typing import NamedTuple

from storage.errors import StorageFailure, StoreRefused

# where machines of a cloud, its containers and its Kubernetes are told their role
OF_ROLES = re.compile(r"//(169\.254\.169\.254|169\.254\.170\.2\d?|metadata\.google\.internal)[:/]")
STATUS = re.compile(r"status code: (\d{3}[^:]*):? ?(.*)", re.DOTALL)
WORD = re.compile(r"<Code>(.*?)</Code>", re.DOTALL)
MESSAGE = re.compile(r"<Message>(.*?)</Message>|\"message\": ?\"(.*?)\"", re.DOTALL)
CAUSES = re.compile(r'(?:error|message): "(.*?)"')  # of a connection that was not made, innermost last
WRITING = ("write", "create", "delete")
CREDENTIALS = {  # of a store, by how its addresses begin, in the environment
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}


class Refusal(NamedTuple):
    """A kind of refusal.

    Attributes:
        words: of the store or its client, by which it is known.
        what: is wrong.
        expected: instead; None: that is plain.
        do: about it; {credentials} are those of the store.
        kind: of error; StoreRefused where the address or the environment must be another.
    """

    words: re.Pattern[str]
    what: str
    expected: str | None
    do: str
    kind: type[StorageFailure] = StoreRefused


REFUSALS = (
    Refusal(
        re.compile("NoSuchBucket|ContainerNotFound|specified bucket does not exist"),
        "there is no such bucket",
        "a bucket that is there: none is made by these commands",
        "check the address, or make the bucket with your store's own tools",
    ),
    Refusal(
        OF_ROLES,
        "there are no credentials",
        "some in the environment, or a machine with a role of its own",
        "export {credentials}; or AWS_SKIP_SIGNATURE=true, which asks a public s3:// bucket without",
    ),
    Refusal(
        re.compile(
            "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired"
            "|AuthenticationFailed|status code: 401"
        ),
        "the store does not know these credentials, or they have ended",
        "credentials of this store in the environment",
        "export {credentials} anew, and AWS_SESSION_TOKEN with keys that end",
    ),
    Refusal(
        re.compile("Received redirect|PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint"),
        "the bucket lies in another region than it is asked for in",
        "the bucket's own region in AWS_REGION",
        "export AWS_REGION=REGION, that of the bucket",
    ),
    Refusal(
        re.compile("RequestTimeTooSkewed"),  # signatures hold for a quarter of an hour
        "this machine's clock is off",
        None,
        "set this machine's clock",
        StorageFailure,
    ),
)


def refused(verb: str, name: str, said: str) -> StorageFailure:
    """Return the error of a request that a store refuses, and would again.

    Args:
        verb: what was asked for.
        name: address of the object or folder.
        said: by the store's client.
    """
    again = ", then run the same command again"
    for refusal in REFUSALS:
        if refusal.words.search(said):
            found = told(said) + (f"; AWS_REGION is {_region()}" if "AWS_REGION" in refusal.do else "")
            do = refusal.do.format(credentials=CREDENTIALS.get(name.partition("://")[0].lower(), CREDENTIALS["s3"]))
            return refusal.kind(f"cannot {verb} {name}: {refusal.what}", found, refusal.expected, do + again)
    if "status code: 403" in said:
        may = "may not be written" if verb in WRITING else "may not be read"
        return StoreRefused(
            f"cannot {verb} {name}: it {may} with these credentials",
            found=told(said),
            expected="permission to list, read, write and delete" if verb in WRITING else "permission to list and read",
            do=f"check the address and the credentials in the environment{again}",
        )
    return StorageFailure(
        f"cannot {verb} {name}",
        found=told(said),
        do=f"check the address and the credentials in the environment{again}",
    )


def told(said: str) -> str:
    r"""Return what a store, or the way to it, says: without the pages of its client, and without what is signed.

    >>> told("Generic S3 error: … in 4ms - Server returned non-2xx status code: 404 Not Found: <?xml?>\n"
    ...      "<Error><Code>NoSuchBucket</Code><Message>It does not exist</Message></Error>\n\nDebug source: …")
    '404 Not Found, NoSuchBucket: It does not exist'
    >>> told('… - HTTP error: error sending request\n\nDebug source: uri: Some(\nhttp://a.b:80/c?d,\n), '
    ...      'error: "Name or service not known"')
    'no connection to http://a.b:80: Name or service not known'
    """
    short, _, pages = said.partition("\n\nDebug source")
    if (status := STATUS.search(short)) is not None:
        code, message = WORD.search(status[2]), MESSAGE.search(status[2])
        line = html.unescape((message[1] or message[2]).strip().split("\n", 1)[0]) if message else ""
        named = ": ".join(part for part in (code[1] if code else "", line) if part)
        return f"{status[1].strip()}, {named}" if named else status[1].strip()
    if "HTTP error" in short and (causes := CAUSES.findall(pages)):
        uri = re.search(r"(https?://[^/\s,]+)", pages)
        return f"no connection{f' to {uri[1]}' if uri else ''}: {causes[-1]}"
    return short.split("\n", 1)[0].rpartition(" - ")[2]


def _region() -> str:
    named = next((os.environ[name] for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)), None)
    return named or "not set, so us-east-1 is asked"
