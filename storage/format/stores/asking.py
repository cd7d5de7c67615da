"""Ask an object store until it answers; its own client gives up too early, and on some requests at once."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import StorageFailure, StoreUnavailable

PATIENCE_S = 120.0  # with a store that does not answer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 15.0
CLIENT_RETRIES = 2  # of the store's own client, within one asking of ours
FINAL = re.compile(r"status code: 4(?!08|09|29)\d\d|Received redirect")  # a refusal; the same request meets it again
NO_BUCKET = "check the address, or make the bucket with your store's own tools"
WHAT = {  # to do, by a store's own word for what it refuses
    "RequestTimeTooSkewed": "set this machine's clock",  # signatures hold for a quarter of an hour
    "NoSuchBucket": NO_BUCKET,
    "ContainerNotFound": NO_BUCKET,
}
OTHERWISE = "check the address and the credentials in the environment"

T = TypeVar("T")


def asked(verb: str, name: str, ask: Callable[[], T]) -> T:
    """Return what a store answers, asked again with longer and longer waits until it does.

    Args:
        verb: what is asked for, for messages.
        name: address of the object or folder.
        ask: makes the request, which may be made any number of times.

    Raises:
        FileNotFoundError: there is no such object.
        StorageFailure: the store refuses the request, and would again.
        StoreUnavailable: it has not answered for two minutes.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

    until_s, wait_s = time.monotonic() + PATIENCE_S, FIRST_WAIT_S
    while True:
        try:
            return ask()
        except FileNotFoundError:
            raise
        except BaseError as error:
            found = str(error).split("\n", 1)[0]  # a store's client adds pages of its own
            # the first is also what a 409 is called, whatever was asked: somebody else is at it just now
            if not isinstance(error, AlreadyExistsError | GenericError) or FINAL.search(str(error)):
                what = next((what for word, what in WHAT.items() if word in str(error)), OTHERWISE)
                raise StorageFailure(
                    f"cannot {verb} {name}", found=found, do=f"{what}, then run the same command again"
                ) from error
            if time.monotonic() + wait_s > until_s:
                raise StoreUnavailable(
                    f"cannot {verb} {name}: the store has not answered for {PATIENCE_S:g} s",
                    found=found,
                    do="run the same command again when the store answers; what is committed stays. "
                    "If it never has, check the address and the credentials in the environment",
                ) from error
        time.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that many workers do not ask as one
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
